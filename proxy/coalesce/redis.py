"""Coalescing through Redis: one leader per key among all replicas, whom the others follow live.

An ordinary miss waits for one round trip, the acquire. A leader publishes nothing until somebody
elsewhere follows: the follower says so on the channel, and in the lease, where the next renewal
finds it if the message was lost.

Needs Redis 6.2.
"""

import contextlib
from collections.abc import Sequence
from typing import Final

from proxy.backends.channel import Channel
from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_dial import RedisDialler
from proxy.backends.redis_guard import GuardedRedis
from proxy.clock import Clock
from proxy.coalesce.acquiring import Acquired, Acquisitions
from proxy.coalesce.base import Followed, Lease
from proxy.coalesce.held import HeldLease, HeldLeases
from proxy.coalesce.redis_follow import Follow, RedisFollowed
from proxy.coalesce.redis_following import StreamReader
from proxy.coalesce.redis_leases import RedisLeases
from proxy.coalesce.redis_scripts import Names
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_CHECKS: Final = 5  # per lease time: how often followers look whether the leader lives
_MOST_EARLY: Final = 1000


class RedisCoalescer:
    """Leases under `key_prefix`; `channel` must lead to the same server, and is not closed here.

    Raises ValueError for a URL that can't be used.
    """

    def __init__(
        self,
        config: RedisConfig,
        *,
        clock: Clock,
        channel: Channel,
        key_prefix: str,
        lease_seconds: float = 5.0,
        timeout_seconds: float = 0.05,
        max_connections: int = 4,
        linger_seconds: float = 2.0,
    ) -> None:
        self._channel = channel
        self._names = Names(key_prefix)
        self._tasks = TaskGroup()
        self._redis = GuardedRedis(
            "redis leases",
            config,
            clock=clock,
            max_connections=max_connections,
            probe=("SET", self._names.probe, "1", "PX", 1000),
            probe_seconds=timeout_seconds,
        )
        self._leases = RedisLeases(self._redis, self._names, lease_seconds=lease_seconds)
        self._held = HeldLeases(self._leases, clock, self._tasks, lease_seconds=lease_seconds)
        self._acquisitions = Acquisitions(
            self._acquire, self._tasks, timeout_seconds=timeout_seconds
        )
        self._reader = StreamReader(
            self._redis,
            RedisDialler(config),
            self._names,
            clock,
            self._tasks,
            check_seconds=lease_seconds / _CHECKS,
            linger_seconds=linger_seconds,
            announce=self._announce,
        )
        self._early: dict[bytes, None] = {}
        self._closed = False

    @property
    def available(self) -> bool:
        """False while Redis is known to be down."""
        return self._redis.available

    async def open(self) -> None:
        self._channel.subscribe(self._names.wanted, self._hear)
        self._channel.when_connected(self._look_around)
        await self._redis.open()

    async def acquire(self, keys: Sequence[str]) -> list[Lease | Followed]:
        if not keys:
            return []
        if self._closed:
            raise StoreUnavailable("redis leases: closed")
        self._redis.admit()
        try:
            got = await self._acquisitions.wait(keys)
        except StoreUnavailable as error:
            raise self._redis.failed(error) from error
        self._redis.succeeded()
        return got

    async def close(self) -> None:
        self._closed = True
        self._reader.close()
        await self._acquisitions.settle()
        await self._held.release_all()
        await self._tasks.cancel()
        await self._redis.close()

    async def _acquire(self, keys: Sequence[str]) -> Acquired:
        token, holders, lately = await self._leases.acquire(keys)
        return [
            self._hold(key, token, stored_lately=stored)
            if holder is None
            else RedisFollowed(self._reader, key, holder)
            for key, holder, stored in zip(keys, holders, lately, strict=True)
        ]

    def _hold(self, key: str, token: int, *, stored_lately: bool) -> HeldLease:
        records = self._leases.recording(key, token)
        lease = self._held.hold(key, token, records, stored_lately=stored_lately)
        if _message(key, token) in self._early:
            lease.want()
        return lease

    async def _announce(self, follow: Follow) -> None:
        """Say whose records are wanted; if nobody hears it, the next renewal finds out."""
        with contextlib.suppress(StoreUnavailable):
            await self._channel.publish(self._names.wanted, _message(follow.key, follow.token))

    def _hear(self, message: bytes) -> None:
        token, _, key = message.partition(b" ")
        if not token.isdigit():
            return
        lease = self._held.find(key.decode("utf-8", "replace"), int(token))
        if lease is not None:
            lease.want()
        elif self._acquisitions:  # perhaps of a lease whose acquisition was not answered yet
            self._early[message] = None
            if len(self._early) > _MOST_EARLY:
                del self._early[next(iter(self._early))]

    def _look_around(self) -> None:
        if not self._closed:
            self._tasks.start(self._held.renew_now(), name="lease-renewal")


def _message(key: str, token: int) -> bytes:
    return f"{token} {key}".encode()
