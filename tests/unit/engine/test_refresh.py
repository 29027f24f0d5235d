"""Stale entries serve at once while a new answer is fetched, once, in the background (B15)."""

import asyncio
from dataclasses import replace

import pytest

from proxy.core.rules import Coalescing, Rule
from proxy.core.selectors import Selector
from proxy.errors import KeysExhausted, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tests.unit.engine.freshness import BOTH, SIE, SWR, Ageing, ageing, cache_status, saying
from tests.unit.engine.kit import COMPLETION, RULE, going, told
from tests.unit.engine.upstreams import SSE, STREAM, body_of, turns

pytestmark = pytest.mark.anyio
NEW = saying("new")


async def test_B15_a_stale_answer_is_there_at_once_and_the_next_one_is_the_new_one() -> None:
    async with ageing() as here:
        here.pass_time(61.5)

        first = await here.engine.ask()

        assert (told(first, b"x-cache"), told(first, b"age")) == ("STALE", "61")
        assert cache_status(first) == 'magic-proxy; hit; ttl=-1; detail="revalidating"'
        assert await body_of(first) == COMPLETION
        await turns()
        assert here.calls == 2, "the upstream is asked meanwhile, and has not answered"
        assert await here.asked() == ("STALE", COMPLETION)
        here.answer(NEW)
        await turns()
        assert await here.asked() == ("HIT", NEW)
        assert here.engine.witness.unattended == [("refresh", "stored")]
        told_of = [outcome.x_cache.value for outcome in here.engine.witness.outcomes]
        assert told_of == ["MISS", "STALE", "STALE", "HIT"]
        here.pass_time(59.9)
        assert await here.asked() == ("HIT", NEW), "it has a lifetime of its own"


@pytest.mark.parametrize("coalesce", list(Coalescing))
async def test_B15_a_hundred_stale_hits_at_once_are_one_refresh(coalesce: Coalescing) -> None:
    async with ageing(replace(SWR, coalesce=coalesce)) as here:
        here.pass_time(60)

        answers = await asyncio.gather(*(here.engine.ask() for _ in range(100)))

        assert {told(answer, b"x-cache") for answer in answers} == {"STALE"}
        await turns()
        assert here.calls == 2
        assert len(here.engine.refreshes) == 1
        here.answer(NEW)
        await turns()
        assert len(here.engine.refreshes) == 0
        assert await here.asked() == ("HIT", NEW)
        assert here.calls == 2


async def test_B15_what_serves_stale_is_never_repeated_unasked() -> None:
    async with ageing() as here:
        here.pass_time(60)
        assert (await here.engine.ask()).repeatable is None


FAILURES: list[UpstreamError | tuple[int, bytes]] = [
    UpstreamUnreachable("refused"),
    UpstreamTimeout("late"),
    KeysExhausted("all rest"),
    (500, b'{"error":{}}'),
    (429, b'{"error":{}}'),
    (400, b'{"error":{}}'),
    (200, b"not JSON"),
    (200, COMPLETION.replace(b'"stop"', b'"length"')),
]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
async def test_B15_a_refresh_that_fails_leaves_the_stale_answer_until_its_window_ends(
    failure: UpstreamError | tuple[int, bytes],
) -> None:
    async with ageing() as here:
        for since, call in ((60.0, 1), (15.0, 2), (14.9, 3)):
            here.engine.clock.advance(since)
            assert await here.asked() == ("STALE", COMPLETION)
            await turns()
            assert here.calls == call + 1, "each time it is tried again"
            if isinstance(failure, tuple):
                here.answer(failure[1], status=failure[0])
            else:
                here.upstream.answer(call, failure)
            await turns()
            assert len(here.engine.refreshes) == 0
            assert await here.asked() == ("STALE", COMPLETION)
            await turns()
            assert here.calls == call + 1, "but not within the second"
        here.engine.clock.advance(0.1)

        asked = going(here.engine.ask())
        await turns()
        here.answer(NEW)

        assert told(await asked, b"x-cache") == "MISS"
        assert cache_status(await asked).startswith("magic-proxy; fwd=stale; fwd-status=200")


