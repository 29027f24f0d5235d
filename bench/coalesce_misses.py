"""What coalescing adds to a miss that nobody shares: `off`, `local` and `shared` in turns."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.coalesce_base import rules
from bench.load import Requests, run
from bench.machine import cpu_seconds
from bench.processes import Running, proxy, redis, upstream
from bench.quiet import Patience, quietly
from bench.report import middle, table

MISS_SECONDS = 3


@dataclass(frozen=True, slots=True)
class MissTurn:
    """CPU µs for each miss, of the proxy and of the Redis behind it, and misses in a second."""

    cpu_us: float
    store_cpu_us: float
    rate: float


@dataclass(slots=True)
class MissSide:
    """A proxy with one way of coalescing, and what stands behind it."""

    server: Running
    behind: Running
    store: Running | None
    turns: list[MissTurn] = field(default_factory=list)
    _asked: int = 0

    @property
    def all(self) -> list[Running]:
        return [self.server, self.behind, *([self.store] if self.store else [])]

    def turn(self, seconds: int) -> MissTurn:
        """Requests that nobody has sent before."""
        spent, behind = cpu_seconds(self.server.pid), self._store_seconds()
        came = run(self.server, Requests.DISTINCT, seconds=seconds, first=self._asked)
        self._asked += came.requests + 1_000
        return MissTurn(
            cpu_us=(cpu_seconds(self.server.pid) - spent) / came.requests * 1e6,
            store_cpu_us=(self._store_seconds() - behind) / came.requests * 1e6,
            rate=came.requests / came.seconds,
        )

    def _store_seconds(self) -> float:
        return cpu_seconds(self.store.pid) if self.store else 0.0


@contextmanager
def miss_sides() -> Iterator[dict[str, dict[str, MissSide]]]:
    """For each store, a proxy for each way."""
    with ExitStack() as stack:
        behind = stack.enter_context(upstream())
        sides: dict[str, dict[str, MissSide]] = {"disk": {}, "Redis": {}}
        for way in ("off", "local", "shared"):
            given: dict[str, Any] = {"cache_settings": rules(way)}
            sides["disk"][way] = MissSide(stack.enter_context(proxy(behind, given)), behind, None)
            store = stack.enter_context(redis())
            given |= {"store": {"redis": {"url": f"redis://127.0.0.1:{store.port}/0"}}}
            sides["Redis"][way] = MissSide(stack.enter_context(proxy(behind, given)), behind, store)
        yield sides


def misses(turns: int, patience: Patience) -> str:
    """The table of what each way costs."""
    with miss_sides() as stores:
        sides = [side for ways in stores.values() for side in ways.values()]
        for side in sides:
            side.turn(1)
        for _ in range(turns):
            for side in sides:
                side.turns.append(quietly(partial(side.turn, MISS_SECONDS), side.all, patience))
    head = ["store", "coalesce", "CPU µs", "/ off", "Redis CPU µs", "misses/s"]
    rows = []
    for store, ways in stores.items():
        for way, side in ways.items():
            pairs = zip(side.turns, ways["off"].turns, strict=True)
            ratios = [mine.cpu_us / off.cpu_us for mine, off in pairs]
            behind = middle([turn.store_cpu_us for turn in side.turns]) if side.store else ""
            rows.append(
                [
                    store,
                    way,
                    middle([turn.cpu_us for turn in side.turns]),
                    "" if way == "off" else middle(ratios, 2),
                    behind,
                    middle([turn.rate for turn in side.turns]),
                ]
            )
    return table(head, rows)
