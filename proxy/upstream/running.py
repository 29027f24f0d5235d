"""One upstream as it runs in this worker."""

import logging
from collections.abc import Container
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.upstream.base import Transport
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.guard import Guard
from proxy.upstream.keypool import KeyPool, KeyState, Lease, Transition
from proxy.upstream.verdict import Verdict

log = logging.getLogger("magic_proxy.upstream")


@dataclass(frozen=True, slots=True)
class Upstream:
    """Its address, connections, keys and circuit.

    `pool` is None where clients bring their own key.
    """

    config: UpstreamConfig
    transport: Transport
    pool: KeyPool | None
    guard: Guard
    clock: Clock

    async def lease(
        self, excluded: Container[int], *, patience: float, may_probe: bool
    ) -> Lease | None:
        """A key whose index is not `excluded`, if there is or comes one within `patience`."""
        pool = self.pool
        assert pool is not None
        while True:
            now = self.clock.monotonic()
            for transition in pool.settle(now):
                self._tell(transition)
            lease = pool.acquire(now, excluded, may_probe=may_probe)
            soonest = pool.soonest(now)
            if lease is not None or soonest is None or soonest > patience:
                return lease
            # The floor keeps a clock of coarse steps from turning here.
            seconds = max(soonest, 0.001)
            patience -= seconds
            await self.clock.sleep(seconds)

    def report(self, lease: Lease | None, verdict: Verdict) -> None:
        """What the use of a key showed."""
        if self.pool is not None and lease is not None:
            self._tell(self.pool.report(lease, verdict, self.clock.monotonic()))

    def release(self, lease: Lease | None) -> None:
        """The use of a key is over; once is enough."""
        if self.pool is not None and lease is not None:
            self.pool.release(lease)

    @property
    def soonest_key(self) -> float | None:
        """Seconds until a key that rests may be used again; None where none rests."""
        return None if self.pool is None else self.pool.soonest(self.clock.monotonic())

    @property
    def is_exhausted(self) -> bool:
        """True where there are keys, and none can be given out."""
        return self.pool is not None and self.pool.exhausted(self.clock.monotonic())

    @property
    def is_short_of_keys(self) -> bool:
        """True where some of the keys rest or are retired."""
        return self.pool is not None and any(
            status.state is not KeyState.AVAILABLE
            for status in self.pool.states(self.clock.monotonic())
        )

    def _tell(self, transition: Transition | None) -> None:
        """One line for each change of a key's state."""
        if transition is None:
            return
        level = logging.INFO if transition.after is KeyState.AVAILABLE else logging.WARNING
        duration = "" if transition.seconds is None else f" for {transition.seconds:.0f} s"
        log.log(
            level,
            "upstream %s: %s is %s%s: %s",
            self.config.name,
            transition.fingerprint,
            transition.after,
            duration,
            transition.reason,
        )
