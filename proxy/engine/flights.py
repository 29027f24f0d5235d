"""All flights of one worker: who asks the same at once finds the one that is under way (B40)."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial

from proxy.clock import Clock
from proxy.coalesce.base import Coalescer, FlightEnd, Followed, Lease
from proxy.core.decision import Hit, after_lookup
from proxy.core.entry import Entry
from proxy.core.marks import Verdict
from proxy.core.rules import Coalescing, OnDisconnect
from proxy.engine.base import FlightObserver
from proxy.engine.entries import Entries
from proxy.engine.flight import Flight
from proxy.engine.following import Following, share
from proxy.engine.generations import Generations
from proxy.engine.leading import Leader
from proxy.engine.plan import Plan
from proxy.errors import ProxyError, StoreError, UpstreamError, UpstreamProtocolError
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.flights")

TASK = "flight"
# For how long a client that does not read may hold up others elsewhere, who wait for the entry.
_PATIENCE_SECONDS = 5.0


class Errand(StrEnum):
    """Why a flight starts. A client joins those for a miss, a better answer and a refresh."""

    MISS = "miss"  # there is no fresh entry
    BETTER = "better"  # the entry is fresh, but too old for this client, or can't take its form
    REFRESH = "refresh"  # the entry is to be replaced while it serves
    PROBE = "probe"  # the same, to see whether the upstream works again: it may hang
    RENEWAL = "renewal"  # the client wants a new answer, whatever there is
    ALONE = "alone"  # the shared answer could not be had
    BYPASS = "bypass"  # the cache is not asked, nor told


_JOINABLE = frozenset({Errand.MISS, Errand.BETTER, Errand.REFRESH})
_UNATTENDED = frozenset({Errand.REFRESH, Errand.PROBE})


class Watch:
    """A look-up under way; `stored` says that a flight for its key was stored meanwhile."""

    __slots__ = ("stored",)

    def __init__(self) -> None:
        self.stored = False


class Flights:
    """The flights that may be joined, by store key; lives as long as the process."""

    def __init__(
        self,
        entries: Entries,
        generations: Generations,
        clock: Clock,
        tasks: TaskGroup,
        observer: FlightObserver,
        coalescer: Coalescer | None = None,
    ) -> None:
        self._entries = entries
        self._generations = generations
        self._clock = clock
        self._tasks = tasks
        self._observer = observer
        self._coalescer = coalescer
        self._table: dict[str, Flight] = {}
        self._watches: dict[str, list[Watch]] = {}

    def __len__(self) -> int:
        """How many may be joined now."""
        return len(self._table)

    def joinable(self, key: str) -> Flight | None:
        """The flight for `key`, unless it is given up, its beginning is gone, or it is purged."""
        flight = self._table.get(key)
        if flight is None or flight.end is not None or not flight.body.is_whole:
            return None
        return flight if self._generations.verdict(flight) is Verdict.LIVE else None

    @contextmanager
    def watching(self, key: str) -> Iterator[Watch]:
        """Around a look-up of `key`, which may miss what is stored while it is on its way."""
        watch = Watch()
        self._watches.setdefault(key, []).append(watch)
        try:
            yield watch
        finally:
            watches = self._watches[key]
            watches.remove(watch)
            if not watches:
                del self._watches[key]

    def start(self, leader: Leader, plan: Plan, key: str | None, errand: Errand) -> Flight:
        """A new flight, under way; `key` None for an answer that is never stored.

        Whoever starts it boards it before waiting for anything, or leaves it unattended.
        """
        rule = plan.derivation.rule
        joins = finishes = False
        if key is not None and rule is not None and plan.is_kept:
            joins = errand in _JOINABLE and rule.coalesce is not Coalescing.OFF
            finishes = errand in _UNATTENDED or rule.on_disconnect is OnDisconnect.FINISH
        now = self._clock.wall()
        refreshes = errand in _UNATTENDED
        flight = Flight(
            plan, key, shared=joins, finishes=finishes, refreshes=refreshes, stored_at=now
        )
        if joins and rule is not None:
            # Where an older one is under way that can't be joined, its lease is held here.
            is_first = flight.key not in self._table
            flight.asks_others = is_first and rule.coalesce is Coalescing.SHARED
            self._table[flight.key] = flight
        flight.task = self._tasks.start(self._fly(flight, leader, errand), name=TASK)
        flight.task.add_done_callback(lambda _: self._ended(flight, errand))
        return flight

    async def _fly(self, flight: Flight, leader: Leader, errand: Errand) -> None:
        try:
            if not await self._go_along(flight):
                lease = flight.lease
                await leader.fly(
                    flight,
                    replaces=errand is not Errand.MISS,
                    void=lambda: lease is not None and lease.lost,
                    landed=lambda: self._landed(flight),
                )
        except UpstreamError as error:
            flight.fail(error)
        except Exception:  # boundary: nobody may wait for an answer that will not come
            log.exception("a flight failed unexpectedly")
            flight.fail(ProxyError("The proxy failed to answer.", code="internal_error"))
        finally:
            flight.abandon()
            self._landed(flight)

    async def _go_along(self, flight: Flight) -> bool:
        """Follow whoever leads elsewhere to the end: True. Else it is ours to lead: False."""
        while (got := await self._claim(flight)) is not None:
            if not isinstance(got, Followed):
                flight.lease = got
                flight.patience_seconds = _PATIENCE_SECONDS
                got.when_wanted(partial(self._share, flight, got))
                return got.stored_lately and await self._is_there(flight)
            flight.collapsed = True
            end = await self._follow(flight, got)
            if end is FlightEnd.STORED or end is FlightEnd.UNCACHEABLE:
                return True
            flight.collapsed = False
            if end is FlightEnd.FAILED:
                return False  # without a lease: all who wait try at once, not one after another
        return False

    async def _claim(self, flight: Flight) -> Lease | Followed | None:
        if self._coalescer is None or not flight.asks_others:
            return None
        try:
            (got,) = await self._coalescer.acquire([flight.key])
        except StoreError:
            return None
        return got

    async def _is_there(self, flight: Flight) -> bool:
        """Whether an entry has come since it was looked for; then that is the end."""
        found = await self._entries.get_latest(flight.key)
        if not isinstance(found, Entry) or not self._serves(flight, found):
            return False
        flight.collapsed = True
        flight.land(FlightEnd.STORED, found)
        return True

    def _serves(self, flight: Flight, found: Entry) -> bool:
        """Whether the client may have this entry, by now: it may be one that it found too old."""
        plan = flight.plan
        key, rule = plan.derivation.key, plan.derivation.rule
        assert key is not None
        assert rule is not None
        decided = after_lookup(key, found, plan.control, rule, now=self._clock.wall())
        return isinstance(decided, Hit)

    async def _follow(self, flight: Flight, followed: Followed) -> FlightEnd:
        try:
            end = await Following(flight, followed, self._generations, self._tasks).run()
        except StoreError:
            return FlightEnd.FAILED
        if end is FlightEnd.FAILED and flight.is_streaming:
            raise UpstreamProtocolError("The answer broke off upstream.")
        if end is FlightEnd.STORED or end is FlightEnd.UNCACHEABLE:
            found = await self._entries.get_latest(flight.key) if end is FlightEnd.STORED else None
            # An older one is what is there where the leader's could not be kept after all.
            is_there = isinstance(found, Entry) and self._serves(flight, found)
            if end is FlightEnd.STORED and not is_there and not flight.is_streaming:
                return FlightEnd.FAILED
            if flight.is_streaming:
                flight.feed.finish()
            else:
                flight.body.close()
            if isinstance(found, Entry) and is_there:
                flight.land(FlightEnd.STORED, found)
            else:
                flight.land(FlightEnd.UNCACHEABLE)
        return end

    def _share(self, flight: Flight, lease: Lease) -> None:
        """Somebody elsewhere follows: let them have what we get."""
        if flight.sharing is None:
            flight.sharing = self._tasks.start(share(flight, lease), name="flight-share")
            flight.sharing.add_done_callback(lambda _: flight.reconsider())

    def _landed(self, flight: Flight) -> None:
        """Take the flight out of the table, once; tell those who look up and those elsewhere."""
        if flight.end is None or flight.is_off_table:
            return
        flight.is_off_table = True
        if self._table.get(flight.key) is flight:
            del self._table[flight.key]
        if flight.end is FlightEnd.STORED:
            for watch in self._watches.get(flight.key, ()):
                watch.stored = True
        lease, flight.lease = flight.lease, None
        if lease is not None:
            self._tasks.start(self._release(flight, lease), name="lease-release")

    async def _release(self, flight: Flight, lease: Lease) -> None:
        assert flight.end is not None
        try:
            if flight.end is FlightEnd.STORED:
                await self._entries.settled([flight.key])
            if flight.sharing is not None:
                await asyncio.wait({flight.sharing})
        finally:
            await lease.release(flight.end)

    def _ended(self, flight: Flight, errand: Errand) -> None:
        """Tell of work that no client's account tells of."""
        flight.abandon()  # a task that is cancelled before its first step does not come to this
        self._landed(flight)
        if not (flight.is_told or flight.collapsed):
            settlement = flight.settlement
            usage = settlement.usage if settlement is not None else None
            purpose = "refresh" if errand in _UNATTENDED else "finish"
            assert flight.end is not None
            self._observer.finished_unattended(purpose, flight.end.value, flight.model, usage)
