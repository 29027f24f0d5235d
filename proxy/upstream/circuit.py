"""The circuit before one upstream, as a state machine. Pure: `now` is monotonic seconds, handed in.

closed ── too many calls fail, or nobody can connect ──▶ open ── time ──▶ half-open
   ▲                                                      ▲                │   │
   │                                                      └─ a probe fails ┘   │
   └────────────────────────── a probe is answered ────────────────────────────┘

Each call that is admitted has a permit, and tells with it what became of it: answered (whatever
the answer says of the request), failed, or, where nothing was learned, dropped. What a permit from
before the last change of state tells is old news.
"""

import sys
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from proxy.core.breaker import CircuitState
from proxy.upstream.sliding import SlidingCounts

_GROWTH: Final = 2.0


@dataclass(frozen=True, slots=True)
class CircuitPolicy:
    """When a circuit opens and for how long.

    It opens where `failure_rate` of at least `min_calls` within `window_seconds` failed, or where
    `connect_failures` in a row found nobody. It stays open for `open_seconds`, after each probe
    that fails for twice as long, up to `max_open_seconds`. `probes` go through at once while it is
    half-open.
    """

    failure_rate: float = 0.9
    min_calls: int = 20
    window_seconds: float = 10.0
    connect_failures: int = 5
    open_seconds: float = 1.0
    max_open_seconds: float = 30.0
    probes: int = 1


# More than all calls can't fail, and nobody counts so far.
NEVER_OPENS: Final = CircuitPolicy(failure_rate=2.0, connect_failures=sys.maxsize)


class CircuitChange(StrEnum):
    """What an outcome changed; each but REOPENED is worth a log line."""

    OPENED = "opened"  # enough has failed
    REOPENED = "reopened"  # a probe failed too, the wait grew
    CLOSED = "closed"  # a probe was answered


@dataclass(frozen=True, slots=True)
class Permit:
    """One call that was let through; `probe` is 0 for one that is no probe."""

    epoch: int
    probe: int = 0


class Circuit:
    """Decides which calls go to the upstream."""

    def __init__(self, policy: CircuitPolicy) -> None:
        self.policy = policy
        self._calls = SlidingCounts(policy.window_seconds)
        self._unconnected = 0
        self._is_open = False
        self._wait = policy.open_seconds
        self._open_until = 0.0
        # Changes with each change of state.
        self._epoch = 0
        self._plain = Permit(0)
        # Of the probes under way: when each began.
        self._probes: dict[int, float] = {}
        self._numbered = 0

    def state(self, now: float) -> CircuitState:
        """Where it stands; half-open as soon as a call would be let through as a probe."""
        if not self._is_open:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self._open_until else CircuitState.HALF_OPEN

    def seconds_to_probe(self, now: float) -> float:
        """How long until the next call may go through; 0 where one may now."""
        if not self._is_open:
            return 0.0
        if now < self._open_until:
            return self._open_until - now
        begun = self._recent(now)
        if len(begun) < self.policy.probes:
            return 0.0
        return min(begun) + self.policy.open_seconds - now

    def admit(self, now: float) -> Permit | None:
        """A permit, or None where the upstream is to be left alone.

        A probe of which nothing is heard for `open_seconds` bars no other: an answer can take
        minutes, and its client may have gone.
        """
        if not self._is_open:
            return self._plain
        if self.seconds_to_probe(now) > 0.0:
            return None
        self._numbered += 1
        self._probes[self._numbered] = now
        return Permit(self._epoch, self._numbered)

    def answered(self, permit: Permit, now: float) -> CircuitChange | None:
        """The upstream answered, and not that it fails."""
        if permit.epoch != self._epoch:
            return None
        self._unconnected = 0
        if not self._is_open:
            self._calls.add(now, marked=False)
            return None
        self._is_open = False
        self._wait = self.policy.open_seconds
        self._turn()
        return CircuitChange.CLOSED

    def failed(
        self, permit: Permit, now: float, *, connecting: bool = False, jitter: float = 1.0
    ) -> CircuitChange | None:
        """The upstream failed, with `connecting` before there was a connection.

        `jitter` stretches the wait, so that workers and replicas do not probe in step.
        """
        if permit.epoch != self._epoch:
            return None
        if self._is_open:
            longest = max(self.policy.open_seconds, self.policy.max_open_seconds)
            self._wait = min(self._wait * _GROWTH, longest)
            self._open(now, jitter)
            return CircuitChange.REOPENED
        self._calls.add(now, marked=True)
        self._unconnected = self._unconnected + 1 if connecting else 0
        if not self._is_too_much(now):
            return None
        self._is_open = True
        self._open(now, jitter)
        return CircuitChange.OPENED

    def dropped(self, permit: Permit) -> None:
        """Nothing was learned: the next call may be the probe at once."""
        self._probes.pop(permit.probe, None)

    def _is_too_much(self, now: float) -> bool:
        calls, failures = self._calls.totals(now)
        return self._unconnected >= self.policy.connect_failures or (
            calls >= self.policy.min_calls and failures >= self.policy.failure_rate * calls
        )

    def _open(self, now: float, jitter: float) -> None:
        self._open_until = now + self._wait * jitter
        self._turn()

    def _turn(self) -> None:
        self._epoch += 1
        self._plain = Permit(self._epoch)
        self._unconnected = 0
        self._calls.clear()
        self._probes.clear()

    def _recent(self, now: float) -> list[float]:
        """When those probes began that may still be heard of soon."""
        return [began for began in self._probes.values() if now < began + self.policy.open_seconds]
