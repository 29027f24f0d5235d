"""Equal requests at once: how many reach the upstream, how long they take, and what it costs.

    python -m bench.bench_coalesce [--turns 3] [--only crowd followers misses] [--write]

- crowd: 1,000 equal requests on a cold key, over connections that stand already, to one proxy and
  to two replicas on one Redis. The upstream takes 200 ms. Each answer is timed from the write of
  its request to the last byte; what is told is how much longer than the upstream it took.
- followers: one stream, 201 clients of one process, an event every 20 ms. For each event, the time
  from the first client that has it (the leader's is one of them) to the last one. CPU is the
  proxy's own, by `/proc/PID/stat`, for a stream with followers less one without, for each event and
  follower.
- misses: what `coalesce: local` and `shared` add to a miss that nobody else asks for: proxies with
  `off`, `local` and `shared` take turns under wrk; the ratio is that of CPU times of one turn.
"""

import argparse
import asyncio
import hashlib
import itertools
import statistics
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
import uvloop

from bench.crowd import Caller, Heard, all_at_once, callers, request
from bench.load import Requests, run
from bench.machine import LOAD_CORE, SERVER_CORE, cpu_seconds, described, pin
from bench.processes import Running, get, paced, proxy, redis, upstream
from bench.report import middle, publish, table

CROWD = 1_000
WAIT_SECONDS = 0.2
GOAL_CALLS = 1
GOAL_EXTRA_SECONDS = 0.1
FOLLOWERS = 200
EVENTS = 200
EVENT_SECONDS = 0.02
GOAL_SPREAD_SECONDS = 0.02
GOAL_CPU_US = 15.0
MISS_SECONDS = 3
PARTS = ("crowd", "followers", "misses")

T = TypeVar("T")
_fresh = itertools.count(time.time_ns())


def rules(coalesce: str = "shared") -> dict[str, Any]:
    """One rule for all chat."""
    rule = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 600}
    return {"rules": [rule | {"coalesce": coalesce}]}


def question(*, stream: bool) -> bytes:
    """A body that nobody has sent before."""
    message = {"role": "user", "content": f"Question {next(_fresh)}"}
    return orjson.dumps({"model": "gpt-4o", "stream": stream, "messages": [message]})


def calls_for(behind: Running, body: bytes) -> list[float]:
    """When the upstream was asked this; monotonic seconds."""
    calls: dict[str, list[float]] = orjson.loads(get(behind, "/calls"))
    return calls.get(hashlib.sha256(body).hexdigest(), [])


# ---- a crowd on a cold key ----


@dataclass(frozen=True, slots=True)
class CrowdTurn:
    """One crowd; seconds from the first request to the upstream's first call, and of each answer
    beyond those that the upstream takes, ordered.
    """

    calls: int
    asked_after: float
    extra: Sequence[float]
    cpu_us: float


async def crowd_turn(behind: Running, servers: Sequence[Running]) -> CrowdTurn:
    """All ask the same, at the proxies in turn."""
    crowd = await callers(servers, CROWD)
    body = question(stream=False)
    sent = [request(servers[at % len(servers)], body) for at in range(CROWD)]
    spent = sum(cpu_seconds(server.pid) for server in servers)
    heard = await all_at_once(crowd, sent)
    spent = sum(cpu_seconds(server.pid) for server in servers) - spent
    _check_all_good(heard)
    await _hang_up(crowd)
    calls = calls_for(behind, body)
    return CrowdTurn(
        calls=len(calls),
        asked_after=min(calls) - heard[0].sent,
        extra=sorted(each.seconds - WAIT_SECONDS for each in heard),
        cpu_us=spent / CROWD * 1e6,
    )


@contextmanager
def replicas(behind: Running, count: int) -> Iterator[list[Running]]:
    """That many proxies; more than one share a Redis. The second one has the load's core."""
    with ExitStack() as stack:
        settings: dict[str, Any] = {"cache_settings": rules(), "store": "memory"}
        if count > 1:
            url = f"redis://127.0.0.1:{stack.enter_context(redis()).port}/0"
            settings["store"] = {"redis": {"url": url}}
        cores = itertools.cycle([SERVER_CORE, LOAD_CORE])
        yield [stack.enter_context(proxy(behind, settings, core=next(cores))) for _ in range(count)]


def crowds(turns: int) -> dict[str, list[CrowdTurn]]:
    """One proxy and two replicas, in turns."""
    came: dict[str, list[CrowdTurn]] = {"one proxy": [], "two replicas, one Redis": []}
    with (
        paced("--wait-seconds", str(WAIT_SECONDS)) as behind,
        replicas(behind, 1) as one,
        replicas(behind, 2) as two,
    ):
        for servers in (one, two):
            _run(crowd_turn(behind, servers))
        for _ in range(turns):
            for servers, turns_of in zip((one, two), came.values(), strict=True):
                turns_of.append(_run(crowd_turn(behind, servers)))
    return came


def crowd_report(came: Mapping[str, Sequence[CrowdTurn]]) -> str:
    head = ["1,000 at once", "upstream calls", "called after, ms"]
    head += ["p50 ms", "p99 ms", "slowest ms", "CPU µs each"]
    rows = []
    for name, turns in came.items():
        shares = [[1000 * at(turn.extra, share) for turn in turns] for share in (0.5, 0.99, 1.0)]
        calls = [turn.calls for turn in turns]
        cpu = [turn.cpu_us for turn in turns]
        asked = [1000 * turn.asked_after for turn in turns]
        rows.append(
            [name, middle(calls), middle(asked), *(middle(share) for share in shares), middle(cpu)]
        )
    turns_of_all = [turn for turns in came.values() for turn in turns]
    reached = all(turn.calls == GOAL_CALLS for turn in turns_of_all) and all(
        statistics.median(at(turn.extra, 0.99) for turn in turns) <= GOAL_EXTRA_SECONDS
        for turns in came.values()
    )
    return (
        f"{table(head, rows)}\n\nGoal: one call, p99 {1000 * GOAL_EXTRA_SECONDS:.0f} ms after the"
        f" upstream or sooner. {_verdict(reached=reached)}"
    )


