"""What passing through adds, and whether an outage is noticed: computed from the turns."""

import pytest

from bench.bench_outage import GOAL_SECONDS, Turn, goals, report
from bench.bench_passing import DIRECT, GOAL_MS, NGINX, OURS, added
from bench.bench_passing import goals as passing_goals
from bench.nginx import pass_configuration
from bench.passing_turns import KINDS
from bench.passing_turns import Turn as PassingTurn
from bench.processes import Running


def passing(*seconds: float) -> PassingTurn:
    return PassingTurn(sorted(seconds), rate=1.0, cpu_us=1.0)


@pytest.mark.parametrize(("ours", "verdict"), [(0.00139, "reached"), (0.00141, "**missed**")])
def test_added_is_what_a_proxy_takes_beyond_the_direct_way_in_the_same_turn(
    ours: float, verdict: str
) -> None:
    turns = {
        DIRECT: [passing(0.0003, 0.0004, 0.0005), passing(0.0104, 0.0104, 0.0104)],
        NGINX: [passing(0.0005, 0.0005, 0.0005), passing(0.0105, 0.0105, 0.0105)],
        OURS: [passing(0.0009, ours, 0.0095), passing(0.0104 + GOAL_MS / 1000, 0.02, 0.03)],
    }
    assert added(turns, NGINX, 0.5) == pytest.approx([0.1, 0.1])
    assert added(turns, OURS, 0.99) == pytest.approx([9.0, 19.6])
    turns[OURS][1] = passing(0.0104 + (ours - 0.0004))
    ((_, wanted, _, reached, _),) = passing_goals({"post": turns})
    assert (wanted, reached) == ("adds ≤ 1 ms, p50", verdict)


@pytest.mark.parametrize("name", KINDS)
def test_what_passes_is_framed_as_it_says(name: str) -> None:
    kind = KINDS[name]
    head, _, body = kind.to(Running(1, 80)).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[:2] == [f"{kind.method} {kind.path} HTTP/1.1", "host: 127.0.0.1:80"]
    lengths = [line for line in lines if line.startswith("content-length")]
    assert lengths == ([f"content-length: {len(body)}"] if body else [])


def outage(*seconds: float, known: int) -> Turn:
    return Turn(opened=0.1, known=known, came=sorted(seconds), probes=1.0, cpu_us=1.0)


@pytest.mark.parametrize(
    ("turn", "verdict"),
    [
        (outage(0.001, GOAL_SECONDS, known=2), "reached"),
        (outage(0.001, GOAL_SECONDS + 0.001, known=2), "**missed**"),
        (outage(0.001, 0.002, known=3), "**missed**"),
    ],
    ids=["all in time", "one late", "one missing"],
)
def test_each_known_answer_has_to_come_in_time(turn: Turn, verdict: str) -> None:
    ((path, _, _, reached, _),) = goals({"gone: silent": [turn]})
    assert (path, reached) == ("known and stale, upstream gone: silent", verdict)
    assert ("Missed" in report({"gone: silent": [turn]})) is (verdict != "reached")


def test_nginx_passes_on_as_it_comes() -> None:
    written = pass_configuration("127.0.0.1:1", "127.0.0.1:2")
    assert "proxy_request_buffering off;" in written
    assert "proxy_cache" not in written
    assert written.count("{") == written.count("}")
