"""The gate before an upstream: turns, time-outs, and waiters that go away."""

import asyncio

import pytest

from proxy.errors import UpstreamBusy
from proxy.upstream.gate import Gate, GateState
from proxy.upstream.queueing import QueuePolicy
from tests.fakes import FakeClock
from tests.waiting import until

pytestmark = pytest.mark.anyio


def gate(slots: int = 1, waiting: int = 10, seconds: float = 30.0) -> Gate:
    return Gate("up", QueuePolicy(slots, waiting, seconds), FakeClock())


async def waiting_for(gate: Gate, count: int) -> None:
    await until(lambda: gate.state.waiting == count)


async def test_who_waits_gets_the_slot_that_is_left() -> None:
    door = gate()
    first = await door.enter("a", None)
    second = asyncio.ensure_future(door.enter("a", None))
    await waiting_for(door, 1)
    first.leave()
    first.leave()
    (await second).leave()
    assert door.state == GateState(0, 0)


async def test_a_full_line_is_told_with_a_time_to_come_again() -> None:
    door = gate(waiting=0)
    await door.enter("a", None)
    with pytest.raises(UpstreamBusy) as raised:
        await door.enter("b", None)
    assert (raised.value.error_code, raised.value.status) == ("upstream_queue_full", 429)
    assert raised.value.retry_after_seconds == 1.0


async def test_the_time_to_come_again_goes_by_how_long_slots_are_held() -> None:
    clock = FakeClock()
    door = Gate("up", QueuePolicy(1, 0), clock)
    slot = await door.enter("a", None)
    clock.advance(7.0)
    slot.leave()
    await door.enter("a", None)
    with pytest.raises(UpstreamBusy) as raised:
        await door.enter("b", None)
    assert raised.value.retry_after_seconds == 7.0


@pytest.mark.parametrize(("most", "patience"), [(0.005, None), (30.0, 0.005), (30.0, -1.0)])
async def test_who_waits_too_long_is_told_so_and_leaves_no_slot_behind(
    most: float, patience: float | None
) -> None:
    door = gate(seconds=most)
    slot = await door.enter("a", None)
    with pytest.raises(UpstreamBusy) as raised:
        await door.enter("b", patience)
    assert raised.value.error_code == "upstream_queue_timeout"
    assert door.state == GateState(1, 0)
    slot.leave()
    assert door.state == GateState(0, 0)


async def test_a_cancelled_waiter_leaves_no_slot_behind() -> None:
    door = gate()
    slot = await door.enter("a", None)
    waiter = asyncio.ensure_future(door.enter("b", None))
    await waiting_for(door, 1)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    slot.leave()
    assert door.state == GateState(0, 0)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_a_waiter_that_is_cancelled_as_its_turn_comes_hands_the_slot_on(
    cancel_first: bool,
) -> None:
    door = gate()
    slot = await door.enter("a", None)
    gone = asyncio.ensure_future(door.enter("b", None))
    next_one = asyncio.ensure_future(door.enter("c", None))
    await waiting_for(door, 2)
    for step in (gone.cancel, slot.leave) if cancel_first else (slot.leave, gone.cancel):
        step()
    (await next_one).leave()
    assert gone.cancelled()
    assert door.state == GateState(0, 0)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_who_makes_room_for_a_party_with_less_is_told(
    cancelled: bool,
) -> None:
    door = gate(waiting=2)
    slot = await door.enter("a", None)
    _, last = (asyncio.ensure_future(door.enter("a", None)) for _ in range(2))
    await waiting_for(door, 2)
    other = asyncio.ensure_future(door.enter("b", None))
    if cancelled:
        asyncio.get_running_loop().call_soon(last.cancel)
    with pytest.raises(asyncio.CancelledError if cancelled else UpstreamBusy):
        await last
    assert door.state.waiting == 2
    slot.leave()
    (await _).leave()
    (await other).leave()
    assert door.state == GateState(0, 0)


async def test_a_policy_that_is_raised_lets_who_waits_in() -> None:
    door = gate()
    await door.enter("a", None)
    second = asyncio.ensure_future(door.enter("a", None))
    await waiting_for(door, 1)
    door.change(QueuePolicy(2))
    await second
    assert door.state == GateState(2, 0)
