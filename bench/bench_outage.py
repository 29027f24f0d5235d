"""When the upstream is gone: is everything that is known answered, and how soon?

    python -m bench.bench_outage [--turns 3] [--keys 200] [--rate 500] [--seconds 8]
        [--patience 120] [--write]

Answers to so many questions are stored, for a second, with `stale_if_error_seconds`, and grow
stale. Then the upstream goes away in one of two ways: its process ends, so that connections are
refused, or it is stopped (SIGSTOP), so that connections are accepted and nothing comes: the proxy
finds out by its time-outs alone (2 seconds to the first byte here). Questions that nobody has asked
before open the circuit. From then on the known ones are asked, by 50 connections, at a steady rate,
for some seconds: the circuit lets a probe through now and then, which fails at once or hangs.
Beside that stands what the same load takes where nothing is wrong: fresh hits.

Each answer is held against the one that was stored, and timed from the moment at which its request
was due to its last byte, so that one that is late makes those behind it on its connection late too.
A turn in which others had more than a tenth of a core was disturbed, and is taken again, as long as
the patience (seconds, in all) lasts.
"""

import argparse
import asyncio
import itertools
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from bench.coalesce_base import at_share, check_all_good, hang_up, run_turn, verdict
from bench.crowd import Caller, all_at_once, callers, request
from bench.goals import row
from bench.machine import LOAD_CORE, cpu_seconds, described, pin
from bench.metrics import samples
from bench.processes import Running, paced, proxy
from bench.quiet import Patience, quietly
from bench.report import middle, publish, publish_goals, table

