"""What the benchmarks read and write: wrk's last line, nginx's settings, the page's tables."""

import json

import pytest

from bench.load import told
from bench.nginx import cache_configuration, static_configuration
from bench.question import CHAT, STREAM, Question
from bench.report import middle, replaced, with_rows

LAST = {
    "requests": 10, "seconds": 2.0, "bytes": 100, "not_2xx": 0, "failed": 0, "p50_us": 5,
    "p99_us": 9,
}  # fmt: skip


def test_the_last_line_of_wrk_is_read() -> None:
    came = told(f"Running 2s test\n  some words\n\n{json.dumps(LAST)}\n", 1.5)
    assert (came.requests, came.p99_us, came.load_cpu_seconds) == (10, 9, 1.5)


@pytest.mark.parametrize("wrong", [{"not_2xx": 1}, {"failed": 1}, {"requests": 0}])
def test_a_run_with_other_answers_does_not_count(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        told(json.dumps(LAST | wrong), 0.0)


@pytest.mark.parametrize("question", [CHAT, STREAM, Question(path="/v1/embeddings", words=0)])
def test_a_question_has_three_lines_and_is_json(question: Question) -> None:
    assert all("\n" not in part for part in question.parts())
    body = json.loads(question.body(7))
    assert "00000007" in (body.get("input") or body["messages"][1]["content"])


def test_the_chat_question_has_the_size_that_is_told() -> None:
    assert len(CHAT.body()) == pytest.approx(2048, rel=0.02)


def test_nginx_gives_the_very_bytes() -> None:
    written = static_configuration("127.0.0.1:1", b"""{"a":"it's a \\n"}""")
    assert """return 200 '{"a":"it\\'s a \\\\n"}';""" in written
    with pytest.raises(ValueError, match="dollar"):
        static_configuration("127.0.0.1:1", b"$5")


def test_nginx_keys_on_all_that_makes_a_request_another() -> None:
    written = cache_configuration("127.0.0.1:1", "127.0.0.1:2")
    assert '"$request_uri|$request_body|$http_authorization"' in written
    assert written.count("{") == written.count("}")


def test_rows_of_goals_replace_those_of_the_same_goal_and_leave_others() -> None:
    old = with_rows("", [["a", "≤ 1", "2", "", "`x`"], ["b", "≤ 1", "2", "**missed**", "`y`"]])
    new = with_rows(old, [["b", "≤ 1", "1", "reached", "`y`"], ["c", "≤ 3", "1", "reached", "`y`"]])
    assert old.splitlines()[:2] == new.splitlines()[:2]
    assert new.splitlines()[2:] == [
        "| a | ≤ 1 | 2 |  | `x` |",
        "| b | ≤ 1 | 1 | reached | `y` |",
        "| c | ≤ 3 | 1 | reached | `y` |",
    ]


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    page = "above\n<!-- x: begin -->\n\nold\n\n<!-- x: end -->\nbelow\n"
    once = replaced(page, "x", lambda old: old + " and new")
    assert once == "above\n<!-- x: begin -->\n\nold and new\n\n<!-- x: end -->\nbelow\n"
    assert replaced(once, "x", lambda _: "old") == page
    with pytest.raises(AssertionError):
        replaced(page, "y", lambda old: old)


def test_the_median_stands_with_its_range() -> None:
    assert middle([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
