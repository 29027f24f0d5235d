"""Whole servers side by side: what an answer costs, from a plain FastAPI route to a miss.

    python -m bench.bench_hit [--turns 5] [--seconds 2] [--patience 300] [--only NAME ...] [--write]

Each server is a process of its own, pinned to one core; wrk, the stand-in upstream and Redis have
the other one. The sides take turns (A B C … A B C …), 32 connections ask for 2 KB of chat and get
1.6 KB. CPU is user and system time of the server's process by `/proc/PID/stat`: the figure to
trust, as rates swing with whatever else the machine does. With 32 connections, one of the two cores
has no rest: a run in which neither was ours for nine tenths of the time was disturbed, and is taken
again, as long as the patience (seconds, in all) lasts. A ratio is one of the same turn.

That each side measures what it says is checked by the proxy's own `/metrics`: how many hits and
misses there were, and whether hits came by the hot path (which counts no duration).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from bench.load import CONNECTIONS, Requests, Run, run
from bench.machine import (
    LOAD_CORE,
    SERVER_CORE,
    cpu_seconds,
    described,
    pin,
    resident_bytes,
)
from bench.processes import Running, get, peer, post, proxy, redis, upstream
from bench.report import middle, publish, table

YARDSTICK = "fastapi"
GOAL_NAME = "hot"
GOAL_RATIO = 3.0
KEYS = 512
CHAT = "/v1/chat/completions"
# Above this share of other outcomes a side does not measure what it says. There are some on a busy
# machine: a look-up in Redis that takes 50 ms is a miss.
STRAY_SHARE = 0.01
# The hot path counts no duration; the ordinary path takes tens of microseconds.
HOT_SECONDS = 1e-6
# Below this share of the core that is the limit, a run was disturbed.
QUIET_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Kind:
    """What a side is: which requests it gets, and how it should answer them."""

    title: str
    requests: Requests
    outcome: str | None = "hit"
    hot: bool = False
    count: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


_MEMORY = {"store": "memory"}
_NO_HOT = {"server": {"hot_path_bytes": 0}}
KINDS: dict[str, Kind] = {
    YARDSTICK: Kind("FastAPI route giving the same bytes", Requests.SAME, None),
    GOAL_NAME: Kind("hit, repeated byte for byte", Requests.SAME, hot=True, settings=_MEMORY),
    "hot-logged": Kind(
        "the same, with the request log",
        Requests.SAME,
        hot=True,
        settings=_MEMORY | {"server": {"access_log": True}},
    ),
    "warm": Kind("hit, other bytes but the same key", Requests.SPELLED, settings=_MEMORY),
    "ordinary": Kind(
        "hit, repeated, hot path switched off", Requests.SAME, settings=_MEMORY | _NO_HOT
    ),
    "asgi": Kind("ASGI application giving the same bytes", Requests.SAME, None),
    "disk": Kind(
        "hit from disk, no memory tier", Requests.CYCLED, count=KEYS, settings={"store": "disk"}
    ),
    "redis": Kind("hit from Redis, no memory tier", Requests.CYCLED, count=KEYS),
    "miss": Kind("miss, instant upstream", Requests.DISTINCT, "miss", settings=_MEMORY),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one side; shares of a core that the server had, and those who ask and serve it."""

    rate: float
    cpu_us: float
    server_share: float
    load_share: float
    run: Run

    @property
    def ours(self) -> float:
        """The share that we had of the core that was the limit."""
        return max(self.server_share, self.load_share)


@dataclass(frozen=True, slots=True)
class Side:
    """A running server, and what came of its turns."""

    kind: Kind
    server: Running
    behind: Sequence[Running] = ()
    turns: list[Turn] = field(default_factory=list)

    def turn(self, number: int, seconds: int) -> Turn:
        """Ask the server for some time, and check what it answered."""
        before, spent, behind = _counted(self), cpu_seconds(self.server.pid), self._behind()
        came = self._run(number, seconds)
        spent, behind = cpu_seconds(self.server.pid) - spent, self._behind() - behind
        _check(self, came, before, _counted(self))
        return Turn(
            rate=came.requests / came.seconds,
            cpu_us=spent / came.requests * 1e6,
            server_share=spent / came.seconds,
            load_share=(came.load_cpu_seconds + behind) / came.seconds,
            run=came,
        )

    def _behind(self) -> float:
        return sum(cpu_seconds(each.pid) for each in self.behind)

    def warm_up(self, seconds: int) -> None:
        """Fill caches and tables, and let what is to be written be written."""
        self._run(0, seconds)
        if self.kind.outcome is not None:
            while _metrics(self.server).get("magic_proxy_write_queue_entries", 0.0) > 0:
                time.sleep(0.05)

    def _run(self, number: int, seconds: int) -> Run:
        distinct = self.kind.requests is Requests.DISTINCT
        first = number * 100_000 if distinct else 0
        return run(
            self.server, self.kind.requests, seconds=seconds, first=first, count=self.kind.count
        )


@dataclass(frozen=True, slots=True)
class _Counted:
    """The proxy's own count of its answers; `seconds` is what the wanted ones took in all."""

    wanted: float = 0.0
    others: float = 0.0
    seconds: float = 0.0


def _metrics(server: Running) -> dict[str, float]:
    """The samples without labels."""
    text = get(server, "/metrics").decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def _counted(side: Side) -> _Counted:
    if side.kind.outcome is None:
        return _Counted()
    wanted = others = seconds = 0.0
    for family in text_string_to_metric_families(get(side.server, "/metrics").decode()):
        for sample in family.samples:
            is_wanted = sample.labels.get("outcome") == side.kind.outcome
            if sample.name == "magic_proxy_requests_total":
                wanted += sample.value * is_wanted
                others += sample.value * (not is_wanted)
            if sample.name == "magic_proxy_request_seconds_sum" and is_wanted:
                seconds += sample.value
    return _Counted(wanted, others, seconds)


