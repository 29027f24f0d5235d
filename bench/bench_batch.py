"""Batches of embeddings: what an answer from hits costs, what goes upstream, and who waits for it.

    python -m bench.bench_batch [--turns 7] [--only hits partial loop] [--write]

- hits: 1,000 inputs of 200 characters, all of them hits, from memory, through `magic-proxy serve`,
  for vectors of two lengths, in both encodings, and for one that is asked for in the encoding that
  it is not stored in. Time is from the write of the request to the last byte, CPU the proxy's own,
  by `/proc/PID/stat`; a figure is per MB of answer. `plain` stores entries without compression.
- partial: of 1,000 inputs, 900 are hits. What goes upstream is told by the upstream.
- loop: a small request, a hit, again and again: alone, and while others ask for batches of 1,000
  hits, and of 1,000 misses. How long it waits shows whether batches hold the others up.
"""

import argparse
import http.client
import itertools
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from bench.machine import LOAD_CORE, cpu_seconds, described, pin
from bench.processes import HOST, Running, get, post, proxy, upstream
from bench.report import middle, publish, table
from proxy.standin import StandIn, start_standin

ITEMS = 1_000
KNOWN = 900
_TEXT = "Of rivers, their sources and their ends. " * 5
GOAL_MS_PER_MB = 3.0
PARTS = ("hits", "partial", "loop")
PATH = "/v1/embeddings"
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
_MEMORY = {"store": {"tiers": "memory", "memory": {"max_bytes": "1GiB"}}}
_PLAIN = {"store": _MEMORY["store"] | {"compress_above_bytes": 16 * 1024 * 1024}}
# CPU is told in steps of 10 ms: several answers are one figure.
_ROUNDS = 5
_MEGA = 1e6
_fresh = itertools.count(time.time_ns())


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of batch: how it is stored, and how it is asked for."""

    title: str
    dimensions: int
    stored: str
    asked: str
    settings: Mapping[str, Any] = field(default_factory=lambda: _MEMORY)


KINDS = [
    Kind("1,536 numbers, float", 1536, "float", "float"),
    Kind("1,536 numbers, base64", 1536, "base64", "base64"),
    Kind("1,536 numbers, base64, plain", 1536, "base64", "base64", _PLAIN),
    Kind("256 numbers, float", 256, "float", "float"),
    Kind("256 numbers, base64", 256, "base64", "base64"),
    Kind("256 numbers, float asked in base64", 256, "float", "base64"),
]


@dataclass(slots=True)
class Cost:
    """What answers of one kind took; per MB, in ms."""

    megabytes: float = 0.0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def inputs(count: int = ITEMS) -> list[str]:
    """Texts that nobody has sent before."""
    return [f"{next(_fresh)} {_TEXT}" for _ in range(count)]


def request(texts: Sequence[str], kind: Kind) -> bytes:
    """The body of one batch."""
    members = {"encoding_format": kind.asked, "dimensions": kind.dimensions}
    return orjson.dumps({"model": "text-embedding-3-small", "input": texts} | members)


def ask(server: Running, body: bytes, outcome: str) -> int:
    """The answer's length; its outcome has to be the one that is expected."""
    headers, content = post(server, PATH, body, HEADERS)
    assert headers["x-cache"] == outcome, headers
    return len(content)


def settled(server: Running) -> None:
    """Wait until nothing is on its way into the store."""
    while b"magic_proxy_write_queue_entries 0.0" not in get(server, "/metrics"):
        time.sleep(0.05)


def hits(turns: int) -> dict[str, Cost]:
    """The cost of each kind; the kinds take turns."""
    costs = {kind.title: Cost() for kind in KINDS}
    with _standin() as (_, answers):
        for kind in KINDS:
            with proxy(answers, kind.settings) as server:
                _measure(server, kind, costs[kind.title], turns)
    return costs


def _measure(server: Running, kind: Kind, cost: Cost, turns: int) -> None:
    texts = inputs()
    stored = Kind(kind.title, kind.dimensions, kind.stored, kind.stored)
    ask(server, request(texts, stored), "MISS")
    settled(server)
    ask(server, request(texts, kind), "HIT")
    for turn in range(turns):
        # Never the same bytes again: a repeat would be answered without looking up anything.
        cuts = range(turn * _ROUNDS + 1, (turn + 1) * _ROUNDS + 1)
        bodies = [request([*texts[cut:], *texts[:cut]], kind) for cut in cuts]
        spent, began = cpu_seconds(server.pid), time.perf_counter()
        length = sum(ask(server, body, "HIT") for body in bodies)
        cost.wall.append((time.perf_counter() - began) * 1000 / (length / _MEGA))
        cost.cpu.append((cpu_seconds(server.pid) - spent) * 1000 / (length / _MEGA))
        cost.megabytes = length / _MEGA / _ROUNDS


