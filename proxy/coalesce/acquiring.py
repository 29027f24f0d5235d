"""Acquisitions: many at once in one round trip, none waited for too long, no lease left behind.

What is asked in one turn of the loop goes together, as does what is asked while all round trips
that there may be are under way. A round trip is never cut off: what it gets for a caller who has
gone, or was told that it took too long, is let go of.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from proxy.backends.deadline import deadline
from proxy.coalesce.base import FlightEnd, Followed, Lease
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

Acquired: TypeAlias = list[Lease | Followed]

_BATCH_KEYS: Final = 500  # the medium does nothing else meanwhile
_MOST_TRIPS: Final = 3


class Acquisitions:
    """Those under way. `acquire` is a round trip; it raises StoreUnavailable and no else."""

    def __init__(
        self,
        acquire: Callable[[Sequence[str]], Awaitable[Acquired]],
        tasks: TaskGroup,
        *,
        timeout_seconds: float,
    ) -> None:
        self._acquire = acquire
        self._tasks = tasks
        self._timeout_seconds = timeout_seconds
        self._queue: list[tuple[Sequence[str], asyncio.Future[Acquired]]] = []
        self._trips: set[asyncio.Task[None]] = set()
        self._is_departing = False

    def __bool__(self) -> bool:
        return bool(self._trips)

    async def wait(self, keys: Sequence[str]) -> Acquired:
        """What there is for `keys`. Raises StoreUnavailable, also where that takes too long."""
        asked: asyncio.Future[Acquired] = asyncio.get_running_loop().create_future()
        self._queue.append((keys, asked))
        self._depart()
        try:
            async with deadline(self._timeout_seconds):
                return await asked
        except TimeoutError:
            self._missed(asked)
            raise StoreUnavailable(f"no answer within {self._timeout_seconds:g} s") from None
        except asyncio.CancelledError:
            self._missed(asked)
            raise

    async def settle(self) -> None:
        """Wait until all have come to an end."""
        while self._trips:
            await asyncio.wait(self._trips)

    def _depart(self) -> None:
        if not self._is_departing and len(self._trips) < _MOST_TRIPS:
            self._is_departing = True
            trip: asyncio.Task[None] = self._tasks.start(self._travel(), name="lease-acquire")
            self._trips.add(trip)
            trip.add_done_callback(self._trips.discard)

    async def _travel(self) -> None:
        self._is_departing = False
        while self._queue:
            batch = [self._queue.pop(0)]
            size = len(batch[0][0])
            while self._queue and size + len(self._queue[0][0]) <= _BATCH_KEYS:
                batch.append(self._queue.pop(0))
                size += len(batch[-1][0])
            try:
                got = await self._acquire([key for keys, _ in batch for key in keys])
            except StoreUnavailable as error:
                for _, asked in batch:
                    if not asked.done():
                        asked.set_exception(StoreUnavailable(error.message))
            else:
                rest = iter(got)
                for keys, asked in batch:
                    of_these = [next(rest) for _ in keys]
                    if asked.done():  # nobody waits any more
                        self._let_go(of_these)
                    else:
                        asked.set_result(of_these)

    def _missed(self, asked: asyncio.Future[Acquired]) -> None:
        """Whoever asked is gone; what came in the same moment is not to be kept."""
        if asked.done() and not asked.cancelled() and asked.exception() is None:
            self._let_go(asked.result())

    def _let_go(self, acquired: Acquired) -> None:
        for got in acquired:
            if not isinstance(got, Followed):
                self._tasks.start(got.release(FlightEnd.ABANDONED), name="lease-return")