NAME = "bench_outage"
CONNECTIONS = 50
GOAL_SECONDS = 0.05
TTL_SECONDS = 1
FIRST_BYTE_SECONDS = 2
# All calls of the last 10 seconds count, also the good ones before.
_LONGEST_TO_OPEN_SECONDS = 30.0
_THERE = "there: hits, for comparison"
_WAYS = {
    _THERE: None,
    "gone: connections refused": signal.SIGKILL,
    "gone: accepted, then silent": signal.SIGSTOP,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One outage; seconds: until the circuit was open, and of each known answer, ordered."""

    opened: float
    known: int
    came: Sequence[float]
    probes: float
    cpu_us: float

    @property
    def share(self) -> float:
        """Of what was known and asked for, what was answered as it was stored."""
        return len(self.came) / self.known


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request, `after` so many seconds, and the answer that is right."""

    sent: bytes
    stored: bytes
    x_cache: str
    after: float


def settings(behind: Running, ttl_seconds: int) -> dict[str, Any]:
    """A proxy whose answers may serve for an hour, and are fresh for so long."""
    rule = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": ttl_seconds}
    timeouts = {"first_byte_seconds": FIRST_BYTE_SECONDS}
    return {
        "cache_settings": {"rules": [rule | {"stale_if_error_seconds": 3600}]},
        "upstreams": {"bench": {"base_url": f"{behind.url}/v1", "timeouts": timeouts}},
        "store": {"tiers": ["memory"]},
    }


def question(topic: str) -> bytes:
    """A small chat."""
    return orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": topic}]})


async def outage(
    behind: Running, server: Running, way: signal.Signals | None, given: argparse.Namespace
) -> Turn:
    """Fill, wait, end the upstream, and ask."""
    crowd = await callers([server], CONNECTIONS)
    known = [request(server, question(f"known {number}")) for number in range(given.keys)]
    stored = []
    for at in range(0, given.keys, CONNECTIONS):
        part = known[at : at + CONNECTIONS]
        stored += await all_at_once(crowd[: len(part)], part)
    check_all_good(stored)
    opened = 0.0
    if way is not None:
        await asyncio.sleep(TTL_SECONDS + 0.1)
        os.kill(behind.pid, way)
        opened = await _until_open(server, crowd)
    x_cache = "HIT" if way is None else "STALE"
    asks = [
        _Ask(known[at % given.keys], bytes(stored[at % given.keys].body), x_cache, at / given.rate)
        for at in range(given.rate * given.seconds)
    ]
    probes, spent = await asyncio.to_thread(attempts, server), cpu_seconds(server.pid)
    begins = time.monotonic() + 0.1
    lines = [_ask(caller, asks[place::CONNECTIONS], begins) for place, caller in enumerate(crowd)]
    came = sorted(second for line in await asyncio.gather(*lines) for second in line)
    spent = cpu_seconds(server.pid) - spent
    probes = await asyncio.to_thread(attempts, server) - probes
    await hang_up(crowd)
    return Turn(opened, len(asks), came, probes, spent / len(asks) * 1e6)


async def _until_open(server: Running, crowd: Sequence[Caller]) -> float:
    """Ask what nobody has asked before, all at once, until the circuit is open; seconds."""
    began, numbers = time.monotonic(), itertools.count()
    while "closed" in await asyncio.to_thread(circuit, server):
        unknown = [request(server, question(f"unknown {next(numbers)}")) for _ in crowd]
        await all_at_once(crowd, unknown)
        assert time.monotonic() - began < _LONGEST_TO_OPEN_SECONDS, "the circuit did not open"
    return time.monotonic() - began


async def _ask(caller: Caller, asks: Sequence[_Ask], begins: float) -> list[float]:
    """Ask one after the other, each when it is due; the seconds of those that were right."""
    came = []
    for ask in asks:
        due = begins + ask.after
        await asyncio.sleep(due - time.monotonic())
        heard = await caller.ask(ask.sent)
        if (heard.status, heard.x_cache, bytes(heard.body)) == (200, ask.x_cache, ask.stored):
            came.append(heard.ended - due)
    return came


def circuit(server: Running) -> set[str]:
    """The states that the circuit is in."""
    name = "magic_proxy_upstream_circuit_state"
    return {each.labels["state"] for each in samples(server) if each.name == name and each.value}


def attempts(server: Running) -> float:
    """How often the upstream was tried and known to have failed."""
    name = "magic_proxy_upstream_attempts_total"
    return sum(each.value for each in samples(server) if each.name == name)


def turn(way: signal.Signals | None, given: argparse.Namespace, patience: Patience) -> Turn:
    """One outage of a proxy and an upstream of its own."""

    def once() -> Turn:
        ttl_seconds = 600 if way is None else TTL_SECONDS
        with paced() as behind, proxy(behind, settings(behind, ttl_seconds)) as server:
            try:
                return run_turn(outage(behind, server, way, given))
            finally:
                os.kill(behind.pid, signal.SIGCONT)

    return quietly(once, [], patience)


def report(came: Mapping[str, Sequence[Turn]]) -> str:
    """The table, and whether the goal is reached."""
    head = ["the upstream", "circuit open after, s", "answered", "p50 ms", "p99 ms", "slowest ms"]
    head += ["probes meanwhile", "CPU µs each"]
    rows = []
    for name, turns in came.items():
        shares = [[1000 * at_share(each.came, share) for each in turns] for share in (0.5, 0.99, 1)]
        rows.append(
            [
                name,
                middle([each.opened for each in turns], 2) if name != _THERE else "",
                f"{min(each.share for each in turns):.2%}",
                *(middle(share, 1) for share in shares),
                middle([each.probes for each in turns]) if name != _THERE else "",
                middle([each.cpu_us for each in turns]),
            ]
        )
    reached = all(_is_reached(turns) for name, turns in came.items() if name != _THERE)
    goal = f"Goal: 100 % of what is known, each within {1000 * GOAL_SECONDS:.0f} ms."
    return f"{table(head, rows)}\n\n{goal} {verdict(reached=reached)}"


def _is_reached(turns: Sequence[Turn]) -> bool:
    return all(each.share == 1.0 and each.came[-1] <= GOAL_SECONDS for each in turns)


def goals(came: Mapping[str, Sequence[Turn]]) -> list[list[str]]:
    """A row for each way in which the upstream is gone."""
    wanted = f"all answered, each ≤ {1000 * GOAL_SECONDS:.0f} ms"
    return [
        row(
            f"known and stale, upstream {name}",
            wanted,
            f"{min(each.share for each in turns):.2%}, slowest"
            f" {middle([1000 * each.came[-1] for each in turns], 1)}",
            NAME,
            reached=_is_reached(turns),
        )
        for name, turns in came.items()
        if name != _THERE
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--rate", type=int, default=500, help="requests per second")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--patience", type=float, default=120.0, help="seconds, in all")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    patience = Patience(time.monotonic() + given.patience)
    came: dict[str, list[Turn]] = {name: [] for name in _WAYS}
    for _ in range(given.turns):
        for name, way in _WAYS.items():
            came[name].append(turn(way, given, patience))
    command = f"python -m bench.{NAME} --turns {given.turns}"
    asked = f"{given.keys} known, {given.rate} requests/s for {given.seconds} s."
    about = f"`{command}`: {described('uvicorn', 'uvloop')} {asked} Median (range). {patience}"
    publish("outage", f"{about}\n\n{report(came)}", write=given.write)
    publish_goals(goals(came), write=given.write)


if __name__ == "__main__":
    main()
