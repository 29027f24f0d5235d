"""One side of `bench_hit`: a running server, its turns, and the check that it did what it says."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from bench.goals import Figures
from bench.hit_kinds import KEYS, Kind
from bench.load import Requests, Run, run
from bench.machine import cpu_seconds, family, resident_bytes
from bench.metrics import samples
from bench.processes import Running, get, post
from bench.question import HEADERS

# Above this share of other outcomes a side does not measure what it says. There are some on a busy
# machine: a look-up in Redis that takes 50 ms is a miss.
STRAY_SHARE = 0.01
# A request that is known by its bytes counts no duration; any other takes tens of microseconds. Of
# many different ones some are not remembered: the table of what came before is small.
HOT_SECONDS = 1e-5
SETTLED_SHARE, SETTLE_SECONDS, LOOK_SECONDS = 0.1, 5.0, 0.1


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted so far: by the upstream, and by the proxy of its own answers.

    `seconds` is what the wanted answers took in all.
    """

    calls: int
    events: int
    wanted: float = 0.0
    others: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one side; shares of a core that the server had, and those who ask and serve it."""

    figures: Figures
    server_share: float
    load_share: float
    run: Run


@dataclass(slots=True)
class Side:
    """A running server, the upstream, and all processes that stand behind it."""

    kind: Kind
    server: Running
    upstream: Running
    behind: Sequence[Running]
    turns: list[Turn] = field(default_factory=list)
    asked: int = 0  # of requests that differ

    @property
    def processes(self) -> list[Running]:
        return [self.server, *self.behind]

    def turn(self, seconds: int) -> Turn:
        """Ask the server for some time. Raises AssertionError if it did not what the side says."""
        before, spent, behind = self._count(), _spent([self.server]), _spent(self.behind)
        came = self._run(max(seconds, self.kind.least_seconds))
        spent, behind = _spent([self.server]) - spent, _spent(self.behind) - behind
        settle(self.server)
        after = self._count()
        self._check(came, before, after)
        events = after.events - before.events
        return Turn(
            Figures(
                rate=came.requests / came.seconds,
                cpu_us=spent / came.requests * 1e6,
                p50_us=came.p50_us,
                p99_us=came.p99_us,
                event_us=spent / events * 1e6 if events else None,
            ),
            server_share=spent / came.seconds,
            load_share=(came.load_cpu_seconds + behind) / came.seconds,
            run=came,
        )

    def warm_up(self, seconds: int) -> None:
        """Fill caches and tables, and let what is to be written be written."""
        seconds = max(seconds, self.kind.least_seconds)
        self._ask_once()  # so that the cache is there when many ask at once
        self._run(seconds)
        # More than these are stored beforehand, in another way.
        while self.kind.requests is Requests.CYCLED and self.asked < min(self.kind.count, KEYS):
            self._run(seconds)
        settle(self.server)

    def median(self, of: Callable[[Turn], float]) -> float:
        return statistics.median(of(turn) for turn in self.turns)

    def resident_bytes(self) -> int:
        """Of all its processes; what they share counts for each."""
        return sum(resident_bytes(pid) for pid in family(self.server.pid))

    def _run(self, seconds: int) -> Run:
        kind = self.kind
        came = run(
            self.server,
            kind.requests,
            seconds=seconds,
            first=self.asked,
            count=kind.count,
            question=kind.question,
            connections=kind.connections,
        )
        if kind.requests in {Requests.DISTINCT, Requests.CYCLED}:
            self.asked += came.requests + 2 * kind.connections  # some were under way at the end
        return came

    def _ask_once(self) -> Mapping[str, str]:
        """The headers of an answer to what is asked, or what would be asked next."""
        question = self.kind.question
        return post(self.server, question.path, question.body(self.asked), HEADERS)[0]

    def _count(self) -> Counted:
        told = orjson.loads(get(self.upstream, "/counts"))
        counted = Counted(told["requests"], told["events"])
        if self.kind.outcome is None:
            return counted
        wanted = others = seconds = 0.0
        for sample in samples(self.server):
            is_wanted = sample.labels.get("outcome") == self.kind.outcome
            if sample.name == "magic_proxy_requests_total":
                wanted += sample.value * is_wanted
                others += sample.value * (not is_wanted)
            if sample.name == "magic_proxy_request_seconds_sum" and is_wanted:
                seconds += sample.value
        return Counted(counted.calls, counted.events, wanted, others, seconds)

    def _check(self, came: Run, before: Counted, after: Counted) -> None:
        """Raises AssertionError where the answers were not what the side is about."""
        kind, strays = self.kind, STRAY_SHARE * came.requests
        calls = after.calls - before.calls
        if kind.is_cached:
            assert calls <= strays, f"{calls} of {came.requests} went upstream"
        if kind.hit_header is not None:
            name, value = kind.hit_header
            told = self._ask_once().get(name)
            assert told is not None, f"no {name}"
            assert told.startswith(value), f"{name} is {told}"
        if kind.outcome is None:
            return
        wanted, others = after.wanted - before.wanted, after.others - before.others
        # When wrk stops, each connection may have a request under way that it no longer counts, and
        # that the proxy counts as an error: its client has gone.
        strays += kind.connections
        assert others <= strays, f"{others:.0f} others, {wanted:.0f} of outcome {kind.outcome}"
        counted = wanted + others
        assert came.requests <= counted <= came.requests + 2 * kind.connections, f"{counted:.0f}"
        each = (after.seconds - before.seconds) / wanted
        assert kind.is_hot == (each < HOT_SECONDS), f"{each * 1e6:.1f} µs each, by its own count"


def settle(server: Running) -> None:
    """Wait until a server has done what is left over from its last requests, but not for long."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = _spent([server])
        time.sleep(LOOK_SECONDS)
        if _spent([server]) - before <= SETTLED_SHARE * LOOK_SECONDS:
            return


def _spent(servers: Sequence[Running]) -> float:
    return sum(cpu_seconds(pid) for server in servers for pid in family(server.pid))
