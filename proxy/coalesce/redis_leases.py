"""The leases that this process holds in Redis: renewed and released many at a time."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from proxy.backends.redis_guard import GuardedRedis
from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd
from proxy.coalesce.redis_records import Recording
from proxy.coalesce.redis_scripts import RELEASE, RENEW, Names
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_BATCH: Final = 500  # leases per script call: Redis does nothing else meanwhile
_RENEWALS: Final = 3  # per lease time
_LOST, _KEPT, _WANTED = range(3)


class RedisLease:
    """A `Lease`; made by `HeldLeases.hold`."""

    def __init__(self, held: "HeldLeases", key: str, token: int, recording: Recording) -> None:
        self._held = held
        self._recording = recording
        self._callback: Callable[[], None] | None = None
        self._wanted = False
        self.key = key
        self.token = token
        self.lost = False
        self.released: asyncio.Future[None] | None = None

    @property
    def records(self) -> int:
        """How many were published."""
        return self._recording.records

    def when_wanted(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._tell()

    async def publish(self, records: Sequence[bytes]) -> None:
        if not self.lost and self.released is None:
            await self._recording.append(records)

    async def release(self, end: FlightEnd) -> None:
        await self._held.release(self, end)

    def want(self) -> None:
        """Somebody elsewhere follows live."""
        self._wanted = True
        self._tell()

    def _tell(self) -> None:
        if self._wanted and self._callback is not None:
            callback, self._callback = self._callback, None
            callback()


_Leaving: TypeAlias = tuple[RedisLease, FlightEnd, asyncio.Future[None]]


class HeldLeases:
    """Renews what is held, three times per lease time, in one round trip; lets go in one as well.

    Whatever is not released, because Redis is away, runs out by itself.
    """

    def __init__(
        self,
        redis: GuardedRedis,
        names: Names,
        clock: Clock,
        tasks: TaskGroup,
        *,
        lease_seconds: float,
        stream_seconds: float,
        timeout_seconds: float,
    ) -> None:
        self._redis = redis
        self._names = names
        self._clock = clock
        self._tasks = tasks
        self._pause_seconds = lease_seconds / _RENEWALS
        self._lease_ms = round(lease_seconds * 1000)
        self._stream_ms = round(stream_seconds * 1000)
        self._timeout_seconds = timeout_seconds
        self._held: dict[int, dict[str, RedisLease]] = {}
        self._leaving: list[_Leaving] = []
        self._releasing: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    def hold(self, key: str, token: int) -> RedisLease:
        """A lease that was acquired; it is kept from now on."""
        stream = self._names.flight(key, token)
        recording = Recording(self._redis, stream, self._stream_ms, self._timeout_seconds)
        lease = RedisLease(self, key, token, recording)
        self._held.setdefault(token, {})[key] = lease
        if self._renewing is None:
            self._renewing = self._tasks.start(self._renew(), name="lease-renewal")
        return lease

    def find(self, key: str, token: int) -> RedisLease | None:
        """The lease, if it is held here."""
        return self._held.get(token, {}).get(key)

    async def release(self, lease: RedisLease, end: FlightEnd) -> None:
        """Let go; returns when Redis knows, or can't be told. Goes on when cancelled."""
        await asyncio.shield(lease.released or self._leave(lease, end))

    async def release_all(self) -> None:
        """Let go of everything, as abandoned."""
        for lease in self._all():
            self._leave(lease, FlightEnd.ABANDONED)
        if self._releasing is not None:
            await asyncio.wait({self._releasing})

    async def renew_now(self) -> None:
        """Renew, and learn who is followed: messages may have been missed."""
        leases = self._all()
        for at in range(0, len(leases), _BATCH):
            await self._renew_some(leases[at : at + _BATCH])

    def _all(self) -> list[RedisLease]:
        return [lease for by_key in self._held.values() for lease in by_key.values()]

    def _drop(self, lease: RedisLease) -> None:
        by_key = self._held.get(lease.token, {})
        by_key.pop(lease.key, None)
        if not by_key:
            self._held.pop(lease.token, None)
        if not self._held and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._pause_seconds)
            # In a task of its own: when the last lease goes, this one is cancelled wherever it is.
            await asyncio.shield(self._tasks.start(self.renew_now(), name="lease-renewal"))

    async def _renew_some(self, leases: Sequence[RedisLease]) -> None:
        keys = [name for lease in leases for name in self._keys_of(lease)]
        tokens = [lease.token for lease in leases]
        try:
            found = await self._redis.run(
                RENEW, keys, [self._lease_ms, self._stream_ms, *tokens], self._timeout_seconds
            )
        except StoreUnavailable:
            return  # counted; the next renewal may come in time
        if not isinstance(found, list) or len(found) != len(leases):
            self._redis.failed("the reply is not of the form that was asked for")
            return
        for lease, state in zip(leases, found, strict=True):
            if state == _LOST:
                lease.lost = True
                self._drop(lease)
            elif state == _WANTED:
                lease.want()

    def _leave(self, lease: RedisLease, end: FlightEnd) -> asyncio.Future[None]:
        lease.released = asyncio.get_running_loop().create_future()
        self._drop(lease)
        if lease.lost:
            lease.released.set_result(None)
        else:
            self._leaving.append((lease, end, lease.released))
            if self._releasing is None:
                # A task: all that is released in one turn of the loop goes together.
                self._releasing = self._tasks.start(self._release(), name="lease-release")
        return lease.released

    async def _release(self) -> None:
        try:
            while self._leaving:
                batch = self._leaving[:_BATCH]
                await self._release_some(batch)
                del self._leaving[: len(batch)]
                _settle(batch)
        finally:
            self._releasing = None
            _settle(self._leaving)

    async def _release_some(self, batch: Sequence[_Leaving]) -> None:
        keys = [name for lease, _, _ in batch for name in self._keys_of(lease)]
        told: list[str | int] = [self._stream_ms]
        for lease, end, _ in batch:
            told += [lease.token, lease.records, end.value]
        with contextlib.suppress(StoreUnavailable):  # counted; the leases run out by themselves
            await self._redis.run(RELEASE, keys, told, self._timeout_seconds)

    def _keys_of(self, lease: RedisLease) -> tuple[str, str]:
        return self._names.lease(lease.key), self._names.flight(lease.key, lease.token)


def _settle(batch: Sequence[_Leaving]) -> None:
    for _, _, released in batch:
        if not released.done():
            released.set_result(None)
