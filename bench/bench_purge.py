"""A purge of a tag that covers many entries: how long it takes, what it holds up, what it costs.

    python -m bench.bench_purge [--turns 3] [--entries 100000] [--patience 200]
        [--only purge reads] [--write]

- purge: the store is filled through the proxy (embeddings in batches of 1,000 inputs, an entry
  each, all with one tag), then the tag is purged by `POST /admin/purge`, over a connection that
  stands already. A client that asks for a hit again and again, from a second before to five seconds
  after, tells whether anybody had to wait. That the purge held is checked with requests for some
  of the entries, with `only-if-cached`, before and after.
- reads: what looking at the marks of purges adds to a hit. Proxies with no mark, with one and with
  1,000 (of tags that no entry has) take turns under wrk; requests are never repeated byte for byte,
  so that each hit is decoded and compared with the marks.

A turn in which other processes had more than a tenth of a core was disturbed, and is taken again,
as long as the patience (seconds, in all) lasts.
"""

import argparse
import asyncio
import hashlib
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
import uvloop

from bench.crowd import Caller, Heard, callers, request
from bench.filling import BATCH, EMBEDDING, fill
from bench.load import Requests, run
from bench.machine import LOAD_CORE, cpu_seconds, described, pin, resident_bytes
from bench.processes import Running, paced, proxy, redis, upstream
from bench.quiet import Patience, quietly
from bench.report import middle, publish, table

GOAL_MS = 10.0
# What a purge may leave resident: a mark is some hundred bytes, a list of the entries is megabytes.
FLAT_BYTES = 4 * 1024 * 1024
SAMPLES = 20
TAG = "bench"
ADMIN_KEY = "bench-admin"
ADMIN = f"x-admin-key: {ADMIN_KEY}"
BEFORE_SECONDS, AFTER_SECONDS = 1.0, 5.0
MARKS = (0, 1, 1_000)
READ_SECONDS = 3
PARTS = ("purge", "reads")
STORES = ("memory", "disk", "redis")

T = TypeVar("T")
_rounds = itertools.count()


@dataclass(frozen=True, slots=True)
class Turn:
    """One purge: seconds it took, bytes resident, seconds that other clients waited at most."""

    seconds: float
    before: int
    after: int
    usual_wait: float
    longest_wait: float


def settings(store: str | Mapping[str, Any]) -> dict[str, Any]:
    """One rule for embeddings, all with a tag, and one for chat without."""
    rule = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 3600}
    rules = [
        rule | {"name": "tagged", "endpoints": ["embeddings"], "tags": [TAG]},
        rule | {"name": "others", "endpoints": ["chat"]},
    ]
    digest = hashlib.sha256(ADMIN_KEY.encode()).hexdigest()
    return {
        "cache_settings": {"rules": rules},
        "store": store,
        "admin": {"key_hashes": [f"sha256:{digest}"]},
    }


def purge_request(server: Running, tag: str) -> bytes:
    """The bytes of a purge."""
    return request(server, orjson.dumps({"tag": tag}), "/admin/purge", ADMIN)


async def purge_turn(server: Running, entries: int) -> Turn:
    """Fill, purge, and see what came of it."""
    batches = math.ceil(entries / BATCH)
    # Other inputs in each round.
    first = next(_rounds) * batches
    await fill(server, first, batches)
    await _check(server, first, batches, cached=True)
    purger, prober = await callers([server], 2)
    waits: list[tuple[float, float]] = []
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_probe(server, prober, waits, stop))
        await asyncio.sleep(BEFORE_SECONDS)
        before = resident_bytes(server.pid)
        began = time.monotonic()
        purged = await purger.ask(purge_request(server, TAG))
        assert purged.status == 200, bytes(purged.body)
        await asyncio.sleep(AFTER_SECONDS)
        after = resident_bytes(server.pid)
        stop.set()
    await _check(server, first, batches, cached=False)
    for caller in (purger, prober):
        caller.hang_up()
    return Turn(
        seconds=purged.seconds,
        before=before,
        after=after,
        usual_wait=max(wait for moment, wait in waits if moment < began),
        longest_wait=max(wait for moment, wait in waits if moment >= began - GOAL_MS / 1000),
    )


async def _check(server: Running, first: int, batches: int, *, cached: bool) -> None:
    """Of some entries, whether a request finds them."""
    (caller,) = await callers([server], 1)
    for at in range(SAMPLES):
        number = first * BATCH + at * batches * BATCH // SAMPLES
        only = "cache-control: only-if-cached"
        asked = request(server, EMBEDDING.body(number), EMBEDDING.path, only)
        heard = await caller.ask(asked)
        assert heard.status == (200 if cached else 504), (heard.status, heard.cache_status)
    caller.hang_up()


