"""Coalescing through Redis: one leader per key among all replicas, whom the others follow live.

An ordinary miss waits for one round trip, the acquire. A leader publishes nothing until somebody
elsewhere follows: the follower says so on the channel, and in the lease, where the next renewal
finds it if the message was lost.

Needs Redis 6.2.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from proxy.backends.channel import Channel
from proxy.backends.redis_dial import RedisDialler
from proxy.backends.redis_guard import GuardedRedis
from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd, Followed, Lease
from proxy.coalesce.redis_follow import Follow, RedisFollowed
from proxy.coalesce.redis_following import StreamReader
from proxy.coalesce.redis_leases import HeldLeases, RedisLease
from proxy.coalesce.redis_scripts import ACQUIRE, Names
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_FENCE_MS: Final = 24 * 3600 * 1000
_STREAM_SECONDS: Final = 30.0
_CHECKS: Final = 5  # per lease time: how often followers look whether the leader lives
_PATIENCE_SECONDS: Final = 1.0  # for what nobody waits for
_LATE: Final = 1.5

_Acquiring: TypeAlias = asyncio.Task[list[Lease | Followed]]


class RedisCoalescer:
    """Leases under `key_prefix`; `channel` must lead to the same server, and is not closed here.

    Raises ValueError for a URL that can't be used.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        channel: Channel,
        key_prefix: str,
        lease_seconds: float = 5.0,
        timeout_seconds: float = 0.05,
        connect_timeout_seconds: float = 1.0,
        max_connections: int = 4,
        failure_threshold: int = 3,
        retry_seconds: float = 1.0,
        linger_seconds: float = 2.0,
        ca_file: str | None = None,
    ) -> None:
        self._clock = clock
        self._channel = channel
        self._lease_ms = round(lease_seconds * 1000)
        self._timeout_seconds = timeout_seconds
        self._names = Names(key_prefix)
        self._tasks = TaskGroup()
        self._redis = GuardedRedis(
            "redis leases",
            url,
            clock=clock,
            max_connections=max_connections,
            connect_timeout_seconds=connect_timeout_seconds,
            ca_file=ca_file,
            failure_threshold=failure_threshold,
            retry_seconds=retry_seconds,
            probe=("SET", self._names.probe, "1", "PX", 1000),
        )
        self._held = HeldLeases(
            self._redis,
            self._names,
            clock,
            self._tasks,
            lease_seconds=lease_seconds,
            stream_seconds=max(_STREAM_SECONDS, 2 * lease_seconds),
            timeout_seconds=_PATIENCE_SECONDS,
        )
        self._reader = StreamReader(
            self._redis,
            RedisDialler(url, connect_timeout_seconds=connect_timeout_seconds, ca_file=ca_file),
            self._names,
            clock,
            self._tasks,
            check_seconds=lease_seconds / _CHECKS,
            linger_seconds=linger_seconds,
            timeout_seconds=_PATIENCE_SECONDS,
            announce=self._announce,
        )
        self._acquiring: set[_Acquiring] = set()
        self._early: set[bytes] = set()
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
        # A task, which is never cut off: what it gets although nobody waits is let go of.
        task: _Acquiring
        task = self._tasks.start(self._acquire(keys), name="lease-acquire", awaited=True)
        self._acquiring.add(task)
        task.add_done_callback(self._acquired)
        try:
            await self._wait_for(task)
        except asyncio.CancelledError:
            task.add_done_callback(self._let_go)
            raise
        if not task.done():
            task.add_done_callback(self._let_go)
            raise self._redis.failed(f"no reply within {self._timeout_seconds:g} s")
        try:
            got = task.result()
        except StoreUnavailable as error:
            self._redis.failed(error)
            raise
        self._redis.succeeded()
        return got

    async def close(self) -> None:
        self._closed = True
        self._reader.close()
        if self._acquiring:
            await asyncio.wait(self._acquiring)
        await self._held.release_all()
        await self._tasks.cancel()
        await self._redis.close()

    async def _wait_for(self, task: _Acquiring) -> None:
        for _ in range(2):
            began = self._clock.monotonic()
            await asyncio.wait({task}, timeout=self._timeout_seconds)
            if task.done() or self._clock.monotonic() - began < _LATE * self._timeout_seconds:
                return
            # The loop itself was busy for so long: the reply may lie there unread.

    async def _acquire(self, keys: Sequence[str]) -> list[Lease | Followed]:
        names = [self._names.fence, *map(self._names.lease, keys)]
        reply = await self._redis.attempt(
            ACQUIRE, names, [self._lease_ms, _FENCE_MS], _PATIENCE_SECONDS
        )
        match reply:
            case [bytes() as fence, [*holders]] if len(holders) == len(keys):
                token = int(fence)
            case _:
                raise StoreUnavailable("redis leases: the reply is not of the form asked for")
        return [
            self._hold(key, token) if holder is None else self._followed(key, holder)
            for key, holder in zip(keys, holders, strict=True)
        ]

    def _hold(self, key: str, token: int) -> RedisLease:
        lease = self._held.hold(key, token)
        if _message(key, token) in self._early:
            lease.want()
        return lease

    def _followed(self, key: str, holder: bytes) -> RedisFollowed:
        return RedisFollowed(self._reader, key, int(holder))

    def _acquired(self, task: _Acquiring) -> None:
        self._acquiring.discard(task)
        if not self._acquiring:
            self._early.clear()

    def _let_go(self, task: _Acquiring) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        for got in task.result():
            if isinstance(got, RedisLease):
                self._tasks.start(got.release(FlightEnd.ABANDONED), name="lease-return")

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
        elif self._acquiring:  # perhaps of a lease whose acquisition was not answered yet
            self._early.add(message)

    def _look_around(self) -> None:
        if not self._closed:
            self._tasks.start(self._held.renew_now(), name="lease-renewal")


def _message(key: str, token: int) -> bytes:
    return f"{token} {key}".encode()
