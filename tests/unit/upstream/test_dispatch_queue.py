"""A limit of concurrent requests as it acts along a chain."""

import asyncio
from dataclasses import replace

import pytest

from proxy.errors import UpstreamBusy, UpstreamUnreachable
from proxy.upstream.gate import GateState
from proxy.upstream.queueing import QueuePolicy
from tests.unit.upstream.scripted import Answer, World, body_of, chat, limited, up
from tests.waiting import until

pytestmark = pytest.mark.anyio

ONE = QueuePolicy(max_concurrent=1, max_waiting=0)


async def test_a_slot_is_held_until_the_answer_is_closed() -> None:
    world = World(up(queue=ONE))
    exchange = await world.send()
    assert world.set.gate_states() == {"up": GateState(1, 0)}
    with pytest.raises(UpstreamBusy):
        await world.send()
    assert len(world.transports["up"].requests) == 1
    await body_of(exchange)
    await exchange.response.aclose()
    assert world.set.gate_states() == {"up": GateState(0, 0)}
    await world.ok()


@pytest.mark.parametrize("step", [UpstreamUnreachable("no"), limited(5), Answer(503)])
async def test_a_request_that_fails_gives_its_slot_back(step: Answer | UpstreamUnreachable) -> None:
    world = World(up("up", "k1", "k2", queue=ONE), up("other", "k3"))
    world.on(any=[step])
    exchange = await world.ok()
    assert exchange.upstream == "other"
    assert world.set.gate_states() == {"up": GateState(0, 0)}


async def test_a_request_that_is_cancelled_gives_its_slot_back() -> None:
    world = World(up(queue=replace(ONE, max_waiting=5)))
    exchange = await world.send()
    waiting = asyncio.ensure_future(world.send())
    await until(lambda: world.set.gate_states()["up"].waiting == 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await exchange.response.aclose()
    assert world.set.gate_states() == {"up": GateState(0, 0)}


async def test_the_next_profile_is_asked_where_the_first_is_full() -> None:
    world = World(up("up", queue=ONE), up("other"))
    await world.send()
    exchange = await world.ok()
    assert (exchange.upstream, exchange.fallback) == ("other", True)


async def test_parties_take_turns() -> None:
    world = World(up(queue=QueuePolicy(max_concurrent=1)))
    first = await world.send()
    order: list[str] = []

    async def ask(party: str) -> None:
        exchange = await world.send(replace(chat(), party=party))
        order.append(party)
        await exchange.response.aclose()

    asking = [asyncio.ensure_future(ask(party)) for party in "aaab"]
    await until(lambda: world.set.gate_states()["up"].waiting == 4)
    await first.response.aclose()
    await asyncio.gather(*asking)
    assert order == ["a", "b", "a", "a"]


async def test_a_reload_keeps_the_slots_that_are_taken() -> None:
    old, new = World(up(queue=ONE)), World(up(queue=replace(ONE, max_concurrent=2)))
    exchange = await old.send()
    new.set.take_over(old.set)
    assert new.set.gate_states() == {"up": GateState(1, 0)}
    await new.send()
    with pytest.raises(UpstreamBusy):
        await new.send()
    await exchange.response.aclose()
    assert new.set.gate_states() == {"up": GateState(1, 0)}