def partial(turns: int) -> list[list[int]]:
    """How many inputs each upstream request had, in each turn."""
    kind = KINDS[1]
    sent: list[list[int]] = []
    with _standin() as (app, answers), proxy(answers, _MEMORY) as server:
        for _ in range(turns):
            texts = inputs()
            ask(server, request(texts[:KNOWN], kind), "MISS")
            app.requests.clear()
            ask(server, request(texts[::-1], kind), "MISS")
            sent.append([len(each.json()["input"]) for each in app.requests])
    return sent


def loop(turns: int) -> dict[str, list[float]]:
    """Waits of a small request in ms, by what else is asked."""
    kind = KINDS[1]
    waits: dict[str, list[float]] = {"nothing": [], "hits": [], "misses": []}
    with upstream() as answers, proxy(answers, _MEMORY) as server:
        texts = inputs()
        ask(server, request(texts, kind), "MISS")
        settled(server)
        for turn in range(turns):
            with _watched(server, waits["nothing"]):
                time.sleep(0.5)
            with _watched(server, waits["hits"]):
                for round_ in range(_ROUNDS):
                    cut = turn * _ROUNDS + round_ + 1
                    ask(server, request([*texts[cut:], *texts[:cut]], kind), "HIT")
            with _watched(server, waits["misses"]):
                ask(server, request(inputs(), kind), "MISS")
                settled(server)
    return waits


@contextmanager
def _watched(server: Running, waits: list[float]) -> Iterator[None]:
    """Ask for something small all the time; `waits` gets how long each answer took, in ms."""
    small = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    over = threading.Event()

    def watch() -> None:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
        while not over.is_set():
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", small, HEADERS)
            connection.getresponse().read()
            waits.append((time.perf_counter() - began) * 1000)
        connection.close()

    post(server, "/v1/chat/completions", small, HEADERS)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@contextmanager
def _standin() -> Iterator[tuple[StandIn, Running]]:
    """The stand-in in this process, so that it can be asked what it saw."""
    app = StandIn()
    with start_standin(app) as running:
        yield app, Running(0, running.port)


def hits_report(costs: Mapping[str, Cost]) -> str:
    """The table of hits."""
    rows = [
        [title, f"{cost.megabytes:.1f}", middle(cost.wall, 1), middle(cost.cpu, 1)]
        for title, cost in costs.items()
    ]
    head = ["1,000 hits", "MB", "ms per MB", "CPU ms per MB"]
    reached = [t for t, cost in costs.items() if statistics.median(cost.cpu) < GOAL_MS_PER_MB]
    verdict = ", ".join(reached) or "none"
    return f"{table(head, rows)}\n\nUnder {GOAL_MS_PER_MB:.0f} ms of CPU per MB: {verdict}."


def partial_report(sent: Sequence[Sequence[int]]) -> str:
    """What went upstream, and whether it was right each time."""
    right = all(list(each) == [ITEMS - KNOWN] for each in sent)
    told = "one request with exactly the missing ones" if right else f"**not right**: {sent}"
    return f"Of {ITEMS:,} inputs with {KNOWN} hits, {len(sent)} times: {told} went upstream."


def loop_report(waits: Mapping[str, Sequence[float]]) -> str:
    """The table of waits."""
    rows = [
        [name, f"{len(each):,}", f"{statistics.median(each):.2f}", f"{_share(each):.1f}",
         f"{max(each):.1f}"]
        for name, each in waits.items()
    ]  # fmt: skip
    head = ["a small hit, beside batches of", "answers", "median ms", "99 % within", "slowest ms"]
    return table(head, rows)


def _share(waits: Sequence[float]) -> float:
    return sorted(waits)[int(len(waits) * 0.99)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    command = f"python -m bench.bench_batch --turns {given.turns}"
    parts = [f"`{command}`: {described('orjson', 'zstandard', 'uvicorn')} Median (range)."]
    if "hits" in given.only:
        parts.append(hits_report(hits(given.turns)))
    if "partial" in given.only:
        parts.append(partial_report(partial(given.turns)))
    if "loop" in given.only:
        parts.append(loop_report(loop(given.turns)))
    publish("batch", "\n\n".join(parts), write=given.write)


if __name__ == "__main__":
    main()
