"""What stands before one upstream in this worker: its circuit and its retry budget."""

import logging
import random
from typing import Final, Self

from proxy.clock import Clock
from proxy.core.breaker import CircuitState
from proxy.errors import CircuitOpen
from proxy.upstream.budget import RetryBudget
from proxy.upstream.circuit import Circuit, CircuitChange, Permit
from proxy.upstream.config import UpstreamConfig

log = logging.getLogger("magic_proxy.upstream")

_JITTER: Final = 0.2


class Guard:
    """Lets calls through, learns from their outcomes, and says once when something changed."""

    def __init__(self, config: UpstreamConfig, clock: Clock) -> None:
        self._name = config.name
        self._clock = clock
        self._circuit = Circuit(config.circuit)
        self._budget = RetryBudget(config.retry_budget)

    def admit(self) -> "Passage | None":
        """The way through for one call, or None while the circuit is open."""
        permit = self._circuit.admit(self._clock.monotonic())
        return None if permit is None else Passage(self, permit)

    def asked(self) -> None:
        """A request is sent to this upstream for the first time."""
        self._budget.asked(self._clock.monotonic())

    @property
    def may_retry(self) -> bool:
        """Whether the budget has one more retry."""
        return self._budget.has_more(self._clock.monotonic())

    def retried(self) -> None:
        """A request is sent once more because this upstream failed."""
        self._budget.retried(self._clock.monotonic())

    @property
    def seconds_to_probe(self) -> float:
        """How long until the next call may go through."""
        return self._circuit.seconds_to_probe(self._clock.monotonic())

    @property
    def refusal(self) -> CircuitOpen:
        """What a call is told that does not go through, or does not wait to be the probe."""
        return CircuitOpen(
            f"The upstream {self._name!r} has failed too often just now, and is left alone for a "
            "moment.",
            retry_after_seconds=self.seconds_to_probe,
        )

    @property
    def state(self) -> CircuitState:
        """Where the circuit stands."""
        return self._circuit.state(self._clock.monotonic())

    def answered(self, permit: Permit) -> None:
        """The upstream answered the call, and not that it fails."""
        if self._circuit.answered(permit, self._clock.monotonic()) is CircuitChange.CLOSED:
            log.info("upstream %s: answers again, and the circuit is closed", self._name)

    def failed(self, permit: Permit, reason: str, *, connecting: bool) -> None:
        """The upstream failed at the call."""
        jitter = 1.0 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - spreads probes, no secret
        now = self._clock.monotonic()
        change = self._circuit.failed(permit, now, connecting=connecting, jitter=jitter)
        if change is CircuitChange.OPENED:
            log.warning(
                "upstream %s: fails, and the circuit is open until a probe is answered (%s)",
                self._name,
                reason,
            )

    def dropped(self, permit: Permit) -> None:
        """The call ended with nothing learned."""
        self._circuit.dropped(permit)


class Passage:
    """One call's way through, for a `with`; what becomes of the call is told inside, at most once.

    Where it is not, nothing was learned.
    """

    def __init__(self, guard: Guard, permit: Permit) -> None:
        self._guard = guard
        self._permit = permit
        self._is_told = False

    def answered(self) -> None:
        """The upstream answered, and not that it fails."""
        self._is_told = True
        self._guard.answered(self._permit)

    def failed(self, reason: str, *, connecting: bool = False) -> None:
        """The upstream failed, with `connecting` before there was a connection."""
        if not self._is_told:
            self._is_told = True
            self._guard.failed(self._permit, reason, connecting=connecting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_told:
            self._guard.dropped(self._permit)
