"""A circuit breaker as a pure state machine: time goes in, transitions come out.

Closed: calls go through; `failure_threshold` failures in a row open it. Open: no call until the
wait is over. Half-open: one call, the probe, goes through; its success closes the circuit, its
failure opens it again for a longer wait. Times are monotonic seconds.
"""

from enum import StrEnum
from typing import Final

_GROWTH: Final = 2.0
_LONGEST_WAIT_SECONDS: Final = 30.0


class CircuitState(StrEnum):
    """Where the circuit stands."""

    CLOSED = "closed"  # calls go through
    OPEN = "open"  # nothing goes through until the wait is over
    HALF_OPEN = "half-open"  # one probe is under way


class Transition(StrEnum):
    """What an outcome changed; each but REOPENED is worth a log line."""

    OPENED = "opened"  # the threshold was reached
    REOPENED = "reopened"  # the probe failed too, the wait grew
    CLOSED = "closed"  # the other side works again


class Breaker:
    """Counts failures in a row and decides which calls may go through."""

    def __init__(
        self,
        *,
        failure_threshold: int = 3,
        retry_seconds: float,
        longest_wait_seconds: float = _LONGEST_WAIT_SECONDS,
    ) -> None:
        self._failure_threshold = failure_threshold
        self._retry_seconds = retry_seconds
        self._longest_wait_seconds = max(retry_seconds, longest_wait_seconds)
        self._state = CircuitState.CLOSED
        self._failures = 0
        self._wait_seconds = retry_seconds
        self._retry_at = 0.0

    @property
    def state(self) -> CircuitState:
        return self._state

    @property
    def retry_at(self) -> float:
        """When an open circuit lets the next probe through, in monotonic seconds."""
        return self._retry_at

    def allow(self, now: float) -> bool:
        """Whether a call may go through now; an open circuit whose wait is over admits one.

        A probe whose outcome is never told (its caller went away) bars the others for one more
        wait only.
        """
        if self._state is CircuitState.CLOSED:
            return True
        if now < self._retry_at:
            return False
        self._state = CircuitState.HALF_OPEN
        self._retry_at = now + self._wait_seconds
        return True

    def succeeded(self, now: float) -> Transition | None:
        """A call came back well, be it the probe or one that began before the circuit opened."""
        del now  # taken for symmetry: callers hand in the same for every outcome
        self._failures = 0
        if self._state is CircuitState.CLOSED:
            return None
        self._state = CircuitState.CLOSED
        self._wait_seconds = self._retry_seconds
        return Transition.CLOSED

    def failed(self, now: float, *, jitter: float = 1.0) -> Transition | None:
        """A call failed; `jitter` stretches the wait, so that replicas don't probe in step."""
        if self._state is CircuitState.OPEN:
            return None  # a call from before; its news is old
        transition = Transition.OPENED
        if self._state is CircuitState.HALF_OPEN:
            self._wait_seconds = min(self._wait_seconds * _GROWTH, self._longest_wait_seconds)
            transition = Transition.REOPENED
        else:
            self._failures += 1
            if self._failures < self._failure_threshold:
                return None
        self._state = CircuitState.OPEN
        self._retry_at = now + self._wait_seconds * jitter
        return transition
