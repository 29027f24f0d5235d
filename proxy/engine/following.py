"""Following a flight that another worker or replica leads: its records become ours."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, cast

from proxy.coalesce.base import FlightEnd, Followed, FollowEvent, Landed, Lease, Published
from proxy.core.marks import Verdict
from proxy.core.sse import WholeEvents
from proxy.engine.flight import Flight
from proxy.engine.generations import Generations
from proxy.engine.records import Ended, Headed, Piece, Record, read_record, written
from proxy.errors import CutOff, FellBehind, StoreError, UpstreamError
from proxy.tasks import TaskGroup


async def share(flight: Flight, lease: Lease) -> None:
    """Publish a streamed flight to followers elsewhere, from its first byte to its last event.

    Where that can't be done they hear no end of the stream, and help themselves.
    """
    try:
        head = await flight.headed()
        if head is None or not head.is_stream or head.is_opaque or not flight.body.is_whole:
            return  # they wait for the entry
        await _publish(flight, lease, Headed.of(flight, head))
    except (StoreError, UpstreamError, CutOff):
        return


async def _publish(flight: Flight, lease: Lease, headed: Headed) -> None:
    reader = flight.body.reader(trimmed=False)
    try:
        records: list[Record] = [headed]
        while not isinstance(records[-1], Ended):
            await lease.publish([written(record) for record in records])
            chunk = await reader.read()
            records = [] if chunk is None else [Piece(chunk)]
            if chunk is None or reader.has_terminal:
                settlement = flight.settlement
                records.append(Ended(settlement.usage if settlement is not None else None))
        await lease.publish([written(record) for record in records])
    finally:
        reader.leave()


class Following:
    """One flight's way along a leader elsewhere."""

    def __init__(
        self, flight: Flight, followed: Followed, generations: Generations, tasks: TaskGroup
    ) -> None:
        self._flight = flight
        self._followed = followed
        self._generations = generations
        self._tasks = tasks
        self._events: WholeEvents | None = None
        self._is_whole = False

    async def run(self) -> FlightEnd:
        """Hand on what the leader publishes until it lands.

        Followed live from the moment on at which somebody wants a stream. Raises `StoreError` where
        it can't be had, and `UpstreamProtocolError` where a stream has begun that this leader's
        does not go on with.
        """
        if not self._flight.wanted_live.is_set():
            end = await self._end_unless_wanted_live()
            if end is not None:
                return self._checked(end)
        async with _closing(self._followed, live=True) as events:
            async for event in events:
                match event:
                    case Published(records=records):
                        for record in records:
                            await self._take(read_record(record))
                            await self._flight.body.room()
                    case Landed(end=end):
                        return self._checked(end)
        return FlightEnd.ABANDONED

    def _checked(self, end: FlightEnd) -> FlightEnd:
        """What the end means for those who read the stream: it is whole only if that was said."""
        if self._is_whole:
            return end if end is FlightEnd.STORED else FlightEnd.UNCACHEABLE
        if self._flight.is_streaming and end in {FlightEnd.STORED, FlightEnd.UNCACHEABLE}:
            raise FellBehind("the leader has landed, and not all of its stream has come")
        return end

    async def _end_unless_wanted_live(self) -> FlightEnd | None:
        ending = self._tasks.start(self._end(), name="flight-end", awaited=True)
        wanting = self._flight.wanted_live.wait()
        wanted = self._tasks.start(wanting, name="flight-live", awaited=True)
        both: set[asyncio.Task[Any]] = {ending, wanted}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            return ending.result() if ending.done() else None
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)

    async def _end(self) -> FlightEnd:
        async with _closing(self._followed, live=False) as events:
            async for event in events:
                if isinstance(event, Landed):
                    return event.end
        return FlightEnd.ABANDONED

    async def _take(self, record: Record) -> None:
        flight = self._flight
        match record:
            case Headed(call, head):
                if self._generations.verdict(call) is not Verdict.LIVE:
                    raise FellBehind("a purge has come between")
                flight.begin(head)
                self._events = WholeEvents()
                await flight.reading()
            case Piece(raw) if self._events is not None:
                flight.feed.take(self._events.feed(raw))
            case Ended(usage) if self._events is not None:
                self._is_whole = True
                flight.usage = usage
                flight.feed.take(self._events.flush(), terminal=True)
            case _:
                raise FellBehind("the leader's stream has no beginning")


def _closing(
    followed: Followed, *, live: bool
) -> AbstractAsyncContextManager[AsyncGenerator[FollowEvent, None]]:
    """The events, let go of at once when nobody wants more."""
    return aclosing(cast("AsyncGenerator[FollowEvent, None]", followed.events(live=live)))
