"""A crowd begins in its order, so many in a turn; nobody alone waits."""

import asyncio

import pytest

from proxy.edge.admission import Admission

pytestmark = pytest.mark.anyio


def coming(admission: Admission, count: int) -> tuple[list[int], list[asyncio.Task[None]]]:
    begun: list[int] = []

    async def come(number: int) -> None:
        await admission.enter()
        begun.append(number)

    loop = asyncio.get_running_loop()
    return begun, [loop.create_task(come(number)) for number in range(count)]


async def test_whoever_comes_alone_begins_at_once() -> None:
    admission = Admission(per_turn=1)
    for _ in range(3):
        entering = admission.enter()
        with pytest.raises(StopIteration):
            entering.send(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_crowd_begins_in_order_and_so_many_in_a_turn() -> None:
    begun, tasks = coming(Admission(per_turn=4), 10)
    most, before = 0, 0
    while len(begun) < 10:
        await asyncio.sleep(0)
        most, before = max(most, len(begun) - before), len(begun)
    await asyncio.gather(*tasks)
    assert begun == list(range(10))
    assert most == 4


async def test_who_comes_later_does_not_overtake_those_who_wait() -> None:
    admission = Admission(per_turn=2)
    begun, first = coming(admission, 5)
    await asyncio.sleep(0)
    later, second = coming(admission, 1)
    while not later:  # noqa: ASYNC110 - turns of the loop are what is counted
        await asyncio.sleep(0)
    assert begun == [0, 1, 2, 3, 4]
    await asyncio.gather(*first, *second)


async def test_a_client_that_goes_while_it_waits_takes_nobodys_turn() -> None:
    begun, tasks = coming(Admission(per_turn=1), 4)
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert begun == [0, 2, 3]


async def test_who_begins_at_once_counts_among_those_of_the_turn() -> None:
    admission = Admission(per_turn=3)
    begun, tasks = coming(admission, 4)
    admission.enter_now()
    assert admission.has_room
    await asyncio.sleep(0)
    assert begun == [0, 1]
    await asyncio.gather(*tasks)
    assert begun == [0, 1, 2, 3]


async def test_who_begins_at_once_does_not_overtake_those_who_wait() -> None:
    admission = Admission(per_turn=2)
    begun, tasks = coming(admission, 7)
    room = []
    while len(begun) < 7:
        await asyncio.sleep(0)
        waiting = len(begun) < 6  # the last one leaves a place free
        room.append(admission.has_room and waiting)
    await asyncio.gather(*tasks)
    assert not any(room)
    while not admission.has_room:  # noqa: ASYNC110 - turns of the loop are what is counted
        await asyncio.sleep(0)
