"""Batches of several workers and replicas: each item is asked for once among all of them."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.coalesce.base import FlightEnd
from proxy.core.rules import Coalescing
from proxy.engine.item_fetch import MOST_SHARED
from proxy.errors import UpstreamUnreachable
from tests.coalescing import FakeCoalescer, FakeMedium
from tests.unit.engine.batch_kit import RULE, Embedder, Worker, floats, packed, parsed
from tests.unit.engine.kit import FaultyStore
from tests.waiting import until

pytestmark = pytest.mark.anyio

NO_CACHE = (b"cache-control", b"no-cache")


class Two:
    """Two workers with one store, one medium, and one upstream that waits for its gate."""

    def __init__(self, upstream: Embedder | None = None, **settings: Any) -> None:
        self.medium = FakeMedium()
        self.store = FaultyStore()
        self.upstream = upstream or Embedder()
        self.upstream.gate = asyncio.Event()
        self.coalescers = [FakeCoalescer(self.medium), FakeCoalescer(self.medium)]
        self.one, self.other = (
            Worker(self.upstream, self.store, rule=replace(RULE, **settings), coalescer=coalescer)
            for coalescer in self.coalescers
        )

    def go_on(self) -> None:
        assert self.upstream.gate is not None
        self.upstream.gate.set()

    async def stop(self) -> None:
        await self.one.stop()
        await self.other.stop()


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    two = Two()
    yield two
    await two.stop()


async def under_way(worker: Worker, items: list[str]) -> "asyncio.Task[Any]":
    """A request that has come to where it waits."""
    task = asyncio.create_task(worker.ask(items))
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def check(task: "asyncio.Task[Any]", *items: str) -> None:
    rows = parsed(await task)["data"]
    assert [row["embedding"] for row in rows] == [floats(packed(item)) for item in items]


async def test_B50_very_many_items_are_asked_for_without_leases(two: Two) -> None:
    two.go_on()
    most = [f"{number}" for number in range(MOST_SHARED)]
    await two.one.ask([*most, "one more"])
    assert two.medium.acquired == 0
    await two.one.ask([f"other {item}" for item in most])
    assert two.medium.acquired == 1


async def test_B30_B40_an_item_that_another_worker_asks_for_is_waited_for(two: Two) -> None:
    first = await under_way(two.one, ["a", "b"])
    second = await under_way(two.other, ["b", "c", "a"])
    two.go_on()
    await check(first, "a", "b")
    await check(second, "b", "c", "a")
    assert two.upstream.sent == [["a", "b"], ["c"]]
    outcome = two.other.witness.outcomes[-1]
    assert (outcome.items_collapsed, outcome.item_hits) == (2, 0)
    assert two.medium.acquired == 2
    await until(lambda: not two.medium.held)


async def test_B40_leases_are_released_as_stored_once_the_store_has_the_entries(two: Two) -> None:
    two.store.stalled = {"put"}
    first = await under_way(two.one, ["a", "b"])
    two.go_on()
    await check(first, "a", "b")
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(two.medium.held) == 2
    two.store.gate.set()
    await until(lambda: not two.medium.held)
    assert {flight.end for flight in two.medium.flights} == {FlightEnd.STORED}


async def test_B41_what_the_other_worker_could_not_get_is_asked_for_here(two: Two) -> None:
    first = await under_way(two.one, ["a", "b"])
    second = await under_way(two.other, ["b", "c"])
    two.upstream.says = lambda items: (
        UpstreamUnreachable("refused") if items == ["a", "b"] else None
    )
    two.go_on()
    with pytest.raises(UpstreamUnreachable):
        await first
    await check(second, "b", "c")
    assert two.upstream.sent == [["a", "b"], ["c"], ["b"]]
    await until(lambda: not two.medium.held)


async def test_B41_the_items_of_a_worker_that_died_are_asked_for_here(two: Two) -> None:
    await under_way(two.one, ["a", "b"])
    second = await under_way(two.other, ["b", "a"])
    two.medium.die(two.coalescers[0])
    two.go_on()
    await check(second, "b", "a")
    # Nothing of the request was asked for but what the other one had: the body goes as it is.
    assert two.upstream.sent == [["a", "b"], ["b", "a"]]


async def test_B41_a_lease_that_was_lost_stores_nothing(two: Two) -> None:
    first = await under_way(two.one, ["a", "b"])
    two.medium.lose(two.one.plan(["a", "x"])[1].store_keys("p:")[0])
    two.go_on()
    await check(first, "a", "b")
    assert two.one.witness.outcomes[-1].not_stored == "lease-lost"
    await two.one.settled()
    assert len(two.store.values) == 1


async def test_B41_an_answer_that_may_not_be_kept_is_asked_for_by_each() -> None:
    two = Two(honor_upstream=True)
    two.upstream.headers = (*two.upstream.headers, (b"cache-control", b"no-store"))
    first = await under_way(two.one, ["a", "b"])
    second = await under_way(two.other, ["a", "b"])
    two.go_on()
    await check(first, "a", "b")
    await check(second, "a", "b")
    assert len(two.upstream.sent) == 2
    assert {flight.end for flight in two.medium.flights} == {FlightEnd.UNCACHEABLE}
    await two.stop()


async def test_B50_with_the_medium_down_each_goes_alone(two: Two) -> None:
    two.medium.go_down()
    first = await under_way(two.one, ["a", "b"])
    second = await under_way(two.other, ["a", "b"])
    two.go_on()
    await check(first, "a", "b")
    await check(second, "a", "b")
    assert len(two.upstream.sent) == 2


async def test_B50_a_medium_that_goes_down_while_waiting_fails_nobody(two: Two) -> None:
    first = await under_way(two.one, ["a", "b"])
    second = await under_way(two.other, ["b", "c"])
    two.medium.go_down()
    two.go_on()
    await check(first, "a", "b")
    await check(second, "b", "c")
    assert two.upstream.sent == [["a", "b"], ["c"], ["b"]]


@pytest.mark.parametrize("coalesce", [Coalescing.LOCAL, Coalescing.OFF])
async def test_B40_a_rule_may_not_ask_other_workers(coalesce: Coalescing) -> None:
    two = Two(coalesce=coalesce)
    two.go_on()
    await two.one.ask(["a", "b"])
    assert two.medium.acquired == 0
    await two.stop()


async def test_B40_hits_and_no_cache_requests_acquire_nothing(two: Two) -> None:
    two.go_on()
    await two.one.ask(["a", "b"])
    await two.one.ask(["b", "a"])
    await two.one.ask(["b", "a"], NO_CACHE)
    assert two.medium.acquired == 1


async def test_B42_a_client_may_go_away_at_any_moment_and_no_lease_stays() -> None:
    for turn in range(40):
        two = Two()
        two.go_on()
        leaving = asyncio.create_task(two.one.ask(["a", "b", "a"]))
        staying = asyncio.create_task(two.other.ask(["b", "c"]))
        for _ in range(turn):
            await asyncio.sleep(0)
        leaving.cancel()
        await check(staying, "b", "c")
        await asyncio.gather(leaving, return_exceptions=True)
        await two.one.fetching.drain(5)
        await two.other.fetching.drain(5)
        assert not two.medium.held
        await two.stop()


@pytest.mark.parametrize("max_batch", [None, 1])
async def test_B44_no_lease_stays_when_a_worker_stops_at_any_moment(max_batch: int | None) -> None:
    for turn in range(30):
        two = Two(Embedder(max_batch=max_batch))
        asking = asyncio.create_task(two.one.ask(["a", "b"]))
        for _ in range(turn):
            await asyncio.sleep(0)
        await two.one.fetching.cancel()  # what is released is released in the background
        two.go_on()
        await asyncio.gather(asking, return_exceptions=True)
        await two.one.fetching.drain(5)
        assert not two.medium.held
        await two.stop()


async def test_B41_whoever_asks_alone_acquires_nothing(two: Two) -> None:
    first = await under_way(two.one, ["a", "b"])
    second = await under_way(two.one, ["b", "c"])
    two.upstream.says = lambda items: (
        UpstreamUnreachable("refused") if items == ["a", "b"] else None
    )
    two.go_on()
    with pytest.raises(UpstreamUnreachable):
        await first
    await check(second, "b", "c")
    assert two.medium.acquired == 2
