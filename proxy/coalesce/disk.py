"""Coalescing on one machine: leases in the file of the disk store, among its worker processes.

A disk tells nobody that something changed: followers look, and get the end alone.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from proxy.backends.circuit import Circuit
from proxy.backends.sqlite_thread import SqliteThread
from proxy.clock import Clock
from proxy.coalesce.acquiring import Acquired, Acquisitions
from proxy.coalesce.base import FlightEnd, Followed, FollowEvent, Landed, Lease
from proxy.coalesce.disk_leases import DiskLeases, Row
from proxy.coalesce.held import HeldLease, HeldLeases, Kept, Leaving
from proxy.core.breaker import Breaker
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_PATIENCE_SECONDS: Final = 5.0  # for what nobody waits for
_SHORTEST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.1
_GROWTH: Final = 1.5


class DiskCoalescer:
    """Leases in the file at `path`, over threads of its own."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        lease_seconds: float = 5.0,
        timeout_seconds: float = 0.25,
        retry_seconds: float = 2.0,
    ) -> None:
        self._clock = clock
        self._tasks = TaskGroup()
        self._leases = DiskLeases(clock, lease_seconds=lease_seconds)
        self._held = HeldLeases(self, clock, self._tasks, lease_seconds=lease_seconds)
        self._acquisitions = Acquisitions(
            self._acquire, self._tasks, timeout_seconds=timeout_seconds
        )
        breaker = Breaker(retry_seconds=retry_seconds)
        self._circuit = Circuit("disk leases", breaker, clock)
        self._writer = SqliteThread(
            "disk leases",
            path,
            clock,
            writes=True,
            prepare=self._leases.prepare,
            idle=self._leases.sweep,
            idle_seconds=lease_seconds,
        )
        self._reader = SqliteThread(
            "disk leases", path, clock, writes=False, idle_seconds=lease_seconds
        )
        self._followed: dict[Row, set[asyncio.Future[FlightEnd]]] = {}
        self._watching = False
        self._pause = _SHORTEST_PAUSE
        self._closed = False

    @property
    def available(self) -> bool:
        """False while the file is known to be out of use."""
        return not self._closed and self._circuit.closed

    async def open(self) -> None:
        """Nothing to do: the file is opened by what is asked first."""

    async def acquire(self, keys: Sequence[str]) -> list[Lease | Followed]:
        if not keys:
            return []
        if self._closed:
            raise StoreUnavailable("disk leases: closed")
        with self._circuit.guarding():
            return await self._acquisitions.wait(keys)

    async def close(self) -> None:
        self._closed = True
        await self._acquisitions.settle()
        await self._held.release_all()
        self._settle_all(StoreUnavailable("disk leases: closed"))
        await self._tasks.cancel()
        await self._writer.close()
        await self._reader.close()

    # The table, for what is held.

    async def renew(self, leases: Sequence[HeldLease]) -> Sequence[int]:
        rows = [(lease.key, lease.token) for lease in leases]
        held = await self._writer.ask_within(
            _PATIENCE_SECONDS, lambda file: self._leases.renew(file, rows)
        )
        return [Kept.HELD if each else Kept.LOST for each in held]

    async def release(self, leaving: Sequence[Leaving]) -> None:
        ends = [((lease.key, lease.token), end) for lease, end in leaving]
        await self._writer.ask_within(
            _PATIENCE_SECONDS, lambda file: self._leases.release(file, ends)
        )

    # What is followed.

    async def landed(self, row: Row) -> FlightEnd:
        """How the lease of that key and token ends, when it does. Raises StoreUnavailable."""
        landed: asyncio.Future[FlightEnd] = asyncio.get_running_loop().create_future()
        self._followed.setdefault(row, set()).add(landed)
        self._pause = _SHORTEST_PAUSE
        if not self._watching:
            self._watching = True
            self._tasks.start(self._watch(), name="lease-watch")
        try:
            return await landed
        finally:
            waiting = self._followed[row]
            waiting.discard(landed)
            if not waiting:
                del self._followed[row]

    async def _watch(self) -> None:
        """Look, with growing pauses, while anyone follows."""
        try:
            while self._followed:
                rows = list(self._followed)
                try:
                    ends = await self._reader.ask_within(
                        _PATIENCE_SECONDS, partial(self._leases.look, rows=rows)
                    )
                except StoreUnavailable as error:
                    self._settle_all(error)
                else:
                    for row, end in zip(rows, ends, strict=True):
                        self._settle(row, end)
                await self._clock.sleep(self._pause)
                self._pause = min(self._pause * _GROWTH, _LONGEST_PAUSE)
        finally:
            self._watching = False

    def _settle(self, row: Row, end: FlightEnd | None) -> None:
        for landed in self._followed.get(row, ()):
            if end is not None and not landed.done():
                landed.set_result(end)

    def _settle_all(self, error: StoreUnavailable) -> None:
        for waiting in self._followed.values():
            for landed in waiting:
                if not landed.done():
                    landed.set_exception(StoreUnavailable(error.message))

    async def _acquire(self, keys: Sequence[str]) -> Acquired:
        token, holders, lately = await self._writer.ask_within(
            _PATIENCE_SECONDS, lambda file: self._leases.acquire(file, keys)
        )
        return [
            self._held.hold(key, token, stored_lately=stored)
            if holder is None
            else DiskFollowed(self, key, holder)
            for key, holder, stored in zip(keys, holders, lately, strict=True)
        ]


class DiskFollowed(Followed):
    """Tells the end alone."""

    def __init__(self, coalescer: DiskCoalescer, key: str, token: int) -> None:
        super().__init__(key, token)
        self._coalescer = coalescer

    async def events(self, *, live: bool) -> AsyncIterator[FollowEvent]:  # noqa: ARG002 - no records
        yield Landed(await self._coalescer.landed((self.key, self.token)))
