"""A limit of concurrent requests as it acts along a chain."""

import asyncio
from dataclasses import replace

import pytest

from proxy.core.breaker import CircuitState
from proxy.errors import (
    CircuitOpen,
    NoConnectionFree,
    UpstreamBusy,
    UpstreamUnreachable,
)
from proxy.upstream.base import Exchange
from proxy.upstream.circuit import CircuitPolicy
from proxy.upstream.classify import LONGEST_BODY
from proxy.upstream.config import KeySecret
from proxy.upstream.gate import GateState
from proxy.upstream.queueing import QueuePolicy
from tests.fakes import FakeClock
from tests.unit.upstream.scripted import (
    Answer,
    Clinging,
    World,
    body_of,
    chat,
    limited,
    refused_connection,
    up,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio

ONE = QueuePolicy(max_concurrent=1, max_waiting=0)


async def test_a_slot_is_held_until_the_answer_is_closed() -> None:
    world = World(up(queue=ONE))
    exchange = await world.send()
    assert world.set.gate_states() == {"up": GateState(1, 0)}
    with pytest.raises(UpstreamBusy) as raised:
        await world.send()
    assert not raised.value.may_be_done
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


@pytest.mark.parametrize("steps", [[limited(5)], [Answer(503)], [limited(5), Answer(503)]])
async def test_B63_an_answer_to_a_retry_holds_the_slot_until_it_is_closed(
    steps: list[Answer],
) -> None:
    world = World(up("up", "k1", "k2", "k3", queue=ONE))
    world.on(any=[*steps, Answer()])
    exchange = await world.send()
    assert exchange.attempts == len(steps) + 1
    assert world.set.gate_states() == {"up": GateState(1, 0)}
    await exchange.response.aclose()
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


async def test_B63_nobody_waits_in_line_for_an_upstream_whose_circuit_is_open() -> None:
    two, circuit = replace(ONE, max_concurrent=2), CircuitPolicy(connect_failures=1)
    before = World(up(queue=two, circuit=circuit))
    exchange = await before.send()
    before.on(any=[refused_connection()])
    with pytest.raises(UpstreamUnreachable):
        await before.send()
    world = World(up(queue=ONE, circuit=circuit))  # the one slot is taken
    world.set.take_over(before.set)
    with pytest.raises(CircuitOpen):
        await world.send()
    before.clock.advance(2.0)
    with pytest.raises(UpstreamBusy):
        await world.send()
    await exchange.response.aclose()
    await world.ok()  # who was sent away did not take the probe along


async def cancelled_while_closing(world: World, answer: Clinging) -> None:
    sending = asyncio.ensure_future(world.send())
    await answer.clings.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


async def test_B62_a_good_answer_is_let_go_of_where_its_request_is_cancelled_just_then() -> None:
    world = World(up(), up("other", "k", queue=ONE))
    bad, good = Clinging(500), Answer()
    world.on(any=[bad])
    world.on("other", any=[good])
    await cancelled_while_closing(world, bad)
    assert good.closed == 1
    assert world.in_flight() == 0
    assert world.set.gate_states() == {"other": GateState(0, 0)}


async def test_B62_so_is_a_bad_one_that_was_to_take_the_place_of_another() -> None:
    world = World(up(), up("other"), up("third"))
    bad, worse = Clinging(500), Answer(500, b"x" * (LONGEST_BODY + 1))
    world.on(any=[bad])
    world.on("other", any=[worse])
    await cancelled_while_closing(world, bad)
    assert worse.closed == 1


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


class HeldClock(FakeClock):
    """Time stands still for who sleeps, until the test lets it pass."""

    def __init__(self) -> None:
        super().__init__()
        self.wakes = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await self.wakes.wait()
        self.advance(seconds)


SMALL, LARGE = (chat(b'{"model":"m","max_tokens":%d}' % tokens) for tokens in (100, 900))


async def waiting_for_tokens() -> tuple[World, asyncio.Future[Exchange], asyncio.Event]:
    """A large request that waits until the only key has tokens for it again."""
    clock = HeldClock()
    config = up(queue=ONE, wait_for_key_seconds=61.0)
    config = replace(config, keys=(KeySecret("k", 1.0, None, 1100),))
    world = World(config, clock=clock)
    world.on(any=[Answer(503), Answer()])
    assert (await world.ok(LARGE)).response.status == 503
    waiting = asyncio.ensure_future(world.ok(LARGE))
    await until(lambda: len(clock.slept) == 1)
    return world, waiting, clock.wakes


async def test_B64_who_waits_for_a_key_takes_nobodys_place_meanwhile() -> None:
    world, waiting, wakes = await waiting_for_tokens()
    assert world.set.gate_states() == {"up": GateState(0, 0)}
    assert (await world.ok(SMALL)).response.status == 200, "there are tokens for it"
    wakes.set()
    assert (await waiting).response.status == 200
    assert world.set.gate_states() == {"up": GateState(0, 0)}


async def test_B64_once_there_is_a_key_a_place_is_needed_all_the_same() -> None:
    world, waiting, wakes = await waiting_for_tokens()
    exchange = await world.send(SMALL)
    wakes.set()
    with pytest.raises(UpstreamBusy):
        await waiting
    await exchange.response.aclose()


async def test_B62_a_lack_of_connections_is_no_fault_of_the_upstream_nor_tried_again() -> None:
    circuit = CircuitPolicy(failure_rate=0.1, min_calls=1, connect_failures=1)
    world = World(up("up", "a", "b", circuit=circuit))
    transport = world.on(any=[NoConnectionFree("all in use")])
    for _ in range(3):
        with pytest.raises(NoConnectionFree) as caught:
            await world.send()
        assert not caught.value.may_be_done
    assert len(transport.requests) == 3
    assert world.in_flight() == 0
    assert world.set.circuit_states()["up"] is CircuitState.CLOSED


async def test_B63_where_there_is_no_connection_the_next_profile_is_asked_whatever_it_is() -> None:
    world = World(up("up", "a"), up("other", "b"))
    world.on(any=[NoConnectionFree("all in use")])
    exchange = await world.ok(replace(chat(), path="/files"))
    assert (exchange.upstream, exchange.fallback) == ("other", True)
