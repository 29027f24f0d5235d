"""The leases that this process holds: renewed and released many at a time, whatever the medium."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_BATCH: Final = 500  # leases at once: the medium does nothing else meanwhile
_CLOSING_SECONDS: Final = 2.0
_RENEWALS: Final = 3  # per lease time


class Kept(IntEnum):
    """What a renewal finds out."""

    LOST = 0  # another holds the key, or nobody
    HELD = 1
    WANTED = 2  # held, and somebody elsewhere wants the records


class Recorder(Protocol):
    """Where the records of one lease go."""

    @property
    def records(self) -> int:
        """How many there were."""
        ...

    async def append(self, records: Sequence[bytes]) -> None:
        """Raises StoreUnavailable."""
        ...


class HeldLease:
    """A `Lease`; made by `HeldLeases.hold`. Without a recorder nobody can follow live."""

    def __init__(
        self,
        held: "HeldLeases",
        key: str,
        token: int,
        recorder: Recorder | None,
        *,
        stored_lately: bool,
    ) -> None:
        self._held = held
        self._recorder = recorder
        self._callback: Callable[[], None] | None = None
        self._wanted = False
        self.key = key
        self.token = token
        self.stored_lately = stored_lately
        self.lost = False
        self.released: asyncio.Future[None] | None = None

    @property
    def records(self) -> int:
        """How many were published."""
        return self._recorder.records if self._recorder is not None else 0

    def when_wanted(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._tell()

    async def publish(self, records: Sequence[bytes]) -> None:
        if self._recorder is not None and not self.lost and self.released is None:
            await self._recorder.append(records)

    async def release(self, end: FlightEnd) -> None:
        await self._held.release(self, end)

    def want(self) -> None:
        """Somebody elsewhere follows live."""
        self._wanted = True
        self._tell()

    def _tell(self) -> None:
        if self._wanted and self._callback is not None:
            # Not from here: what it does, or fails in, is no part of a renewal.
            asyncio.get_running_loop().call_soon(self._callback)
            self._callback = None


Leaving: TypeAlias = tuple[HeldLease, FlightEnd]


class LeaseTable(Protocol):
    """The leases as the medium has them."""

    async def renew(self, leases: Sequence[HeldLease]) -> Sequence[int]:
        """Make them last a whole lease time from now; a `Kept` each. Raises StoreUnavailable."""
        ...

    async def release(self, leaving: Sequence[Leaving]) -> None:
        """Give the keys free and note how it ended. Raises StoreUnavailable."""
        ...


class HeldLeases:
    """Renews what is held, three times per lease time; lets go in the order of the calls.

    Whatever can't be released, because the medium is away, runs out by itself.
    """

    def __init__(
        self, table: LeaseTable, clock: Clock, tasks: TaskGroup, *, lease_seconds: float
    ) -> None:
        self._table = table
        self._clock = clock
        self._tasks = tasks
        self._pause_seconds = lease_seconds / _RENEWALS
        self._held: dict[tuple[str, int], HeldLease] = {}
        self._leaving: list[Leaving] = []
        self._releasing: asyncio.Task[None] | None = None
        self._renewing: asyncio.Task[None] | None = None

    def hold(
        self,
        key: str,
        token: int,
        recorder: Recorder | None = None,
        *,
        stored_lately: bool = False,
    ) -> HeldLease:
        """A lease that was acquired; it is kept from now on."""
        lease = HeldLease(self, key, token, recorder, stored_lately=stored_lately)
        self._held[key, token] = lease
        if self._renewing is None:
            self._renewing = self._tasks.start(self._renew(), name="lease-renewal")
        return lease

    def find(self, key: str, token: int) -> HeldLease | None:
        """The lease, if it is held here."""
        return self._held.get((key, token))

    async def release(self, lease: HeldLease, end: FlightEnd) -> None:
        """Let go; returns when the medium knows, or can't be told. Goes on when cancelled."""
        await asyncio.shield(lease.released or self._leave(lease, end))

    async def release_all(self) -> None:
        """Let go of everything, as abandoned."""
        for lease in list(self._held.values()):
            self._leave(lease, FlightEnd.ABANDONED)
        if self._releasing is not None:
            await asyncio.wait({self._releasing}, timeout=_CLOSING_SECONDS)

    async def renew_now(self) -> None:
        """Renew, and learn who is followed: messages may have been missed."""
        leases = list(self._held.values())
        for at in range(0, len(leases), _BATCH):
            batch = leases[at : at + _BATCH]
            with contextlib.suppress(StoreUnavailable):  # the next renewal may come in time
                for lease, kept in zip(batch, await self._table.renew(batch), strict=True):
                    self._learn(lease, kept)

    def _learn(self, lease: HeldLease, kept: int) -> None:
        if kept == Kept.LOST:
            lease.lost = True
            self._drop(lease)
        elif kept == Kept.WANTED:
            lease.want()

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._pause_seconds)
            # In a task of its own: when the last lease goes, this one is cancelled wherever it is.
            await asyncio.shield(self._tasks.start(self.renew_now(), name="lease-renewal"))

    def _drop(self, lease: HeldLease) -> None:
        self._held.pop((lease.key, lease.token), None)
        if not self._held and self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    def _leave(self, lease: HeldLease, end: FlightEnd) -> asyncio.Future[None]:
        lease.released = asyncio.get_running_loop().create_future()
        self._drop(lease)
        if lease.lost:
            lease.released.set_result(None)
        else:
            self._leaving.append((lease, end))
            if self._releasing is None:
                # A task: all that is released in one turn of the loop goes together.
                self._releasing = self._tasks.start(self._release(), name="lease-release")
        return lease.released

    async def _release(self) -> None:
        try:
            while self._leaving:
                batch = self._leaving[:_BATCH]
                with contextlib.suppress(StoreUnavailable):  # the leases run out by themselves
                    await self._table.release(batch)
                del self._leaving[: len(batch)]
                _settle(batch)
        finally:
            self._releasing = None
            _settle(self._leaving)


def _settle(batch: Sequence[Leaving]) -> None:
    for lease, _ in batch:
        if lease.released is not None and not lease.released.done():
            lease.released.set_result(None)
