"""What stands before one upstream in this worker: its circuit and its retry budget."""

import logging
import random
from types import TracebackType
from typing import Final, Self

from proxy.clock import Clock
from proxy.core.breaker import CircuitState
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
        self._circuit = None if config.circuit is None else Circuit(config.circuit)
        self._budget = None if config.retry_budget is None else RetryBudget(config.retry_budget)

    def admit(self) -> "Passage | None":
        """The way through for one call, or None while the circuit is open."""
        if self._circuit is None:
            return Passage(self, None)
        permit = self._circuit.admit(self._clock.monotonic())
        return None if permit is None else Passage(self, permit)

    def asked(self) -> None:
        """A request is sent to this upstream for the first time."""
        if self._budget is not None:
            self._budget.asked(self._clock.monotonic())

    def may_retry(self) -> bool:
        """Whether the budget has one more retry, which it then counts as made."""
        return self._budget is None or self._budget.take(self._clock.monotonic())

    @property
    def seconds_to_probe(self) -> float:
        """How long until the next call may go through."""
        if self._circuit is None:
            return 0.0
        return self._circuit.seconds_to_probe(self._clock.monotonic())

    @property
    def state(self) -> CircuitState:
        """Where the circuit stands; closed where there is none."""
        if self._circuit is None:
            return CircuitState.CLOSED
        return self._circuit.state(self._clock.monotonic())

    def answered(self, permit: Permit | None) -> None:
        """The call was answered, and not with a failure of the upstream."""
        if self._circuit is None or permit is None:
            return
        if self._circuit.answered(permit, self._clock.monotonic()) is CircuitChange.CLOSED:
            log.info("upstream %s: answers again, and the circuit is closed", self._name)

    def failed(self, permit: Permit | None, reason: str, *, connecting: bool) -> None:
        """The upstream failed at the call."""
        if self._circuit is None or permit is None:
            return
        jitter = 1.0 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - spreads probes, no secret
        now = self._clock.monotonic()
        change = self._circuit.failed(permit, now, connecting=connecting, jitter=jitter)
        if change is CircuitChange.OPENED:
            log.warning(
                "upstream %s: fails, and the circuit is open until a probe is answered (%s)",
                self._name,
                reason,
            )

    def dropped(self, permit: Permit | None) -> None:
        """The call ended with nothing learned."""
        if self._circuit is not None and permit is not None:
            self._circuit.dropped(permit)


class Passage:
    """One call's way through; what becomes of it is told once, or nothing was learned."""

    def __init__(self, guard: Guard, permit: Permit | None) -> None:
        self._guard = guard
        self._permit = permit

    def answered(self) -> None:
        """The upstream answered, and not that it fails."""
        permit, self._permit = self._permit, None
        self._guard.answered(permit)

    def failed(self, reason: str, *, connecting: bool = False) -> None:
        """The upstream failed, with `connecting` before there was a connection."""
        permit, self._permit = self._permit, None
        self._guard.failed(permit, reason, connecting=connecting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        permit, self._permit = self._permit, None
        self._guard.dropped(permit)