def _check(side: Side, came: Run, before: _Counted, after: _Counted) -> None:
    """Raises AssertionError where the answers were not what the side is about."""
    if side.kind.outcome is None:
        return
    wanted, others = after.wanted - before.wanted, after.others - before.others
    # When wrk stops, each connection may have a request under way that it no longer counts.
    assert came.requests <= wanted + others <= came.requests + 2 * CONNECTIONS, side.kind.title
    assert others <= STRAY_SHARE * wanted, f"{side.kind.title}: {others:.0f} of {wanted:.0f} stray"
    each = (after.seconds - before.seconds) / wanted
    assert (each < HOT_SECONDS) == side.kind.hot, f"{side.kind.title}: {each} s each"


def _quiet_turn(side: Side, number: int, seconds: int, patience: float) -> Turn:
    """A turn that nobody disturbed; past the time `patience`, the one least disturbed."""
    taken = [side.turn(number, seconds)]
    while taken[-1].ours < QUIET_SHARE and time.monotonic() < patience:
        number += 1_000  # requests that are to be new stay new
        taken.append(side.turn(number, seconds))
    return max(taken, key=lambda turn: turn.ours)


@contextmanager
def _sides(names: Sequence[str]) -> Iterator[dict[str, Side]]:
    """The servers of all sides, each on the measured core."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        behind = stack.enter_context(upstream())
        answer = Path(directory) / "answer.json"
        answer.write_bytes(_answer(behind))
        sides = {}
        needed = [behind]
        for name in names:
            kind = KINDS[name]
            if kind.outcome is None:
                server = stack.enter_context(peer(name, answer))
            else:
                settings = dict(kind.settings)
                if name == "redis":
                    store = stack.enter_context(redis())
                    needed.append(store)
                    url = f"redis://127.0.0.1:{store.port}/0"
                    settings["store"] = {"tiers": "redis", "redis": {"url": url}}
                server = stack.enter_context(proxy(behind, settings))
            sides[name] = Side(kind, server, needed)
        yield sides


def _answer(behind: Running) -> bytes:
    """What the upstream says, for the peers to say as well."""
    body = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'
    return post(behind, CHAT, body, {"content-type": "application/json"})[1]


def _row(side: Side, yardstick: Side | None) -> list[str]:
    turns = side.turns
    ratio = ""
    if yardstick is not None and yardstick is not side:
        ratio = middle(_ratios(side, yardstick), 2)
    return [
        side.kind.title,
        middle([turn.rate for turn in turns]),
        middle([turn.cpu_us for turn in turns]),
        ratio,
        f"{statistics.median(turn.run.p50_us for turn in turns) / 1000:,.2f}",
        f"{statistics.median(turn.run.p99_us for turn in turns) / 1000:,.2f}",
        f"{statistics.median(turn.server_share for turn in turns):.0%}",
        f"{resident_bytes(side.server.pid) / 1e6:.0f}",
    ]


def _ratios(side: Side, yardstick: Side) -> list[float]:
    return [a.rate / b.rate for a, b in zip(side.turns, yardstick.turns, strict=True)]


def _cpu_ratios(sides: Mapping[str, Side]) -> list[float]:
    pairs = zip(sides[YARDSTICK].turns, sides[GOAL_NAME].turns, strict=True)
    return [theirs.cpu_us / ours.cpu_us for theirs, ours in pairs]


def _report(sides: Mapping[str, Side], command: str) -> str:
    yardstick = sides.get(YARDSTICK)
    head = [
        "side",
        "answers/s",
        "CPU µs",
        "rate / FastAPI's",
        "p50 ms",
        "p99 ms",
        "of its core",
        "RSS MB",
    ]
    turns = [turn for side in sides.values() for turn in side.turns]
    load_us = [turn.run.load_cpu_seconds / turn.run.requests * 1e6 for turn in turns]
    disturbed = sum(turn.ours < QUIET_SHARE for turn in turns)
    lines = [
        f"`{command}`: "
        + described("fastapi", "starlette", "uvicorn", "uvloop", "httptools")
        + f" {len(next(iter(sides.values())).turns)} turns; median (range). wrk itself took"
        f" {middle(load_us)} µs of its core for each request. {disturbed} of {len(turns)} runs were"
        " disturbed by other processes.",
        "",
        table(head, [_row(side, yardstick) for side in sides.values()]),
    ]
    if yardstick is not None and GOAL_NAME in sides:
        ratios = _ratios(sides[GOAL_NAME], yardstick)
        reached = statistics.median(ratios) >= GOAL_RATIO
        lines += [
            "",
            f"Goal: a hit from memory at {GOAL_RATIO:g} times the FastAPI route's rate or more."
            + (" **Reached**: " if reached else " **Missed**: ")
            + f"{middle(ratios, 2)} times; by CPU time, {middle(_cpu_ratios(sides), 2)} times.",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn of each side")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds, for quiet runs")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    if SERVER_CORE == LOAD_CORE:
        print("Only one core here: server and load share it, so rates say little.")
    command = f"python -m bench.bench_hit --turns {given.turns} --seconds {given.seconds}"
    with _sides(given.only) as sides:
        for side in sides.values():
            side.warm_up(given.seconds)
        patience = time.monotonic() + given.patience
        for number in range(1, given.turns + 1):
            for side in sides.values():
                side.turns.append(_quiet_turn(side, number, given.seconds, patience))
        publish("hit", _report(sides, command), write=given.write)


if __name__ == "__main__":
    main()
