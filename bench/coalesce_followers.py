"""One stream and its followers in one process: how far behind they are, and what each costs."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.coalesce_base import (
    GOAL_CALLS,
    at_share,
    calls_for,
    check_all_good,
    hang_up,
    question,
    rules,
    run_turn,
    verdict,
)
from bench.crowd import Caller, Heard, all_at_once, callers, request
from bench.machine import cpu_seconds
from bench.processes import Running, paced, proxy
from bench.quiet import Patience, quietly
from bench.report import middle, table

FOLLOWERS = 200
EVENTS = 200
EVENT_SECONDS = 0.02
GOAL_SPREAD_SECONDS = 0.02
GOAL_CPU_US = 15.0


@dataclass(frozen=True, slots=True)
class StreamTurn:
    """One stream with its followers, and one without; `spread` is in seconds, by event."""

    calls: int
    spread: Sequence[float]
    cpu_seconds: float
    alone_cpu_seconds: float

    @property
    def each_us(self) -> float:
        """CPU for each event and follower."""
        return (self.cpu_seconds - self.alone_cpu_seconds) / (EVENTS * FOLLOWERS) * 1e6


async def stream_turn(behind: Running, server: Running) -> StreamTurn:
    """The leader alone, then the leader with its followers."""
    crowd = await callers([server], 1)
    alone, _ = await _streamed(server, crowd, question(stream=True))
    await hang_up(crowd)
    crowd = await callers([server], 1 + FOLLOWERS)
    body = question(stream=True)
    spent, heard = await _streamed(server, crowd, body)
    await hang_up(crowd)
    # The events differ in nothing: an event has come when as many bytes have.
    ends = [position + 2 for position in _positions(bytes(heard[0].body), b"\n\n")]
    assert all(each.body == heard[0].body for each in heard), "streams differ"
    spread = []
    for end in ends[:EVENTS]:
        moments = [each.moment_of(end) for each in heard]
        spread.append(max(moments) - min(moments))
    return StreamTurn(len(calls_for(behind, body)), spread, spent, alone)


async def _streamed(
    server: Running, crowd: Sequence[Caller], body: bytes
) -> tuple[float, list[Heard]]:
    spent = cpu_seconds(server.pid)
    heard = await all_at_once(crowd, [request(server, body)] * len(crowd))
    check_all_good(heard)
    return cpu_seconds(server.pid) - spent, heard


def _positions(content: bytes, wanted: bytes) -> Iterator[int]:
    position = content.find(wanted)
    while position >= 0:
        yield position
        position = content.find(wanted, position + len(wanted))


def streams(turns: int, patience: Patience) -> list[StreamTurn]:
    """Several streams, one after the other."""
    pace = ("--wait-seconds", "0.5", "--events", str(EVENTS), "--event-seconds", str(EVENT_SECONDS))
    settings = {"cache_settings": rules(), "store": "memory"}
    with paced(*pace) as behind, proxy(behind, settings) as server:

        def turn() -> StreamTurn:
            return run_turn(stream_turn(behind, server))

        turn()
        return [quietly(turn, [behind, server], patience) for _ in range(turns)]


def stream_report(turns: Sequence[StreamTurn]) -> str:
    """The table, and whether the goal is reached."""
    first = [1000 * turn.spread[0] for turn in turns]
    late = [1000 * at_share(sorted(turn.spread), 0.99) for turn in turns]
    each = [turn.each_us for turn in turns]
    alone = [turn.alone_cpu_seconds / EVENTS * 1e6 for turn in turns]
    head = [
        f"a stream and {FOLLOWERS} followers",
        "upstream calls",
        "first event, ms",
        "p99 of events, ms",
        "CPU µs / event, follower",
        "CPU µs / event, alone",
    ]
    row = ["one proxy", middle([turn.calls for turn in turns])]
    row += [middle(first, 1), middle(late, 1), middle(each, 1), middle(alone)]
    reached = (
        all(turn.calls == GOAL_CALLS for turn in turns)
        and statistics.median(first) <= 1000 * GOAL_SPREAD_SECONDS
        and statistics.median(each) < GOAL_CPU_US
    )
    return (
        f"{table(head, [row])}\n\nGoal: the first event at the last follower"
        f" {1000 * GOAL_SPREAD_SECONDS:.0f} ms after the leader has it or sooner, less than"
        f" {GOAL_CPU_US:.0f} µs. {verdict(reached=reached)}"
    )
