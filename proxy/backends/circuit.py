"""The circuit before a store: the pure breaker, with a clock, and one log line per change."""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from proxy.clock import Clock
from proxy.core.breaker import Breaker, CircuitState, Transition
from proxy.errors import StoreUnavailable

log = logging.getLogger("magic_proxy.stores")

_JITTER: Final = 0.2


class Circuit:
    """Admits calls, learns from their outcomes, and says once when something changed."""

    def __init__(self, what: str, breaker: Breaker, clock: Clock) -> None:
        self._what = what
        self._breaker = breaker
        self._clock = clock

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self._breaker.state is CircuitState.CLOSED

    @property
    def seconds_to_retry(self) -> float:
        """How long an open circuit stays shut, from now."""
        return max(self._breaker.retry_at - self._clock.monotonic(), 0.0)

    def admit(self) -> None:
        """Raise StoreUnavailable at once while the circuit is open."""
        if not self._breaker.allow(self._clock.monotonic()):
            raise StoreUnavailable(f"{self._what}: the circuit is open")

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """One call: none while the circuit is open, and StoreUnavailable out of it is a failure."""
        self.admit()
        try:
            yield
        except StoreUnavailable as error:
            self.failed(str(error).removeprefix(f"{self._what}: "))
            raise
        self.succeeded()

    def succeeded(self) -> None:
        if self._breaker.succeeded(self._clock.monotonic()) is Transition.CLOSED:
            log.info("%s: works again", self._what)

    def failed(self, reason: object) -> bool:
        """Count a failure; True if it opened the circuit."""
        jitter = 1.0 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - spreads probes, no secret
        transition = self._breaker.failed(self._clock.monotonic(), jitter=jitter)
        if transition is not Transition.OPENED:
            return False
        log.warning("%s: does not work, and is left alone for a while (%s)", self._what, reason)
        return True
