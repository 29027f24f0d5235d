"""The request log: one JSON object a line, whatever clients send."""

import io
from dataclasses import replace

import orjson
import pytest

from proxy.core.entry import Usage
from proxy.core.outcome import Outcome, XCache
from proxy.request_log import RequestLog
from tests.fakes import FakeClock

OUTCOME = Outcome(x_cache=XCache.MISS, endpoint="chat", status=200, model="m", request_id="r")


def lines(*outcomes: Outcome) -> list[dict[str, object]]:
    stream = io.BytesIO()
    log = RequestLog(stream, FakeClock())
    for outcome in outcomes:
        log.told(outcome)
    log.flush()
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_what_is_not_known_is_left_out() -> None:
    assert lines(OUTCOME) == [
        {
            "time": "2027-01-15T08:00:00.000+00:00",
            "event": "request",
            "request_id": "r",
            "endpoint": "chat",
            "model": "m",
            "cache": "MISS",
            "status": 200,
            "ms": 0.0,
        }
    ]


def test_B16_what_is_known_is_told() -> None:
    outcome = Outcome(
        x_cache=XCache.MISS,
        endpoint="chat",
        usage=Usage(3, 4, 7),
        stream=True,
        complete=False,
        not_stored="truncated",
        client="ann",
    )

    (line,) = lines(outcome)

    assert (line["prompt_tokens"], line["completion_tokens"]) == (3, 4)
    assert (line["stream"], line["complete"]) == (True, False)
    assert (line["not_stored"], line["client"]) == ("truncated", "ann")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("gpt\ud800", "gpt\\ud800"),
        ('two\nlines "quoted"', 'two\nlines "quoted"'),
        ("é€", "é€"),
        ("x" * 5_000, "x" * 200),
    ],
)
def test_B73_a_clients_text_is_cut_and_always_writable(text: str, shown: str) -> None:
    outcome = Outcome(x_cache=XCache.BYPASS, endpoint="chat", model=text, detail=text)

    (line,) = lines(outcome)

    assert (line["model"], line["detail"]) == (shown, shown)


def test_lines_beyond_the_bound_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxy.request_log._MAX_LINES", 3)

    told = lines(*[OUTCOME] * 5)

    assert [line["event"] for line in told] == ["request"] * 3 + ["log-lines-dropped"]
    assert told[-1]["count"] == 2


def test_B69_a_repetition_has_the_line_that_it_would_have_by_itself() -> None:
    stream = io.BytesIO()
    log = RequestLog(stream, FakeClock())
    hits = [replace(OUTCOME, x_cache=XCache.HIT, model=f"m\ud800{at}") for at in range(3)]
    for number in range(6):
        log.told_again(hits[number % 3], f'req_"{number}')
        log.told(replace(hits[number % 3], request_id=f'req_"{number}'))
    log.flush()

    written = stream.getvalue().splitlines()

    assert written[::2] == written[1::2]
    assert orjson.loads(written[-1])["request_id"] == 'req_"5'


def test_B56_of_many_different_hits_no_more_than_some_are_kept() -> None:
    log = RequestLog(io.BytesIO(), FakeClock())
    for number in range(3_000):
        log.told_again(replace(OUTCOME, model=str(number)), "r")

    assert len(log._repeated) <= 1024
    written = log._lines
    assert [orjson.loads(line)["model"] for line in written] == [str(n) for n in range(3_000)]