async def test_B15_after_a_refresh_that_failed_the_next_one_waits_a_second_and_says_so() -> None:
    async with ageing() as here:
        here.pass_time(60)
        for seconds, begins in ((0.0, True), (0.0, False), (0.999, False), (0.001, True)):
            here.pass_time(seconds)
            calls = here.calls

            answer = await here.engine.ask()
            await turns()

            assert here.calls == calls + begins
            assert ('detail="revalidating"' in cache_status(answer)) is begins
            if begins:
                here.upstream.answer(here.calls - 1, UpstreamUnreachable("refused"))
                await turns()
        assert here.engine.refreshes.skipped == 0, "that is told of refreshes under way"


async def test_B15_a_refresh_that_failed_holds_up_no_other() -> None:
    here = Ageing()
    for name in ("one", "two"):
        await here.store(COMPLETION, name)
    here.pass_time(60)
    await here.asked("one")
    await turns()
    here.upstream.answer(2, UpstreamUnreachable("refused"))
    await turns()

    await here.asked("two")
    await turns()

    assert here.calls == 4
    await here.engine.stop()


async def test_B15_only_so_many_refreshes_are_under_way_and_the_rest_are_counted() -> None:
    here = Ageing()
    for name in ("one", "two", "three"):
        await here.store(COMPLETION, name)
    here.limited(SWR, most=2)
    here.pass_time(60)

    answers = [await here.engine.ask(name) for name in ("one", "two", "three", "three", "one")]
    await turns()

    assert {told(answer, b"x-cache") for answer in answers} == {"STALE"}
    assert here.calls == 5
    assert len(here.engine.refreshes) == 2
    assert here.engine.refreshes.skipped == 2
    # What is told is what is done.
    revalidating = ['detail="revalidating"' in cache_status(answer) for answer in answers]
    assert revalidating == [True, True, False, False, True]
    here.answer(NEW, call=3)
    await turns()
    assert await here.asked("three") == ("STALE", COMPLETION)
    await turns()
    assert here.calls == 6, "there is room again"
    await here.engine.stop()


@pytest.mark.parametrize("said", [b"no-store", b"only-if-cached", b"no-store, only-if-cached"])
async def test_B13_who_wants_nothing_fetched_or_stored_is_served_and_starts_nothing(
    said: bytes,
) -> None:
    async with ageing() as here:
        here.pass_time(60)

        answer = await here.engine.ask_with((b"cache-control", said))

        assert told(answer, b"x-cache") == "STALE"
        assert cache_status(answer) == "magic-proxy; hit; ttl=0"
        await turns()
        assert here.calls == 1


async def test_B15_a_refresh_is_nobody_s_and_goes_on_when_all_have_gone() -> None:
    async with ageing() as here:
        here.pass_time(60)
        await here.engine.ask()
        await turns()
        # A client that does not take stale answers joins the refresh, and leaves.
        asked = going(here.engine.ask_with((b"cache-control", b"max-age=30")))
        await turns()
        assert here.calls == 2
        asked.cancel()
        await turns()

        here.answer(NEW)
        await turns()

        assert await here.asked() == ("HIT", NEW)


async def test_B15_a_client_that_joins_a_refresh_shares_its_answer() -> None:
    async with ageing() as here:
        here.pass_time(60)
        await here.engine.ask()
        asked = going(here.engine.ask_with((b"cache-control", b"max-age=30")))
        await turns()
        here.answer(NEW)

        assert "collapsed" in cache_status(await asked)
        assert here.engine.witness.unattended == [("refresh", "stored")]


async def test_B40_those_who_want_a_younger_answer_share_it_and_renew_it_for_all() -> None:
    async with ageing(RULE) as here:
        here.pass_time(20)
        young = (b"cache-control", b"max-age=10")
        key = next(iter(here.engine.store.values))
        before = here.engine.service.version(key)
        asked = [going(here.engine.ask_with(young)) for _ in range(5)]
        await turns()
        assert await here.asked() == ("HIT", COMPLETION), "who takes the old one has it"
        assert here.calls == 2
        here.answer(NEW)

        answers = await asyncio.gather(*asked)

        assert {answer.body for answer in answers if isinstance(answer.body, bytes)} == {NEW}
        assert sum("collapsed" in cache_status(answer) for answer in answers) == 4
        assert all("fwd=request" in cache_status(answer) for answer in answers)
        assert here.engine.service.version(key) != before, "nobody repeats the old one unasked"
        assert await here.asked() == ("HIT", NEW)


