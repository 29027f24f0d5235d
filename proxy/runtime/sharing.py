"""What workers and replicas share beside the entries: leases, purges, states of keys."""

from dataclasses import dataclass

from proxy.backends.channel import Channel
from proxy.clock import Clock
from proxy.coalesce.base import Coalescer
from proxy.runtime.build import redis_config
from proxy.settings.models import Settings, Tier
from proxy.stores.marks import MarkLog
from proxy.stores.marks_combined import CombinedMarkLog
from proxy.stores.marks_disk import DiskMarkLog
from proxy.stores.marks_local import LocalMarkLog
from proxy.upstream.board import KeyBoard
from proxy.upstream.board_disk import DiskKeyBoard


@dataclass(frozen=True, slots=True)
class Shared:
    """By the tiers: Redis connects replicas, the disk the workers of one machine."""

    marks: MarkLog
    coalescer: Coalescer | None = None
    channel: Channel | None = None
    board: KeyBoard | None = None

    async def open(self) -> None:
        """Get ready; a medium that is down does not keep the process from starting."""
        if self.coalescer is not None:
            await self.coalescer.open()

    async def listen(self) -> None:
        """Begin to hear the others, once all who want to hear have said so."""
        if self.channel is not None:
            await self.channel.open()

    async def close(self) -> None:
        """Let go of everything but the log and the board, which are their readers' to close."""
        if self.coalescer is not None:
            await self.coalescer.close()
        if self.channel is not None:
            await self.channel.close()


def build_shared(settings: Settings, clock: Clock) -> Shared:
    """What goes with the tiers of the store."""
    tiers = settings.store.resolved_tiers
    own = DiskMarkLog(settings.store.disk.path, clock=clock) if Tier.DISK in tiers else None
    if Tier.REDIS in tiers:
        return _over_redis(settings, own, clock)
    if own is None:
        return Shared(LocalMarkLog(clock))
    from proxy.coalesce.disk import DiskCoalescer  # noqa: PLC0415  # as below

    leases = DiskCoalescer(
        settings.store.disk.path,
        clock=clock,
        lease_seconds=settings.cache_settings.lease_seconds,
    )
    board: KeyBoard | None = None
    if settings.store.share_key_states:
        board = DiskKeyBoard(settings.store.disk.path, clock=clock)
    return Shared(own, leases, board=board)


def _over_redis(settings: Settings, own: MarkLog | None, clock: Clock) -> Shared:
    # The client costs 0.2 s and 15 MB: only where there is a Redis.
    from proxy.backends.redis_channel import RedisChannel  # noqa: PLC0415
    from proxy.coalesce.redis import RedisCoalescer  # noqa: PLC0415
    from proxy.stores.marks_redis import RedisMarkLog  # noqa: PLC0415
    from proxy.upstream.board_redis import RedisKeyBoard  # noqa: PLC0415

    redis, cache = settings.store.redis, settings.cache_settings
    config = redis_config(redis)
    channel = RedisChannel(config, clock=clock)
    log = RedisMarkLog(
        config,
        channel=channel,
        key_prefix=cache.key_prefix,
        clock=clock,
        timeout_seconds=redis.write_timeout_seconds,
    )
    leases = RedisCoalescer(
        config,
        clock=clock,
        channel=channel,
        key_prefix=cache.key_prefix,
        lease_seconds=cache.lease_seconds,
        timeout_seconds=redis.timeout_seconds,
    )
    board: KeyBoard | None = None
    if settings.store.share_key_states:
        board = RedisKeyBoard(
            config,
            channel=channel,
            key_prefix=cache.key_prefix,
            clock=clock,
            timeout_seconds=redis.write_timeout_seconds,
        )
    marks: MarkLog = log if own is None else CombinedMarkLog(log, own)
    return Shared(marks, leases, channel, board)
