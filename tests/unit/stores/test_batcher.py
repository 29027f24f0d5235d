"""Look-ups of one loop turn go out together, and stay apart for their callers."""

import asyncio
from collections.abc import Sequence

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.batcher import Batcher
from proxy.tasks import TaskGroup

pytestmark = pytest.mark.anyio


class Fetches:
    """Answers each key with itself and notes the batches."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fail = False
        self.surprise = False
        self.began = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, keys: Sequence[str]) -> list[bytes | None]:
        self.batches.append(list(keys))
        self.began.set()
        await self.gate.wait()
        if self.surprise:
            raise ValueError("nobody declared this")
        if self.fail or "bad" in keys:
            raise StoreUnavailable("down")
        return [key.encode() for key in keys]


@pytest.fixture
def fetches() -> Fetches:
    return Fetches()


@pytest.fixture
def tasks() -> TaskGroup:
    return TaskGroup()


@pytest.fixture
def batcher(fetches: Fetches, tasks: TaskGroup) -> Batcher:
    return Batcher(fetches, tasks, batch_keys=4)


async def test_the_look_ups_of_one_turn_are_one_batch(batcher: Batcher, fetches: Fetches) -> None:
    values = await asyncio.gather(*(batcher.get_many([key]) for key in "abcd"))
    assert values == [[b"a"], [b"b"], [b"c"], [b"d"]]
    assert fetches.batches == [["a", "b", "c", "d"]]


async def test_a_batch_is_capped(batcher: Batcher, fetches: Fetches) -> None:
    values = await asyncio.gather(*(batcher.get_many([key, key.upper()]) for key in "abcde"))
    assert values[4] == [b"e", b"E"]
    assert [len(batch) for batch in fetches.batches] == [4, 4, 2]


async def test_one_long_look_up_is_cut_into_batches(batcher: Batcher, fetches: Fetches) -> None:
    keys = [str(i) for i in range(10)]
    assert await batcher.get_many(keys) == [key.encode() for key in keys]
    assert [len(batch) for batch in fetches.batches] == [4, 4, 2]


async def test_look_ups_of_two_turns_are_two_batches(batcher: Batcher, fetches: Fetches) -> None:
    await batcher.get_many(["a"])
    await batcher.get_many(["b"])
    assert fetches.batches == [["a"], ["b"]]


async def test_no_keys_fetch_nothing(batcher: Batcher, fetches: Fetches) -> None:
    assert await batcher.get_many([]) == []
    assert fetches.batches == []


async def test_a_failure_reaches_every_caller_as_its_own(
    batcher: Batcher, fetches: Fetches
) -> None:
    fetches.fail = True
    gets = [batcher.get_many([key]) for key in "abc"]
    errors = await asyncio.gather(*gets, return_exceptions=True)
    assert [type(error) for error in errors] == [StoreUnavailable] * 3
    assert len({id(error) for error in errors}) == 3


async def test_B50_nobody_waits_for_a_look_up_that_failed_unexpectedly(
    batcher: Batcher, fetches: Fetches
) -> None:
    fetches.surprise = True
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(batcher.get_many(["a"]), 5)


async def test_B50_what_was_found_counts_where_a_part_of_a_long_look_up_fails(
    batcher: Batcher, fetches: Fetches
) -> None:
    keys = ["a", "b", "c", "d", "e", "bad", "f", "g", "h"]
    found = await batcher.get_many(keys)
    assert found == [b"a", b"b", b"c", b"d", None, None, None, None, b"h"]
    fetches.fail = True
    with pytest.raises(StoreUnavailable):
        await batcher.get_many(keys)


async def test_B50_a_long_look_up_has_a_few_batches_under_way_and_leaves_room_for_others(
    batcher: Batcher, fetches: Fetches
) -> None:
    fetches.gate.clear()
    keys = [f"{number}" for number in range(1_000)]
    long = asyncio.create_task(batcher.get_many(keys))
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(fetches.batches) == 8
    fetches.gate.set()
    assert await long == [key.encode() for key in keys]


async def test_B50_a_long_look_up_ends_with_the_first_batch_that_fails(
    batcher: Batcher, fetches: Fetches
) -> None:
    keys = [f"{number}" for number in range(40)] + ["bad"] + ["late"] * 60
    values = await batcher.get_many(keys)
    assert values[:40] == [key.encode() for key in keys[:40]]
    assert values[-4:] == [None] * 4
    assert len(fetches.batches) == 16


async def test_B50_a_long_look_up_ends_in_time(fetches: Fetches, tasks: TaskGroup) -> None:
    batcher = Batcher(fetches, tasks, batch_keys=4, longest_seconds=0.0)
    assert await batcher.get_many(["a"]) == [b"a"]
    assert await batcher.get_many(["a"] * 5) == [None] * 5


async def test_a_caller_that_goes_away_takes_nothing_from_the_others(
    batcher: Batcher, fetches: Fetches
) -> None:
    fetches.gate.clear()
    gone = asyncio.ensure_future(batcher.get_many(["a"]))
    stays = asyncio.ensure_future(batcher.get_many(["b"]))
    await fetches.began.wait()
    gone.cancel()
    await asyncio.sleep(0)
    fetches.gate.set()
    assert await stays == [b"b"]


async def test_callers_hear_of_it_when_the_work_is_ended(
    batcher: Batcher, fetches: Fetches, tasks: TaskGroup
) -> None:
    fetches.gate.clear()
    waits = asyncio.ensure_future(batcher.get_many(["a"]))
    await fetches.began.wait()
    await tasks.cancel()
    with pytest.raises(StoreUnavailable):
        await waits
