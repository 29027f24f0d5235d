"""One upstream as it runs in this worker."""

from collections.abc import Container
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.core.wire import Headers
from proxy.upstream.allowance import Need
from proxy.upstream.base import Transport
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.gate import Gate
from proxy.upstream.guard import Guard
from proxy.upstream.key_lines import tell
from proxy.upstream.keypool import KeyPool, Lease
from proxy.upstream.limits_told import told_limits
from proxy.upstream.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Upstream:
    """Its address, connections, keys and circuit.

    `pool` is None where clients bring their own key, `gate` where there is no limit of requests.
    """

    config: UpstreamConfig
    transport: Transport
    pool: KeyPool | None
    guard: Guard
    clock: Clock
    gate: Gate | None = None

    def lease(
        self, now: float, excluded: Container[int], need: Need, *, may_probe: bool
    ) -> Lease | None:
        """A key whose index is not `excluded`, if there is one `now`."""
        assert self.pool is not None
        for transition in self.pool.settle(now):
            tell(self.config.name, transition)
        return self.pool.acquire(now, excluded, may_probe=may_probe, need=need)

    def report(self, lease: Lease | None, verdict: Verdict, headers: Headers) -> None:
        """What an answer showed of the key that it came by."""
        if self.pool is not None and lease is not None:
            now = self.clock.monotonic()
            if (told := told_limits(headers, self.clock.wall())) is not None:
                self.pool.told(lease, told, now)
            tell(self.config.name, self.pool.report(lease, verdict, now))

    def spent(self, lease: Lease | None, tokens: int) -> None:
        """What the use of a key cost, once; also after its release."""
        if self.pool is not None and lease is not None:
            self.pool.spent(lease, tokens)

    def release(self, lease: Lease | None) -> None:
        """The use of a key is over; once is enough."""
        if self.pool is not None and lease is not None:
            self.pool.release(lease)

    def soonest_key(self, need: Need, now: float | None = None) -> float | None:
        """Seconds from `now` until a key that rests may be used again; None where none rests."""
        now = self.clock.monotonic() if now is None else now
        return None if self.pool is None else self.pool.soonest(now, need)

    def is_exhausted(self, need: Need, now: float | None = None) -> bool:
        """True where there are keys, and none can be given out `now`."""
        now = self.clock.monotonic() if now is None else now
        return self.pool is not None and self.pool.exhausted(now, need)

    @property
    def is_short_of_keys(self) -> bool:
        """True where some of the keys rest or are retired."""
        return self.pool is not None and self.pool.is_short(self.clock.monotonic())