async def _probe(
    server: Running, caller: Caller, waits: list[tuple[float, float]], stop: asyncio.Event
) -> None:
    """Ask for one and the same hit; when each was asked, and how long it took."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
    sent = request(server, orjson.dumps(body))
    await caller.ask(sent)
    while not stop.is_set():
        heard: Heard = await caller.ask(sent)
        assert heard.x_cache == "HIT", heard.cache_status
        waits.append((heard.sent, heard.seconds))
        await asyncio.sleep(0.001)


@contextmanager
def stores(names: Sequence[str]) -> Iterator[dict[str, list[Running]]]:
    """A proxy for each store alone, with room for everything, and what stands behind it."""
    with ExitStack() as stack:
        behind = stack.enter_context(paced())
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        servers: dict[str, list[Running]] = {}
        for name in names:
            needed = [behind]
            store: dict[str, Any] = {"tiers": name, "write_queue_entries": 20_000}
            if name == "memory":
                store["memory"] = {"max_bytes": "2GiB"}
            if name == "disk":
                store["disk"] = {"path": f"{directory}/cache.sqlite3"}
            if name == "redis":
                needed.append(stack.enter_context(redis()))
                url = f"redis://127.0.0.1:{needed[-1].port}/0"
                store["redis"] = {"url": url, "timeout_seconds": 1.0}
            servers[name] = [stack.enter_context(proxy(behind, settings(store))), *needed]
        yield servers


def purges(turns: int, entries: int, patience: Patience) -> dict[str, list[Turn]]:
    """All stores, in turns."""
    came: dict[str, list[Turn]] = {name: [] for name in STORES}
    with stores(STORES) as servers:
        for _ in range(turns):
            for name, needed in servers.items():

                def turn(server: Running = needed[0]) -> Turn:
                    return _run(purge_turn(server, entries))

                came[name].append(quietly(turn, needed, patience))
    return came


def purge_report(came: Mapping[str, Sequence[Turn]], entries: int) -> str:
    head = ["store", "purge, ms", "RSS before, MB", "after, MB", "longest wait, ms", "usually, ms"]
    rows = [
        [
            name,
            middle([1000 * turn.seconds for turn in turns], 1),
            middle([turn.before / 1e6 for turn in turns]),
            middle([turn.after / 1e6 for turn in turns]),
            middle([1000 * turn.longest_wait for turn in turns], 1),
            middle([1000 * turn.usual_wait for turn in turns], 1),
        ]
        for name, turns in came.items()
    ]
    fast = all(
        statistics.median(1000 * turn.seconds for turn in turns) < GOAL_MS
        for turns in came.values()
    )
    flat = all(turn.after - turn.before < FLAT_BYTES for turns in came.values() for turn in turns)
    verdict = "**Reached.**" if fast and flat else "**Missed.**"
    return (
        f"A tag that covers {entries:,} entries:\n\n{table(head, rows)}\n\nGoal: answered in less"
        f" than {GOAL_MS:.0f} ms, memory flat (within {FLAT_BYTES / 1e6:.0f} MB). {verdict}"
    )


async def _mark(server: Running, count: int) -> None:
    """Purge so many tags that no entry has."""
    (caller,) = await callers([server], 1)
    for number in range(count):
        heard = await caller.ask(purge_request(server, f"nobody-{number}"))
        assert heard.status == 200, bytes(heard.body)
    caller.hang_up()


def _read_turn(server: Running) -> tuple[float, float]:
    """CPU µs of a hit, and hits in a second."""
    spent = cpu_seconds(server.pid)
    load = run(server, Requests.SPELLED, seconds=READ_SECONDS)
    spent = cpu_seconds(server.pid) - spent
    return spent / load.requests * 1e6, load.requests / load.seconds


def reads(turns: int, patience: Patience) -> str:
    """The table of what marks add to a hit."""
    came: dict[int, list[tuple[float, float]]] = {count: [] for count in MARKS}
    with ExitStack() as stack:
        behind = stack.enter_context(upstream())
        servers = {count: stack.enter_context(proxy(behind, settings("memory"))) for count in MARKS}
        for count, server in servers.items():
            _run(_mark(server, count))
            run(server, Requests.SPELLED, seconds=1)
        for _ in range(turns):
            for count, server in servers.items():
                turn = partial(_read_turn, server)
                came[count].append(quietly(turn, [server, behind], patience))
    head = ["marks of purges", "CPU µs of a hit", "/ none", "hits/s"]
    rows = []
    for count, figures in came.items():
        pairs = zip(figures, came[0], strict=True)
        ratio = "" if count == 0 else middle([mine[0] / none[0] for mine, none in pairs], 2)
        cpu, rates = [each[0] for each in figures], [each[1] for each in figures]
        rows.append([f"{count:,}", middle(cpu), ratio, middle(rates)])
    return table(head, rows)


def _run(turn: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--patience", type=float, default=200.0, help="seconds, in all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    patience = Patience(time.monotonic() + given.patience)
    command = f"python -m bench.bench_purge --turns {given.turns}"
    about = described("aiohttp", "uvicorn", "uvloop")
    parts = []
    if "purge" in given.only:
        parts.append(purge_report(purges(given.turns, given.entries, patience), given.entries))
    if "reads" in given.only:
        parts.append(reads(given.turns, patience))
    first = f"`{command}`: {about} Median (range). {patience}"
    publish("purge", "\n\n".join([first, *parts]), write=given.write)


if __name__ == "__main__":
    main()
