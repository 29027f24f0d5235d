"""What is promised where clocks step, or differ between replicas (B15).

An entry lives no longer than its ttl, by the clock of whoever serves it, and the step or difference;
no age is negative, and nothing fails.
"""

from dataclasses import replace

import pytest

from proxy.core.rules import Rule
from proxy.errors import UpstreamUnreachable
from tests.unit.engine.freshness import SIE, SWR, Ageing, ageing, cache_status, saying
from tests.unit.engine.kit import COMPLETION, RULE, FaultyStore, going, told
from tests.unit.engine.upstreams import turns

pytestmark = pytest.mark.anyio
HOUR = 3_600.0


def step(here: Ageing, seconds: float) -> None:
    """The wall clock steps; no time passes."""
    here.engine.clock.set_wall(here.engine.clock.wall() + seconds)


async def test_B15_after_a_step_back_an_entry_lives_its_ttl_and_the_step_and_no_longer() -> None:
    async with ageing(RULE) as here:
        here.pass_time(10)
        step(here, -HOUR)

        answer = await here.engine.ask()

        assert (told(answer, b"x-cache"), told(answer, b"age")) == ("HIT", "0")
        assert cache_status(answer) == "magic-proxy; hit; ttl=3650"
        here.pass_time(HOUR + 49.9)
        assert (await here.asked())[0] == "HIT"
        here.pass_time(0.1)
        asked = going(here.engine.ask())
        await turns()
        here.answer(saying("new"))
        assert told(await asked, b"x-cache") == "MISS"


async def test_B15_after_a_step_back_what_is_stored_lives_its_ttl() -> None:
    async with ageing(RULE) as here:
        step(here, -HOUR)
        asked = going(here.engine.ask_with((b"cache-control", b"no-cache")))
        await turns()
        here.answer(saying("new"))
        assert "ttl=60" in cache_status(await asked)
        here.pass_time(59.9)
        assert await here.asked() == ("HIT", saying("new"))
        here.pass_time(0.1)
        asked = going(here.engine.ask())
        await turns()
        here.answer(COMPLETION)
        assert told(await asked, b"x-cache") == "MISS"


async def test_B15_a_step_forward_makes_entries_old_at_once() -> None:
    async with ageing(SWR) as here:
        step(here, HOUR)
        asked = going(here.engine.ask())
        await turns()
        here.answer(saying("new"))
        assert "fwd=stale" in cache_status(await asked)


async def test_B15_a_step_back_makes_what_was_stale_fresh_again_for_no_longer_than_the_step() -> (
    None
):
    async with ageing(SWR) as here:
        here.pass_time(70)
        assert (await here.asked())[0] == "STALE"
        await turns()
        here.upstream.answer(1, UpstreamUnreachable("refused"))
        await turns()

        step(here, -HOUR)

        assert (await here.asked())[0] == "HIT"
        here.pass_time(HOUR - 10)
        assert (await here.asked())[0] == "STALE"


@pytest.mark.parametrize("seconds", [-HOUR, HOUR])
async def test_B15_how_long_an_upstream_takes_is_not_told_by_the_wall_clock(seconds: float) -> None:
    here = Ageing(replace(RULE, refresh_ahead=1.0), FaultyStore(instant=True))
    asked = going(here.engine.ask())
    await turns()
    here.pass_time(2)
    step(here, seconds)
    here.answer(COMPLETION)
    await asked
    await here.engine.settled()

    repeatable = (await here.engine.ask()).repeatable

    assert repeatable is not None
    assert repeatable.fresh_until - repeatable.repeats_until == pytest.approx(22)
    assert here.engine.witness.outcomes[0].duration_seconds == 2.0
    await here.engine.stop()


def replicas(apart: float, rule: Rule = RULE) -> tuple[Ageing, Ageing]:
    """Two on one store; the second one's clock goes `apart` seconds before the first one's."""
    store = FaultyStore()
    first, second = Ageing(rule, store), Ageing(rule, store)
    step(second, apart)
    return first, second


def pass_time(seconds: float, *all_of: Ageing) -> None:
    for here in all_of:
        here.pass_time(seconds)


@pytest.mark.parametrize("apart", [-30.0, 0.0, 30.0])
async def test_B15_a_replica_serves_by_its_own_clock_what_another_stored(apart: float) -> None:
    first, second = replicas(apart)
    await first.store()

    answer = await second.engine.ask()

    assert told(answer, b"x-cache") == "HIT"
    assert told(answer, b"age") == str(int(max(0.0, apart)))
    assert cache_status(answer) == f"magic-proxy; hit; ttl={60 - int(apart)}"
    pass_time(59.9 - apart, first, second)
    assert (await second.asked())[0] == "HIT"
    pass_time(0.1, first, second)
    asked = going(second.engine.ask())
    await turns()
    second.answer(saying("new"))
    assert told(await asked, b"x-cache") == "MISS"
    for here in (first, second):
        await here.engine.stop()


@pytest.mark.parametrize("apart", [-30.0, 30.0])
async def test_B15_replicas_apart_serve_stale_and_refresh_all_the_same(apart: float) -> None:
    first, second = replicas(apart, replace(SIE, stale_while_revalidate_seconds=30.0))
    await first.store()
    pass_time(61 - apart, first, second)

    assert (await second.asked())[0] == "STALE"
    await turns()
    second.answer(saying("new"))
    await second.engine.settled()
    await turns()

    assert await second.asked() == ("HIT", saying("new"))
    # By the first one's clock it was stored in the past, or will be in the future.
    answer = await first.engine.ask()
    assert told(answer, b"x-cache") == "HIT"
    assert told(answer, b"age") == str(int(max(0.0, -apart)))
    for here in (first, second):
        await here.engine.stop()
