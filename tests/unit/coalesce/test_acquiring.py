"""Acquisitions by themselves: what goes together, and what is let go of."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.coalesce.acquiring import Acquired, Acquisitions
from proxy.coalesce.base import FlightEnd, Followed
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup
from tests.coalescing import FakeCoalescer, FakeMedium
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Trips:
    """A medium whose round trips a test counts, holds up and lets fail."""

    def __init__(self) -> None:
        self.medium = FakeMedium()
        self.made: list[list[str]] = []
        self.error: StoreUnavailable | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._worker = FakeCoalescer(self.medium)

    async def acquire(self, keys: Sequence[str]) -> Acquired:
        self.made.append(list(keys))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await self._worker.acquire(keys)


@pytest.fixture
async def tasks() -> AsyncIterator[TaskGroup]:
    group = TaskGroup()
    yield group
    await group.cancel()


@pytest.fixture
def trips() -> Trips:
    return Trips()


@pytest.fixture
def acquisitions(trips: Trips, tasks: TaskGroup) -> Acquisitions:
    return Acquisitions(trips.acquire, tasks, timeout_seconds=5.0)


async def test_what_is_asked_in_one_turn_of_the_loop_is_one_round_trip(
    trips: Trips, acquisitions: Acquisitions
) -> None:
    asked = [["a"], ["b", "c"], [], ["d"]]
    got = await asyncio.gather(*(acquisitions.wait(keys) for keys in asked))
    assert trips.made == [["a", "b", "c", "d"]]
    assert [[each.key for each in one] for one in got] == asked


async def test_what_is_asked_while_all_round_trips_are_under_way_waits_for_the_next(
    trips: Trips, acquisitions: Acquisitions
) -> None:
    trips.gate.clear()
    waiting = []
    for i in range(20):
        waiting.append(asyncio.ensure_future(acquisitions.wait([f"k{i}"])))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert len(trips.made) == 3
    trips.gate.set()
    got = await asyncio.gather(*waiting)
    assert [one[0].key for one in got] == [f"k{i}" for i in range(20)]
    assert len(trips.made) == 4
    assert not acquisitions


async def test_a_round_trip_is_no_longer_than_the_medium_likes(
    trips: Trips, acquisitions: Acquisitions
) -> None:
    many = [f"m{i}" for i in range(800)]
    asked = [many, *([f"k{i}"] for i in range(600))]
    await asyncio.gather(*(acquisitions.wait(keys) for keys in asked))
    assert [len(keys) for keys in trips.made] == [800, 500, 100]


async def test_B50_a_round_trip_that_fails_fails_for_all_and_the_next_one_is_made(
    trips: Trips, acquisitions: Acquisitions
) -> None:
    trips.error = StoreUnavailable("away")
    failed = await asyncio.gather(
        *(acquisitions.wait([key]) for key in "abc"), return_exceptions=True
    )
    assert [str(error) for error in failed] == ["away"] * 3
    assert len({id(error) for error in failed}) == 3
    trips.error = None
    assert await acquisitions.wait(["a"])


async def test_what_comes_too_late_or_for_nobody_is_let_go_of(
    trips: Trips, tasks: TaskGroup
) -> None:
    acquisitions = Acquisitions(trips.acquire, tasks, timeout_seconds=0.02)
    trips.gate.clear()
    trips.medium.lead("held")
    gone = asyncio.ensure_future(acquisitions.wait(["gone"]))
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(StoreUnavailable, match="no answer within"):
        await acquisitions.wait(["late", "held"])
    trips.gate.set()
    await acquisitions.settle()
    await until(lambda: list(trips.medium.held) == ["held"])
    ends = {flight.key: flight.end for flight in trips.medium.flights}
    assert ends == {"gone": FlightEnd.ABANDONED, "late": FlightEnd.ABANDONED, "held": None}


async def test_B50_a_failure_that_comes_for_nobody_is_no_news(
    trips: Trips, tasks: TaskGroup
) -> None:
    acquisitions = Acquisitions(trips.acquire, tasks, timeout_seconds=0.02)
    trips.gate.clear()
    trips.error = StoreUnavailable("away")
    with pytest.raises(StoreUnavailable, match="no answer within"):
        await acquisitions.wait(["late"])
    trips.gate.set()
    await acquisitions.settle()
    trips.error = None
    (again,) = await acquisitions.wait(["late"])
    assert not isinstance(again, Followed)


async def test_what_comes_in_the_moment_in_which_its_caller_goes_is_let_go_of(
    trips: Trips, tasks: TaskGroup
) -> None:
    async def acquire(keys: Sequence[str]) -> Acquired:
        got = await trips.acquire(keys)
        asyncio.get_running_loop().call_soon(gone.cancel)  # before the caller is woken
        return got

    acquisitions = Acquisitions(acquire, tasks, timeout_seconds=5.0)
    gone = asyncio.ensure_future(acquisitions.wait(["k"]))
    with pytest.raises(asyncio.CancelledError):
        await gone
    await until(lambda: not trips.medium.held)
    assert [flight.end for flight in trips.medium.flights] == [FlightEnd.ABANDONED]
