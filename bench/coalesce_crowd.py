"""A crowd of equal requests on a cold key, at one proxy and at two replicas on one Redis."""

import itertools
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

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
from bench.crowd import all_at_once, callers, request
from bench.machine import LOAD_CORE, SERVER_CORE, cpu_seconds
from bench.paced import CONTENT
from bench.peers import WAIT_SECONDS
from bench.processes import Running, paced, peer, proxy, redis
from bench.quiet import Patience, quietly
from bench.report import middle, table

CROWD = 1_000
GOAL_EXTRA_SECONDS = 0.1
FLOOR = "no proxy: an ASGI application that waits as long"


@dataclass(frozen=True, slots=True)
class CrowdTurn:
    """One crowd; seconds from the first request to the upstream's first call, and of each answer
    beyond those that the upstream takes, ordered.
    """

    calls: int
    asked_after: float | None
    extra: Sequence[float]
    cpu_us: float


async def crowd_turn(behind: Running, servers: Sequence[Running]) -> CrowdTurn:
    """All ask the same, at the servers in turn."""
    crowd = await callers(servers, CROWD)
    body = question(stream=False)
    sent = [request(servers[at % len(servers)], body) for at in range(CROWD)]
    spent = sum(cpu_seconds(server.pid) for server in servers)
    heard = await all_at_once(crowd, sent)
    spent = sum(cpu_seconds(server.pid) for server in servers) - spent
    check_all_good(heard)
    await hang_up(crowd)
    calls = calls_for(behind, body)
    return CrowdTurn(
        calls=len(calls),
        asked_after=min(calls) - heard[0].sent if calls else None,
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


@contextmanager
def _floor() -> Iterator[list[Running]]:
    """No proxy: an application that waits as long as the upstream does, for each by itself."""
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        answer.write_bytes(orjson.dumps({"content": CONTENT}))
        with peer("waiting", answer) as server:
            yield [server]


def crowds(turns: int, patience: Patience) -> dict[str, list[CrowdTurn]]:
    """All sides, in turns."""
    with (
        paced("--wait-seconds", str(WAIT_SECONDS)) as behind,
        _floor() as floor,
        replicas(behind, 1) as one,
        replicas(behind, 2) as two,
    ):
        sides = {FLOOR: floor, "one proxy": one, "two replicas, one Redis": two}
        came: dict[str, list[CrowdTurn]] = {name: [] for name in sides}
        for servers in sides.values():
            run_turn(crowd_turn(behind, servers))
        for _ in range(turns):
            for name, servers in sides.items():

                def turn(servers: Sequence[Running] = servers) -> CrowdTurn:
                    return run_turn(crowd_turn(behind, servers))

                came[name].append(quietly(turn, [behind, *servers], patience))
    return came


def crowd_report(came: Mapping[str, Sequence[CrowdTurn]]) -> str:
    """The table, and whether the goal is reached."""
    head = [f"{CROWD:,} at once", "upstream calls", "called after, ms"]
    head += ["p50 ms", "p99 ms", "slowest ms", "CPU µs each"]
    rows = [_row(name, turns) for name, turns in came.items()]
    proxies = [turns for name, turns in came.items() if name != FLOOR]
    reached = all(
        all(turn.calls == GOAL_CALLS for turn in turns)
        and statistics.median(at_share(turn.extra, 0.99) for turn in turns) <= GOAL_EXTRA_SECONDS
        for turns in proxies
    )
    return (
        f"{table(head, rows)}\n\nGoal: one call, p99 {1000 * GOAL_EXTRA_SECONDS:.0f} ms after the"
        f" upstream or sooner. {verdict(reached=reached)}"
    )


def _row(name: str, turns: Sequence[CrowdTurn]) -> list[str]:
    shares = [[1000 * at_share(turn.extra, share) for turn in turns] for share in (0.5, 0.99, 1.0)]
    asked = [1000 * turn.asked_after for turn in turns if turn.asked_after is not None]
    return [
        name,
        middle([turn.calls for turn in turns]) if asked else "",
        middle(asked) if asked else "",
        *(middle(share) for share in shares),
        middle([turn.cpu_us for turn in turns]),
    ]