async def test_B15_where_the_answer_is_already_on_its_way_no_refresh_starts() -> None:
    async with ageing() as here:
        here.pass_time(60)
        asked = going(here.engine.ask_with((b"cache-control", b"max-age=30")))
        await turns()

        stale = await here.engine.ask()
        await turns()

        assert 'detail="revalidating"' in cache_status(stale)
        assert here.calls == 2
        assert len(here.engine.refreshes) == 0
        here.answer(NEW)
        assert await body_of(await asked) == NEW
        assert await here.asked() == ("HIT", NEW)


async def test_B15_B23_a_stale_answer_comes_in_the_form_asked_for_and_so_does_its_refresh() -> None:
    async with ageing() as here:
        here.pass_time(60)

        status, body = await here.asked(stream=True)

        assert status == "STALE"
        assert body.endswith(b"data: [DONE]\n\n")
        await turns()
        sent = here.upstream.sent[-1].body
        assert isinstance(sent, bytes)
        assert b'"stream":true' in sent
        here.answer(b"".join(STREAM), headers=SSE)
        await turns()
        status, body = await here.asked()
        assert status == "HIT"
        assert b'"Once upon"' in body


async def test_B15_each_key_is_refreshed_for_itself() -> None:
    here = Ageing()
    await here.store(COMPLETION, "one")
    here.pass_time(50)
    await here.store(COMPLETION, "two")
    here.pass_time(10)

    assert [(await here.asked(name))[0] for name in ("one", "two")] == ["STALE", "HIT"]
    await turns()
    assert here.calls == 3
    await here.engine.stop()


# ---- soft purges ----


@pytest.mark.parametrize(("rule", "expected"), [(SWR, "STALE"), (BOTH, "STALE"), (RULE, "MISS")])
async def test_B54_a_soft_purge_is_a_refresh_where_stale_answers_serve(
    rule: Rule, expected: str
) -> None:
    async with ageing(rule) as here:
        await here.engine.generations.add(Selector(), soft=True)

        asked = going(here.engine.ask())
        await turns()
        here.answer(NEW)

        answer = await asked
        assert told(answer, b"x-cache") == expected
        if expected == "STALE":
            assert cache_status(answer) == 'magic-proxy; hit; ttl=0; detail="revalidating"'
        await turns()
        assert await here.asked() == ("HIT", NEW)
        assert here.calls == 2


async def test_B54_a_soft_purge_overtakes_a_refresh_that_is_under_way() -> None:
    async with ageing() as here:
        here.pass_time(60)
        await here.engine.ask()
        await turns()
        await here.engine.generations.add(Selector(), soft=True)
        here.answer(NEW)
        await turns()

        assert await here.asked() == ("STALE", NEW), "it was asked for before the purge"

        await turns()
        assert here.calls == 3
        here.answer(saying("newest"))
        await turns()
        assert await here.asked() == ("HIT", saying("newest"))


async def test_B54_a_hard_purge_leaves_nothing_to_serve_stale() -> None:
    async with ageing(BOTH) as here:
        here.pass_time(60)
        await here.engine.generations.add(Selector())

        asked = going(here.engine.ask())
        await turns()
        here.upstream.answer(1, UpstreamUnreachable("refused"))

        assert (await asked).status == 502


async def test_B54_a_soft_purged_answer_serves_where_the_upstream_fails() -> None:
    async with ageing(SIE) as here:
        here.pass_time(5)
        await here.engine.generations.add(Selector(), soft=True)

        asked = going(here.engine.ask())
        await turns()
        here.upstream.answer(1, UpstreamUnreachable("refused"))

        answer = await asked
        assert (told(answer, b"x-cache"), told(answer, b"age")) == ("STALE", "5")
        assert await body_of(answer) == COMPLETION
