"""A `Coalescer` within one process: several of them over one `FakeMedium` are several workers."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from proxy.coalesce.base import FlightEnd, Followed, FollowEvent, Landed, Lease, Published
from proxy.errors import FellBehind, StoreUnavailable


class FakeFlight:
    """What the medium knows of one lease: who has it, what was published, how it ended."""

    def __init__(self, key: str, token: int) -> None:
        self.key = key
        self.token = token
        self.records: list[bytes] = []
        self.gone = 0
        self.end: FlightEnd | None = None
        self.wanted = False
        self.lost = False
        self.callback: Callable[[], None] | None = None
        self.changed = asyncio.Event()

    def change(self) -> None:
        """Wake all who follow."""
        self.changed.set()
        self.changed = asyncio.Event()

    def want(self) -> None:
        self.wanted = True
        self.tell()

    def tell(self) -> None:
        if self.wanted and self.callback is not None:
            callback, self.callback = self.callback, None
            callback()

    def finish(self, end: FlightEnd) -> None:
        if self.end is None:
            self.end = end
            self.change()


class FakeMedium:
    """What the coalescers share; tests read it and do harm to it.

    `acquired` counts the round trips. `held` has the flights under way, by key; `flights` all.
    `stored_lately` has the keys of which whoever acquires one next is told so; tests let time pass
    by clearing it.
    """

    def __init__(self) -> None:
        self.held: dict[str, FakeFlight] = {}
        self.stored_lately: set[str] = set()
        self.flights: list[FakeFlight] = []
        self.acquired = 0
        self.is_down = False
        self._gate = asyncio.Event()
        self._gate.set()
        self._token = 0

    # What tests do to it.

    def go_down(self) -> None:
        """From now on everything raises StoreUnavailable, also what is under way."""
        self.is_down = True
        self._gate.set()
        for flight in self.flights:
            flight.change()

    def come_back(self, *, empty: bool = False) -> None:
        """Works again; `empty`, it has lost everything, as a Redis that was restarted."""
        self.is_down = False
        if empty:
            for key in list(self.held):
                self.lose(key)

    def stall(self) -> None:
        """From now on `acquire` and `publish` hang, until `resume` or `go_down`."""
        self._gate.clear()

    def resume(self) -> None:
        self._gate.set()

    def lose(self, key: str) -> None:
        """The lease runs out although its holder lives, who learns it; followers may take over."""
        flight = self.held.pop(key)
        flight.lost = True
        flight.finish(FlightEnd.ABANDONED)

    def die(self, coalescer: "FakeCoalescer") -> None:
        """The worker is gone without a word, and its leases have run out."""
        coalescer.dead = True
        for lease in list(coalescer.leases):
            if self.held.get(lease.key) is lease.flight:
                self.lose(lease.key)

    def forget(self, key: str, records: int) -> None:
        """The first `records` of what was published are trimmed away."""
        flight = self.held[key]
        flight.gone = records
        flight.change()

    def lead(self, key: str) -> FakeFlight:
        """Somebody else holds the key, for a test that plays the leader by hand."""
        self._token += 1
        flight = FakeFlight(key, self._token)
        self.held[key] = flight
        self.flights.append(flight)
        return flight

    def land(self, key: str, end: FlightEnd) -> None:
        """The lease on `key` is released, by whomever."""
        self.held.pop(key).finish(end)

    # What coalescers do.

    async def ready(self) -> None:
        await self._gate.wait()
        self.check()

    def check(self) -> None:
        if self.is_down:
            raise StoreUnavailable("the medium is down")


class FakeLease:
    """A `Lease`; `released` lists each release as it was asked for."""

    def __init__(
        self, coalescer: "FakeCoalescer", flight: FakeFlight, *, stored_lately: bool
    ) -> None:
        self._coalescer = coalescer
        self._medium = coalescer.medium
        self.flight = flight
        self.stored_lately = stored_lately
        self.released: list[FlightEnd] = []

    @property
    def key(self) -> str:
        return self.flight.key

    @property
    def token(self) -> int:
        return self.flight.token

    @property
    def lost(self) -> bool:
        return self.flight.lost

    def when_wanted(self, callback: Callable[[], None]) -> None:
        self.flight.callback = callback
        self.flight.tell()

    async def publish(self, records: Sequence[bytes]) -> None:
        await self._medium.ready()
        self.flight.records.extend(records)
        self.flight.change()

    async def release(self, end: FlightEnd) -> None:
        self.released.append(end)
        self._coalescer.leases.discard(self)
        if self._medium.held.get(self.key) is self.flight:
            del self._medium.held[self.key]
            if end is FlightEnd.STORED:
                self._medium.stored_lately.add(self.key)
            self.flight.finish(end)


class FakeFollowed(Followed):
    """Its `events` wait for the flight to change."""

    def __init__(self, medium: FakeMedium, flight: FakeFlight) -> None:
        super().__init__(flight.key, flight.token)
        self._medium = medium
        self._flight = flight

    async def events(self, *, live: bool) -> AsyncIterator[FollowEvent]:
        flight = self._flight
        self._medium.check()
        if live:
            flight.want()
        read = 0
        while True:
            changed = flight.changed
            self._medium.check()
            if live and read < len(flight.records):
                if flight.gone > read:
                    raise FellBehind("records are gone that were not read yet")
                records = flight.records[read:]
                read += len(records)
                yield Published(records)
            elif flight.end is not None:
                yield Landed(flight.end)
                return
            else:
                await changed.wait()


class FakeCoalescer:
    """One worker's end of a `FakeMedium`."""

    def __init__(self, medium: FakeMedium | None = None) -> None:
        self.medium = medium or FakeMedium()
        self.leases: set[FakeLease] = set()
        self.is_open = False
        self.dead = False

    async def open(self) -> None:
        self.is_open = True

    async def acquire(self, keys: Sequence[str]) -> list[Lease | Followed]:
        assert len(set(keys)) == len(keys), "keys are distinct"
        await self.medium.ready()
        self.medium.acquired += 1
        return [self._acquire(key) for key in keys]

    def _acquire(self, key: str) -> Lease | Followed:
        if (held := self.medium.held.get(key)) is not None:
            return FakeFollowed(self.medium, held)
        lately = self.medium.stored_lately
        lease = FakeLease(self, self.medium.lead(key), stored_lately=key in lately)
        lately.discard(key)
        self.leases.add(lease)
        return lease

    async def close(self) -> None:
        self.is_open = False
        if not self.dead:
            for lease in list(self.leases):
                await lease.release(FlightEnd.ABANDONED)
