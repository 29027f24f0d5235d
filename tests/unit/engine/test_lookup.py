"""Look-ups: of one key, and of several answers to the same request (variants)."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import orjson
import pytest

from proxy.core.rules import Coalescing, Rule, VariantChoice
from proxy.engine.plan import Plan
from proxy.errors import UpstreamUnreachable
from tests.unit.engine.freshness import Ageing, cache_status, saying
from tests.unit.engine.kit import (
    RULE,
    Engine,
    FaultyStore,
    Said,
    ScriptedForwarder,
    call,
    going,
    told,
)
from tests.unit.engine.upstreams import SSE, STREAM, body_of, chunk, turns

pytestmark = pytest.mark.anyio
VARIANTS = replace(RULE, variants=3)


@pytest.fixture(autouse=True)
def draws() -> Iterator[None]:
    """The same draws in each run."""
    before = random.getstate()
    random.seed(7)
    yield
    random.setstate(before)


def numbered(rule: Rule = VARIANTS) -> Engine:
    """An engine whose upstream answers 0, 1, 2, …"""
    answers = [Said((saying(str(number)),)) for number in range(20)]
    return Engine(FaultyStore(), ScriptedForwarder(*answers), rule=rule)


async def said_by(engine: Engine, *headers: tuple[bytes, bytes], **members: object) -> str:
    """What one answer tells and says, such as `HIT 2`."""
    answer = await engine.ask_with(*headers, **{"temperature": 0.7, **members})
    content = orjson.loads(await body_of(answer))["choices"][0]["message"]["content"]
    return f"{told(answer, b'x-cache')} {content}"


async def several(engine: Engine, count: int, *headers: tuple[bytes, bytes]) -> list[str]:
    return [await said_by(engine, *headers) for _ in range(count)]


async def filled(rule: Rule = VARIANTS) -> Engine:
    engine = numbered(rule)
    await several(engine, 3)
    return engine


# ---- several answers ----


async def test_B15_the_first_are_misses_and_then_each_has_its_turn() -> None:
    engine = numbered()

    assert await several(engine, 9) == [
        *("MISS 0", "MISS 1", "MISS 2"),
        *("HIT 0", "HIT 1", "HIT 2"),
        *("HIT 0", "HIT 1", "HIT 2"),
    ]
    assert len(engine.forwarder.sent) == 3
    await engine.settled()
    assert len(engine.store.values) == 3
    await engine.stop()


@pytest.mark.parametrize("temperature", [None, 1, 2.0, 0.01])
async def test_B15_each_temperature_above_0_wants_several(temperature: float | None) -> None:
    engine = numbered()
    told_by = [await said_by(engine, temperature=temperature) for _ in range(4)]
    assert told_by == ["MISS 0", "MISS 1", "MISS 2", "HIT 0"]
    await engine.stop()


async def test_B15_an_absent_temperature_counts_as_1() -> None:
    engine = numbered()
    answers = [await engine.ask() for _ in range(4)]
    assert [told(answer, b"x-cache") for answer in answers] == ["MISS"] * 3 + ["HIT"]
    await engine.stop()


async def test_B15_at_temperature_0_there_is_one_answer() -> None:
    engine = numbered()
    told_by = [await said_by(engine, temperature=0) for _ in range(3)]
    assert told_by == ["MISS 0", "HIT 0", "HIT 0"]
    await engine.stop()


async def test_B15_random_choice_gives_each_and_not_in_turn() -> None:
    engine = await filled(replace(VARIANTS, variant_choice=VariantChoice.RANDOM))

    hits = await several(engine, 90)

    counts = Counter(hits)
    assert set(counts) == {"HIT 0", "HIT 1", "HIT 2"}
    assert all(15 <= count <= 45 for count in counts.values())
    assert hits[:9] != hits[:3] * 3
    assert len(engine.forwarder.sent) == 3
    await engine.stop()


async def test_B15_no_variant_is_repeated_without_asking() -> None:
    engine = Engine(FaultyStore(instant=True), rule=VARIANTS)
    for _ in range(3):
        await engine.ask()
    await engine.settled()

    for _ in range(4):
        answer = await engine.ask()
        assert told(answer, b"x-cache") == "HIT"
        assert answer.repeatable is None
    single = await engine.ask(temperature=0)
    await engine.settled()
    single = await engine.ask(temperature=0)
    assert single.repeatable is not None
    await engine.stop()


@pytest.mark.parametrize("count", [2, 3])
async def test_B15_what_has_one_answer_is_had_without_waiting_and_several_are_not(
    count: int,
) -> None:
    engine = Engine(FaultyStore(instant=True), rule=replace(RULE, variants=count))
    for _ in range(count):
        await engine.ask()
    await engine.ask(temperature=0)
    await engine.settled()

    async def begun(**members: object) -> bool:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}
        return not isinstance(await engine.service.begin(call(orjson.dumps(body))), Plan)

    assert await begun(temperature=0)
    assert not await begun()
    await engine.stop()


async def test_B40_a_crowd_on_a_cold_key_asks_for_each_variant_once() -> None:
    here = Ageing(VARIANTS)
    asked = [going(here.engine.ask()) for _ in range(10)]
    await turns()

    assert here.calls == 3
    for number in range(3):
        here.answer(saying(str(number)), call=number)
    answers = await asyncio.gather(*asked)

    contents = Counter([await body_of(answer) for answer in answers])
    assert contents == {saying("0"): 4, saying("1"): 3, saying("2"): 3}
    assert sum("collapsed" in cache_status(answer) for answer in answers) == 7
    assert here.calls == 3
    assert told(await here.engine.ask(), b"x-cache") == "HIT"
    await here.engine.stop()


async def test_B40_uncoalesced_requests_fill_one_variant_after_the_other() -> None:
    engine = numbered(replace(VARIANTS, coalesce=Coalescing.OFF))
    assert await several(engine, 4) == ["MISS 0", "MISS 1", "MISS 2", "HIT 0"]
    await engine.stop()


async def test_B13_no_cache_renews_one_in_turn() -> None:
    engine = await filled()

    renewed = await several(engine, 4, (b"cache-control", b"no-cache"))

    assert renewed == ["MISS 3", "MISS 4", "MISS 5", "MISS 6"]
    # 6 has taken the place of 3, the first of its turn.
    assert Counter(await several(engine, 6)) == {"HIT 6": 2, "HIT 4": 2, "HIT 5": 2}
    await engine.settled()
    assert len(engine.store.values) == 3
    await engine.stop()


@pytest.mark.parametrize("variants", [2, 3])
async def test_B13_who_renews_and_asks_by_turns_renews_all(variants: int) -> None:
    engine = numbered(replace(RULE, variants=variants))
    await several(engine, variants)

    for _ in range(variants):
        await said_by(engine, (b"cache-control", b"no-cache"))
        await said_by(engine)

    left = {told.removeprefix("HIT ") for told in await several(engine, variants)}
    assert left == {str(variants + number) for number in range(variants)}
    await engine.stop()


async def test_B13_no_cache_on_a_cold_key_fills_one_after_the_other() -> None:
    engine = numbered()
    await several(engine, 2, (b"cache-control", b"no-cache"))
    assert await several(engine, 3) == ["MISS 2", "HIT 1", "HIT 2"]
    await engine.stop()


async def test_B13_only_if_cached_takes_of_what_there_is() -> None:
    engine = numbered()
    only = (b"cache-control", b"only-if-cached")
    assert (await engine.ask_with(only)).status == 504

    await several(engine, 2)

    assert Counter(await several(engine, 4, only)) == {"HIT 0": 2, "HIT 1": 2}
    assert await said_by(engine) == "MISS 2"
    await engine.stop()


async def test_B13_a_variant_that_is_too_old_for_this_client_is_renewed() -> None:
    engine = numbered()
    await several(engine, 2)
    engine.clock.advance(20)
    await several(engine, 1)

    young = (b"cache-control", b"max-age=10")
    assert await several(engine, 2, young) == ["MISS 3", "MISS 4"]
    assert Counter(await several(engine, 3, young)) == {"HIT 3": 1, "HIT 4": 1, "HIT 2": 1}
    assert Counter(await several(engine, 3)) == {"HIT 3": 1, "HIT 4": 1, "HIT 2": 1}
    await engine.stop()


async def test_B15_each_variant_has_a_lifetime_of_its_own() -> None:
    engine = numbered()
    for _ in range(3):
        await said_by(engine)
        engine.clock.advance(10)
    engine.clock.advance(30)

    assert await several(engine, 3) == ["MISS 3", "HIT 1", "HIT 2"]
    await engine.stop()


async def test_B15_a_stale_variant_serves_and_is_the_one_that_is_refreshed() -> None:
    here = Ageing(replace(VARIANTS, stale_while_revalidate_seconds=30.0))
    for number in range(3):
        await here.store(saying(str(number)))
        here.pass_time(10)
    here.pass_time(31)

    answers = [await here.asked() for _ in range(3)]

    assert Counter(status for status, _ in answers) == {"STALE": 1, "HIT": 2}
    await turns()
    assert here.calls == 4
    here.answer(saying("new"))
    await turns()
    assert Counter([(await here.asked())[1] for _ in range(3)]) == {
        saying("new"): 1,
        saying("1"): 1,
        saying("2"): 1,
    }
    await here.engine.stop()


async def test_B15_a_variant_that_fails_to_come_is_replaced_by_its_own_stale_one() -> None:
    here = Ageing(replace(VARIANTS, stale_if_error_seconds=300.0))
    for number in range(3):
        await here.store(saying(str(number)))
    here.pass_time(60)

    asked = [going(here.engine.ask()) for _ in range(3)]
    await turns()
    for number in range(3, 6):
        here.upstream.answer(number, UpstreamUnreachable("refused"))

    answers = await asyncio.gather(*asked)
    assert {told(answer, b"x-cache") for answer in answers} == {"STALE"}
    assert Counter([await body_of(answer) for answer in answers]) == {
        saying(str(number)): 1 for number in range(3)
    }
    await here.engine.stop()


async def test_B23_streams_and_whole_answers_are_variants_of_each_other() -> None:
    here = Ageing(VARIANTS)
    await here.store(saying("whole"))
    for text in ("one", "two"):
        asked = going(here.engine.ask(stream=True))
        await turns()
        here.answer(b"".join([chunk(text), *STREAM[2:]]), headers=SSE)
        await body_of(await asked)
    await turns()

    streams = [await here.asked(stream=True) for _ in range(3)]
    wholes = [await here.asked() for _ in range(3)]

    assert {status for status, _ in (*streams, *wholes)} == {"HIT"}
    for content in (b'"whole"', b'"one"', b'"two"'):
        assert sum(content in body for _, body in wholes) == 1
    assert all(body.endswith(b"data: [DONE]\n\n") for _, body in streams)
    assert here.calls == 3
    await here.engine.stop()


async def test_B50_a_store_that_is_down_costs_misses_and_no_more() -> None:
    engine = numbered()
    engine.store.down = {"get", "put"}
    assert [each.split()[0] for each in await several(engine, 4)] == ["MISS"] * 4
    await engine.stop()


# ---- what is stored while a look-up is on its way ----


class LateStore(FaultyStore):
    """Knows what it answers at once, and tells it when `gate` opens."""

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        values = [self.values.get(key) for key in keys]
        await self._met("get")
        return values


@pytest.fixture
async def late() -> AsyncIterator[Ageing]:
    here = Ageing(RULE, LateStore())
    yield here
    await here.engine.stop()


async def test_B40_an_answer_stored_during_a_look_up_is_found_by_it(late: Ageing) -> None:
    late.engine.store.stalled.add("get")
    slow = going(late.engine.ask())
    await turns()
    late.engine.store.stalled.clear()
    await late.store(saying("first"))

    late.engine.store.gate.set()

    answer = await slow
    assert (told(answer, b"x-cache"), await body_of(answer)) == ("HIT", saying("first"))
    assert late.calls == 1


async def test_B40_what_a_look_up_found_is_not_looked_up_again(late: Ageing) -> None:
    await late.store()
    late.engine.store.stalled.add("get")
    asked = going(late.engine.ask())
    await turns()
    renewing = going(late.engine.ask_with((b"cache-control", b"no-cache")))
    await turns()
    late.answer(saying("new"))
    await renewing
    await late.engine.settled()
    before = late.engine.store.log.count("get")

    late.engine.store.stalled.clear()
    late.engine.store.gate.set()

    assert told(await asked, b"x-cache") == "HIT"
    assert late.engine.store.log.count("get") == before
    assert late.engine.flights._watches == {}


async def test_B40_an_ordinary_miss_is_one_look_up(late: Ageing) -> None:
    await late.store()
    assert late.engine.store.log.count("get") == 1


async def test_B40_a_look_up_that_is_given_up_watches_no_more(late: Ageing) -> None:
    late.engine.store.stalled.add("get")
    asked = going(late.engine.ask())
    await turns()
    assert len(late.engine.flights._watches) == 1
    asked.cancel()
    await turns()
    assert late.engine.flights._watches == {}


async def test_B40_a_crowd_that_finds_a_flight_on_an_absent_key_asks_no_store(late: Ageing) -> None:
    asked = [going(late.engine.ask())]
    await turns()
    late.engine.store.down.add("get")
    asked += [going(late.engine.ask()) for _ in range(5)]
    only = await late.engine.ask_with((b"cache-control", b"only-if-cached"))
    await turns()
    late.answer(saying("first"))

    answers = await asyncio.gather(*asked)

    assert {bytes(answer.body) for answer in answers if isinstance(answer.body, bytes)} == {
        saying("first")
    }
    assert only.status == 504
    assert late.engine.store.log.count("get") == 1
    assert late.calls == 1


@pytest.mark.parametrize("errand", ["max-age", "no-cache", "store-down"])
async def test_B40_where_there_may_be_an_entry_it_is_looked_for(errand: str, late: Ageing) -> None:
    await late.store(saying("old"))
    late.pass_time(5)
    if errand == "store-down":
        late.engine.store.down.add("get")
        first = going(late.engine.ask())
    else:
        said = b"max-age=1" if errand == "max-age" else b"no-cache"
        first = going(late.engine.ask_with((b"cache-control", said)))
    await turns()
    assert late.calls == 2
    late.engine.store.down.clear()

    assert await late.asked() == ("HIT", saying("old"))

    late.answer(saying("new"))
    await first
    assert await late.asked() == ("HIT", saying("new"))
