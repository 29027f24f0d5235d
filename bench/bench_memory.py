"""What a worker holds: idle, for entries, for idle connections, for the hot path's table.

    python -m bench.bench_memory [--turns 3] [--entries 100000] [--only PART ...] [--write]

Resident memory by `/proc/PID/status`, of fresh workers, once they have done what is left over:

- idle: after the first answer.
- entries: embeddings of 2 KB, as stored, filled through the proxy in batches of 1,000, after 20,000
  others. What they take is compared with the bytes stored, keys and values alone.
- connections: 1,000 that stand idle after one answer each; then after another one, a hit with a
  request of 2 KB.
- hot: chat requests of 2 KB, more than the table can hold, each asked until it is remembered; what
  a worker with the table takes beside one whose hot path is switched off, and its bound.
"""

import argparse
import asyncio
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.crowd import callers, request
from bench.filling import BATCH, fill
from bench.goals import row
from bench.hit_turns import settle
from bench.load import Requests, run
from bench.machine import (
    LOAD_CORE,
    allow_descriptors,
    described,
    open_descriptors,
    pin,
    resident_bytes,
)
from bench.metrics import gauge
from bench.processes import Running, get, paced, post, proxy
from bench.question import CHAT, HEADERS
from bench.report import middle, publish, publish_goals, table
from proxy.stores.memory import ENTRY_OVERHEAD_BYTES

NAME = "bench_memory"
MB = 1e6
GOAL_SHARE = 1.3
GOAL_CONNECTIONS_MB = 20
CONNECTIONS = 1_000
# Makes an entry of 2 KB, which is not compressed yet.
NUMBERS = 247
FIRST_BATCHES = 20
HOT_BYTES = 32 * 1024 * 1024
HOT_REQUESTS, HOT_ROUNDS = 8_000, 4
PARTS = ("idle", "entries", "connections", "hot")


@dataclass(frozen=True, slots=True)
class Growth:
    """Resident bytes before and after, and what they are to be compared with, if anything."""

    before: int
    after: int
    stored: float = 0.0

    @property
    def megabytes(self) -> float:
        return (self.after - self.before) / MB

    @property
    def share(self) -> float:
        return (self.after - self.before) / self.stored


@dataclass(frozen=True, slots=True)
class Line:
    """What something takes; a `bound` is one of the shares, where there are any, else of MB."""

    what: str
    megabytes: Sequence[float]
    shares: Sequence[float] = ()
    bound: float | None = None

    def row(self) -> list[str]:
        return [self.what, middle(self.megabytes, 1), middle(self.shares, 2) if self.shares else ""]

    def goal(self) -> list[str]:
        assert self.bound is not None
        wanted = f"≤ {self.bound:g} " + ("times the bytes stored" if self.shares else "MB")
        figures = self.shares or self.megabytes
        reached = statistics.median(figures) <= self.bound
        return row(self.what, wanted, middle(figures, 2), NAME, reached=reached)


@contextmanager
def worker(behind: Running, settings: Mapping[str, Any] | None = None) -> Iterator[Running]:
    """A proxy with memory alone that has answered once."""
    given = {"store": {"tiers": "memory", "memory": {"max_bytes": "4GiB"}}} | dict(settings or {})
    with proxy(behind, given) as server:
        post(server, CHAT.path, CHAT.body(), HEADERS)
        get(server, "/metrics")
        yield server


def settled(server: Running) -> int:
    """Resident bytes once nothing is left to do."""
    settle(server)
    return resident_bytes(server.pid)


def idle(behind: Running) -> float:
    """MB of a worker that has answered once."""
    with worker(behind) as server:
        return settled(server) / MB


def entries(behind: Running, count: int) -> Growth:
    """For so many entries, on top of some: what filling itself takes is not theirs."""
    with worker(behind) as server:
        asyncio.run(fill(server, 0, FIRST_BATCHES))
        before, stored = settled(server), _stored_bytes(server)
        asyncio.run(fill(server, FIRST_BATCHES, count // BATCH))
        return Growth(before, settled(server), _stored_bytes(server) - stored)


def _stored_bytes(server: Running) -> float:
    held = gauge(server, "magic_proxy_store_entries")
    return gauge(server, "magic_proxy_store_bytes") - held * ENTRY_OVERHEAD_BYTES


def connections(behind: Running) -> tuple[Growth, Growth]:
    """Connections that stand; the same after a hit over each."""
    with worker(behind) as server:
        before = settled(server)
        stand, asked = asyncio.run(_connections(server))
        return Growth(before, stand), Growth(before, asked)


async def _connections(server: Running) -> tuple[int, int]:
    crowd = await callers([server], CONNECTIONS)
    stand = _standing(server)
    asked = request(server, CHAT.body())
    for heard in await asyncio.gather(*(caller.ask(asked) for caller in crowd)):
        assert heard.x_cache == "HIT", heard.cache_status
    after = _standing(server)
    for caller in crowd:
        caller.hang_up()
    return stand, after


def _standing(server: Running) -> int:
    resident = resident_bytes(server.pid)
    assert open_descriptors(server.pid) > CONNECTIONS, "connections were closed"
    return resident


def hot(behind: Running) -> Growth:
    """For a full table: `before` is a worker whose hot path is switched off."""
    off, on = (_asked_often(behind, size) for size in (0, HOT_BYTES))
    return Growth(off, on, HOT_BYTES)


def _asked_often(behind: Running, hot_path_bytes: int) -> int:
    with worker(behind, {"server": {"hot_path_bytes": hot_path_bytes}}) as server:
        asked = 0
        while asked < HOT_ROUNDS * HOT_REQUESTS:
            came = run(server, Requests.CYCLED, seconds=2, first=asked, count=HOT_REQUESTS)
            asked += came.requests
        return settled(server)


def measured(part: str, behind: Running, turns: int, count: int) -> Iterator[Line]:
    """The lines of one part."""
    print(f"{part} …", flush=True)
    match part:
        case "idle":
            yield Line("idle worker, memory alone", [idle(behind) for _ in range(turns)])
        case "entries":
            came = [entries(behind, count) for _ in range(turns)]
            what = f"{count:,} entries of {came[0].stored / count / 1000:.0f} KB in memory"
            yield Line(what, _megabytes(came), [one.share for one in came], bound=GOAL_SHARE)
        case "connections":
            stand, asked = zip(*(connections(behind) for _ in range(turns)), strict=True)
            what = f"{CONNECTIONS:,} idle keep-alive connections"
            yield Line(what, _megabytes(stand), bound=GOAL_CONNECTIONS_MB)
            yield Line(f"{what}, after a hit over each", _megabytes(asked))
        case _:
            tables = [hot(behind) for _ in range(turns)]
            what = f"table of the hot path, full ({HOT_BYTES // 2**20} MiB)"
            yield Line(what, _megabytes(tables), [one.share for one in tables])


def _megabytes(came: Sequence[Growth]) -> list[float]:
    return [one.megabytes for one in came]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    allow_descriptors()
    with paced("--numbers", str(NUMBERS)) as behind:
        lines = [
            line
            for part in given.only
            for line in measured(part, behind, given.turns, given.entries)
        ]
    command = f"python -m bench.bench_memory --turns {given.turns} --entries {given.entries}"
    head = ["what", "MB", "/ bytes"]
    text = [
        f"`{command}`: {described('uvicorn', 'uvloop')} {given.turns} turn(s); median (range).",
        "",
        table(head, [line.row() for line in lines]),
    ]
    publish("memory", "\n".join(text), write=given.write)
    publish_goals([line.goal() for line in lines if line.bound is not None], write=given.write)


if __name__ == "__main__":
    main()
