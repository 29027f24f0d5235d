"""How available many upstreams' faults leave the service, counted over many requests."""

import random
from contextlib import suppress

import pytest

from proxy.core.breaker import CircuitState
from proxy.errors import CircuitOpen, UpstreamError
from proxy.upstream.base import UpstreamRequest
from proxy.upstream.config import UpstreamConfig
from tests.unit.upstream.scripted import Answer, World, credential, limited, refused, up

pytestmark = pytest.mark.anyio

REQUESTS = 10_000
# A hundred requests a second.
PACE = 0.01


async def served(world: World, requests: int = REQUESTS) -> int:
    """How many of the requests got an answer that is good."""
    good = 0
    for _ in range(requests):
        world.clock.advance(PACE)
        with suppress(UpstreamError):
            good += (await world.ok()).response.status == 200
    return good


def calls(world: World) -> int:
    return sum(len(transport.requests) for transport in world.transports.values())


def flaky(seed: int, rate: float, world: World, upstream: str = "up") -> None:
    """One key is dead, one is always over its limit, and calls fail at random."""
    draw = random.Random(seed)

    def answer(request: UpstreamRequest) -> Answer:
        match credential(request):
            case "dead":
                return refused()
            case "limited":
                return limited(20)
            case _:
                return Answer(503 if draw.random() < rate else 200)

    world.on(upstream, any=[answer])


def pool(name: str = "up", **settings: object) -> UpstreamConfig:
    return up(name, "dead", "limited", "good", max_attempts=5, **settings)


async def test_B62_one_key_dead_one_limited_and_a_fifth_of_the_calls_failing() -> None:
    world = World(pool())
    flaky(0, 0.2, world)
    good = await served(world)
    assert good >= 0.999 * REQUESTS
    assert calls(world) <= 1.35 * REQUESTS
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}


async def test_B63_a_chain_of_two_such_upstreams_is_better_still() -> None:
    world = World(pool(), pool("back"))
    flaky(1, 0.2, world)
    flaky(2, 0.2, world, "back")
    good = await served(world, 3_000)
    assert good >= 0.999 * 3_000
    assert calls(world) <= 1.35 * 3_000


async def test_an_outage_is_met_with_few_calls_and_ends_with_it() -> None:
    world = World(up("up", "a", "b", "c", max_attempts=5))
    transport = world.on("up", any=[Answer(503)])
    assert await served(world, 3_000) == 0
    # Twenty calls until it is open, then a probe now and then, in half a minute.
    assert len(transport.requests) <= 40
    transport.script["*"] = [Answer()]
    world.clock.advance(36.0)
    assert await served(world, 1_000) == 1_000


async def test_an_outage_of_the_first_costs_nobody_an_answer_where_there_is_a_second() -> None:
    world = World(up("up", "a", max_attempts=5), up("back", "z"))
    world.on("up", any=[Answer(503)])
    assert await served(world, 3_000) == 3_000
    assert calls(world) <= 3_040


async def test_an_open_circuit_loses_nothing_but_what_would_have_failed() -> None:
    """With nobody else to ask, a short outage is over a second or so after it is over."""
    world = World(up())
    transport = world.on("up", any=[Answer(503)])
    await served(world, 30)
    assert world.set.circuit_states() == {"up": CircuitState.OPEN}
    transport.script["*"] = [Answer()]
    with pytest.raises(CircuitOpen):
        await world.send()
    world.clock.advance(1.2)
    assert await served(world, 100) == 100
