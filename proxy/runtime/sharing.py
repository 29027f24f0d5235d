"""What workers and replicas share beside the entries: leases, and the log of purges."""

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.backends.channel import Channel
from proxy.clock import Clock
from proxy.coalesce.base import Coalescer
from proxy.settings.models import Settings, Tier
from proxy.stores.marks import MarkLog
from proxy.stores.marks_local import LocalMarkLog


@dataclass(frozen=True, slots=True)
class Shared:
    """By the tiers: Redis connects replicas, else the disk the workers of one machine."""

    marks: MarkLog
    coalescer: Coalescer | None = None
    channel: Channel | None = None

    async def open(self) -> None:
        """Get ready; a medium that is down does not keep the process up."""
        if self.channel is not None:
            await self.channel.open()
        if self.coalescer is not None:
            await self.coalescer.open()

    async def close(self) -> None:
        """Let go of everything."""
        if self.coalescer is not None:
            await self.coalescer.close()
        if self.channel is not None:
            await self.channel.close()


def build_shared(settings: Settings, clock: Clock) -> Shared:
    """What goes with the tiers of the store."""
    tiers: Sequence[Tier] = settings.store.resolved_tiers
    del tiers
    return Shared(LocalMarkLog(clock))