def at(ordered: Sequence[float], share: float) -> float:
    """The figure that this share of them does not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# ---- one stream, many followers ----


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
    await _hang_up(crowd)
    crowd = await callers([server], 1 + FOLLOWERS)
    body = question(stream=True)
    spent, heard = await _streamed(server, crowd, body)
    await _hang_up(crowd)
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
    _check_all_good(heard)
    return cpu_seconds(server.pid) - spent, heard


def _positions(content: bytes, wanted: bytes) -> Iterator[int]:
    position = content.find(wanted)
    while position >= 0:
        yield position
        position = content.find(wanted, position + len(wanted))


def streams(turns: int) -> list[StreamTurn]:
    """Several streams, one after the other."""
    pace = ("--wait-seconds", "0.5", "--events", str(EVENTS), "--event-seconds", str(EVENT_SECONDS))
    settings = {"cache_settings": rules(), "store": "memory"}
    with paced(*pace) as behind, proxy(behind, settings) as server:
        _run(stream_turn(behind, server))
        return [_run(stream_turn(behind, server)) for _ in range(turns)]


def stream_report(turns: Sequence[StreamTurn]) -> str:
    first = [1000 * turn.spread[0] for turn in turns]
    late = [1000 * at(sorted(turn.spread), 0.99) for turn in turns]
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
        f" {GOAL_CPU_US:.0f} µs. {_verdict(reached=reached)}"
    )


# ---- misses that nobody shares ----


@dataclass(slots=True)
class MissSide:
    """A proxy with one way of coalescing; CPU µs of its own and of the Redis behind it."""

    server: Running
    store: Running | None
    cpu_us: list[float] = field(default_factory=list)
    store_cpu_us: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def turn(self, number: int, seconds: int) -> None:
        spent = cpu_seconds(self.server.pid)
        behind = cpu_seconds(self.store.pid) if self.store else 0.0
        came = run(self.server, Requests.DISTINCT, seconds=seconds, first=number * 100_000)
        self.cpu_us.append((cpu_seconds(self.server.pid) - spent) / came.requests * 1e6)
        if self.store is not None:
            self.store_cpu_us.append((cpu_seconds(self.store.pid) - behind) / came.requests * 1e6)
        self.rates.append(came.requests / came.seconds)


@contextmanager
def miss_sides() -> Iterator[dict[str, dict[str, MissSide]]]:
    """For each store, a proxy for each way."""
    with ExitStack() as stack:
        behind = stack.enter_context(upstream())
        sides: dict[str, dict[str, MissSide]] = {"disk": {}, "Redis": {}}
        for way in ("off", "local", "shared"):
            given: dict[str, Any] = {"cache_settings": rules(way)}
            sides["disk"][way] = MissSide(stack.enter_context(proxy(behind, given)), None)
            store = stack.enter_context(redis())
            given |= {"store": {"redis": {"url": f"redis://127.0.0.1:{store.port}/0"}}}
            sides["Redis"][way] = MissSide(stack.enter_context(proxy(behind, given)), store)
        yield sides


def misses(turns: int) -> str:
    """The table of what each way costs."""
    with miss_sides() as stores:
        sides = [side for ways in stores.values() for side in ways.values()]
        for side in sides:
            side.turn(0, 1)
        for side in sides:
            for figures in (side.cpu_us, side.store_cpu_us, side.rates):
                figures.clear()
        for number in range(1, turns + 1):
            for side in sides:
                side.turn(number, MISS_SECONDS)
    head = ["store", "coalesce", "CPU µs", "/ off", "Redis CPU µs", "misses/s"]
    rows = []
    for store, ways in stores.items():
        for way, side in ways.items():
            pairs = zip(side.cpu_us, ways["off"].cpu_us, strict=True)
            ratio = "" if way == "off" else middle([mine / off for mine, off in pairs], 2)
            behind = middle(side.store_cpu_us) if side.store_cpu_us else ""
            rows.append([store, way, middle(side.cpu_us), ratio, behind, middle(side.rates)])
    return table(head, rows)


# ---- what they share ----


def _run(turn: Coroutine[Any, Any, T]) -> T:
    """On the faster loop: what the client takes is part of the times."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(turn)


def _check_all_good(heard: Sequence[Heard]) -> None:
    for each in heard:
        assert each.status == 200, (each.status, bytes(each.body[:300]))
        whole = each.body.endswith(b"}") or each.body.endswith(b"data: [DONE]\n\n")
        assert whole, bytes(each.body[-100:])


async def _hang_up(crowd: Sequence[Caller]) -> None:
    for caller in crowd:
        caller.hang_up()
    await asyncio.sleep(0.05)


def _verdict(*, reached: bool) -> str:
    return "**Reached.**" if reached else "**Missed.**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    command = f"python -m bench.bench_coalesce --turns {given.turns}"
    parts = [f"`{command}`: {described('aiohttp', 'uvicorn', 'uvloop')} Median (range)."]
    if "crowd" in given.only:
        parts.append(crowd_report(crowds(given.turns)))
    if "followers" in given.only:
        parts.append(stream_report(streams(given.turns)))
    if "misses" in given.only:
        parts.append(misses(given.turns))
    publish("coalesce", "\n\n".join(parts), write=given.write)


if __name__ == "__main__":
    main()
