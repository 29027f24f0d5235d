"""One upstream request for all who ask the same of several workers at once (B40)."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from proxy.coalesce.base import FlightEnd
from proxy.core.rules import Coalescing
from proxy.core.selectors import Selector
from proxy.engine.base import Answer
from tests.unit.engine.crowds import (
    WHOLE,
    Replicas,
    answered,
    asking,
    asking_whole,
    calls,
    leading_and_following,
    nothing_left,
    replicas,
    saying,
    upstream,
)
from tests.unit.engine.kit import COMPLETION, RULE, going, told
from tests.unit.engine.upstreams import (
    DONE,
    SSE,
    STREAM,
    LiveResponse,
    UsageForwarder,
    body_of,
    turns,
    usage_chunk,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]


def text_of(completion: bytes) -> str:
    said: str = orjson.loads(completion)["choices"][0]["message"]["content"]
    return said


async def test_B40_equal_requests_of_all_workers_are_one_upstream_request() -> None:
    async with replicas(count=3) as here:
        one, *others = here.engines
        leaders = asking(one, 5)
        await turns()
        followers = [task for other in others for task in asking(other, 5)]
        await turns()
        assert calls(*here.engines) == [1, 0, 0]
        answered(one)

        answers = await asyncio.gather(*leaders, *followers)

        assert {answer.body for answer in answers} == {COMPLETION}
        statuses = [told(answer, b"cache-status") for answer in answers]
        assert all("fwd=miss; fwd-status=200" in status for status in statuses)
        assert sum("collapsed" in status for status in statuses) == 14
        assert sum("stored" in status for status in statuses) == 1
        assert calls(*here.engines) == [1, 0, 0]
        await here.over()
        assert here.medium.flights[0].records == [], "who waits for the entry needs no records"
        assert told(await others[0].ask(), b"x-cache") == "HIT"


async def test_B40_a_stream_is_followed_live_from_its_first_event() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        response = saying(one, STREAM[0])
        await turns()

        (asked,) = asking(other, stream=True)
        early = await asked
        assert not isinstance(early.body, bytes)
        reading = aiter(early.body)
        assert await anext(reading) == STREAM[0], "the upstream holds the rest back"
        response.say(STREAM[1])
        assert await anext(reading) == STREAM[1]
        (late,) = asking_whole(other, stream=True)
        await turns()
        response.say_all(STREAM[2:])

        assert b"".join([piece async for piece in reading]) == b"".join(STREAM[2:])
        assert await late == WHOLE
        assert await leader == WHOLE
        assert "collapsed" in told(early, b"cache-status")
        assert calls(one, other) == [1, 0]
        await early.body.aclose()
        await here.over()


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("leads", [True, False])
async def test_B40_B23_each_gets_its_form_whoever_leads(leads: bool, follows: bool) -> None:
    async with replicas() as here:
        leader, followers = await leading_and_following(
            here, leads=leads, follows=follows, followers=3
        )
        answered(here.engines[0], STREAM if leads else None)

        bodies = await asyncio.gather(*followers)

        assert (await leader).endswith(DONE) is leads
        for body in bodies:
            if follows:
                assert body.endswith(DONE)
                assert body == WHOLE or not leads
            else:
                assert text_of(body) == ("Once upon" if leads else "hi")
        assert calls(*here.engines) == [1, 0]
        has_records = bool(here.medium.flights[0].records)
        assert has_records is (leads and follows)
        await here.over()


async def test_B40_B23_a_mixed_crowd_elsewhere_gets_each_its_form() -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, wholes = await leading_and_following(here, leads=True, follows=False)
        response = saying(one, STREAM[0])
        await turns()
        # Who joins a flight that waits for the entry gets the stream live all the same.
        (asked,) = asking(other, stream=True)
        streaming = await asked
        assert not isinstance(streaming.body, bytes)
        reading = aiter(streaming.body)
        assert await anext(reading) == STREAM[0]
        wholes += asking_whole(other)
        response.say_all(STREAM[1:])

        assert b"".join([piece async for piece in reading]) == b"".join(STREAM[1:])
        await streaming.body.aclose()
        assert [text_of(body) for body in await asyncio.gather(*wholes)] == ["Once upon"] * 2
        assert await leader == WHOLE
        assert calls(one, other) == [1, 0]
        await here.over()


async def test_B40_a_stream_that_comes_when_the_leader_has_landed_gets_the_entry() -> None:
    async with replicas() as here:
        one, other = here.engines
        here.store.stalled.add("put")
        leader, wholes = await leading_and_following(here, leads=True, follows=False)
        answered(one, STREAM)
        assert await leader == WHOLE
        (late,) = asking(other, stream=True)
        answer = await late
        assert not isinstance(answer.body, bytes)
        read = b""
        async for piece in answer.body:
            read += piece
            if read == WHOLE:  # while the store is still busy
                here.store.gate.set()
        assert read == WHOLE
        await answer.body.aclose()
        assert text_of(await wholes[0]) == "Once upon"
        assert calls(one, other) == [1, 0]
        await here.over()


async def test_B24_each_follower_elsewhere_gets_the_usage_chunk_only_if_it_asked() -> None:
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=UsageForwarder()), here.add(forwarder=UsageForwarder())
        leader, (plain,) = await leading_and_following(here, leads=True, follows=True)
        (asked,) = asking_whole(other, stream=True, stream_options={"include_usage": True})
        await turns()
        with_usage = [*STREAM[:-1], usage_chunk(), DONE]
        answered(one, with_usage)

        assert await leader == WHOLE == await plain
        assert await asked == b"".join(with_usage)
        assert calls(one, other) == [1, 0]
        await here.over()


async def test_B24_a_leader_that_asked_for_usage_does_not_force_it_on_others() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True, stream_options={"include_usage": True})
        await turns()
        (plain,) = asking_whole(other, stream=True)
        await turns()
        with_usage = [*STREAM[:-1], usage_chunk(), DONE]
        answered(one, with_usage)

        assert await plain == WHOLE
        assert await leader == b"".join(with_usage)
        await here.over()


async def test_B24_who_wants_usage_that_the_leaders_stream_lacks_goes_alone() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        (asked,) = asking_whole(other, stream=True, stream_options={"include_usage": True})
        await turns()
        response = saying(one, STREAM[0])
        await turns()
        assert calls(one, other) == [1, 1], "as soon as the leader's head says so"
        answered(other, [*STREAM[:-1], usage_chunk(), DONE])
        assert usage_chunk() in await asked
        response.say_all(STREAM[1:])
        assert await leader == WHOLE
        await here.over()


@pytest.mark.parametrize("leaves", ["at the end", "at the terminal event"])
async def test_B16_a_follower_elsewhere_saves_what_the_leader_was_billed(leaves: str) -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True, stream_options={"include_usage": True})
        await turns()
        (asked,) = asking(other, stream=True)
        await turns()
        response = saying(one, *STREAM[:-1], usage_chunk(), DONE)
        answer = await asked
        assert not isinstance(answer.body, bytes)
        if leaves == "at the end":
            response.say(None)
            assert await body_of(answer) == WHOLE
        else:
            async for piece in answer.body:
                if DONE in piece:
                    break
            await answer.body.aclose()
            response.say(None)
        await leader
        await here.over()

        (outcome,) = other.witness.outcomes
        assert outcome.collapsed
        assert outcome.complete
        assert outcome.usage == one.witness.outcomes[0].usage is not None
        assert other.witness.unattended == [], "nobody was billed for it here"


async def test_B16_who_waited_for_the_entry_saves_what_the_leader_was_billed() -> None:
    async with replicas() as here:
        leader, followers = await leading_and_following(here, leads=False, follows=False)
        answered(here.engines[0])
        await asyncio.gather(leader, *followers)
        (outcome,) = here.engines[1].witness.outcomes
        assert outcome.usage == here.engines[0].witness.outcomes[0].usage is not None


async def test_B17_a_follower_elsewhere_has_a_request_id_of_its_own() -> None:
    async with replicas() as here:
        one, other = here.engines
        asked = asking(one, stream=True)
        await turns()
        asked += asking(other, stream=True)
        await turns()
        answered(one, STREAM)
        leader, follower = await asyncio.gather(*asked)
        assert told(leader, b"X-Request-Id") == "theirs"
        assert told(follower, b"x-request-id") == "req_1"
        assert told(follower, b"x-upstream-request-id") == "theirs"
        for answer in (leader, follower):
            await body_of(answer)


async def test_B11_cookies_and_limits_of_the_leaders_call_stay_its_own() -> None:
    async with replicas() as here:
        one, other = here.engines
        asked = asking(one, stream=True)
        await turns()
        asked += asking(one, stream=True) + asking(other, stream=True)
        await turns()
        secrets = ((b"Set-Cookie", b"a=crumb"), (b"x-ratelimit-limit-requests", b"100"))
        response = LiveResponse(headers=(*SSE, *secrets))
        upstream(one).answer(0, response)
        response.say_all(STREAM)
        leader, *followers = await asyncio.gather(*asked)

        assert dict(leader.headers)[b"Set-Cookie"] == b"a=crumb"
        for answer in followers:
            names = {name.lower() for name, _ in answer.headers}
            assert not names & {b"set-cookie", b"x-ratelimit-limit-requests"}
        for answer in (leader, *followers):
            await body_of(answer)
        assert not any(b"crumb" in record for record in here.medium.flights[0].records)


async def test_B11_an_error_that_is_shared_brings_nobody_elses_cookie() -> None:
    async with replicas(count=1) as here:
        (one,) = here.engines
        asked = asking(one, 2)
        await turns()
        response = LiveResponse(429, ((b"Set-Cookie", b"a=crumb"), (b"Retry-After", b"7")))
        upstream(one).answer(0, response)
        response.say(b"{}", None)
        leader, follower = await asyncio.gather(*asked)
        assert dict(leader.headers)[b"Set-Cookie"] == b"a=crumb"
        assert b"Set-Cookie" not in dict(follower.headers)
        assert told(follower, b"Retry-After") == "7"


# ---- who asks others, and how often ----


async def test_B40_an_ordinary_miss_asks_the_others_once_and_a_hit_never() -> None:
    async with replicas() as here:
        (asked,) = asking(here.engines[0])
        await turns()
        assert here.medium.acquired == 1
        answered(here.engines[0])
        await asked
        await here.over()
        for engine in here.engines:
            assert told(await engine.ask(), b"x-cache") == "HIT"
        assert here.medium.acquired == 1


@pytest.mark.parametrize("coalesce", [Coalescing.LOCAL, Coalescing.OFF])
async def test_B40_a_rule_that_shares_with_nobody_elsewhere_never_asks(
    coalesce: Coalescing,
) -> None:
    async with replicas(replace(RULE, coalesce=coalesce)) as here:
        here.medium.go_down()
        asked = [*asking(here.engines[0], 2), *asking(here.engines[1], 2)]
        await turns()
        most = 1 if coalesce is Coalescing.LOCAL else 2
        assert calls(*here.engines) == [most, most]
        for engine in here.engines:
            for number in range(most):
                answered(engine, call=number)
        await asyncio.gather(*asked)
        assert here.medium.flights == []
        await here.over()


@pytest.mark.parametrize("said", [b"no-cache", b"no-store", b"no-cache, no-store"])
async def test_B40_who_wants_a_new_answer_or_keeps_none_does_not_ask(said: bytes) -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking(one)
        await turns()
        alone = going(other.ask_with((b"cache-control", said)))
        await turns()
        assert calls(one, other) == [1, 1]
        for engine in here.engines:
            answered(engine)
        assert "collapsed" not in told(await alone, b"cache-status")
        await leader
        assert here.medium.acquired == 1
        await here.over()


async def test_B40_what_is_kept_for_no_time_is_waited_for_by_nobody() -> None:
    async with replicas(replace(RULE, ttl_seconds=0.0)) as here:
        asked = [*asking(here.engines[0], 2), *asking(here.engines[1])]
        await turns()
        assert calls(*here.engines) == [2, 1]
        for engine, number in ((0, 0), (0, 1), (1, 0)):
            answered(here.engines[engine], call=number)
        await asyncio.gather(*asked)
        assert here.medium.acquired == 0


async def test_B15_a_refresh_elsewhere_is_followed_and_not_done_twice() -> None:
    async with replicas(replace(RULE, stale_while_revalidate_seconds=60.0)) as here:
        one, other = here.engines
        (asked,) = asking(one)
        await turns()
        answered(one)
        await asked
        await here.over()
        for engine in here.engines:
            engine.clock.advance(70.0)
            assert told(await engine.ask(), b"x-cache") == "STALE"
            await turns()
        assert calls(one, other) == [2, 0]
        answered(one)
        await here.over()
        for engine in here.engines:
            assert told(await engine.ask(), b"x-cache") == "HIT"
        assert calls(one, other) == [2, 0]
        assert other.witness.unattended == []


# ---- who looked just before the entry came ----


async def looked_too_early(here: Replicas, *, stream: bool = False) -> list[asyncio.Task[Answer]]:
    """Clients of the second worker that found nothing, and ask when the first one has landed."""
    one, other = here.engines
    (leader,) = asking_whole(one, stream=stream)
    await turns()
    here.medium.stall()
    late = asking(other, 3, stream=stream)
    await turns()
    answered(one, STREAM if stream else None)
    await leader
    await nothing_left(one)
    return late


@pytest.mark.parametrize("stream", [True, False])
async def test_B40_who_looked_before_the_leader_landed_and_asks_after_it_finds_the_entry(
    stream: bool,
) -> None:
    async with replicas() as here:
        late = await looked_too_early(here, stream=stream)
        here.store.log.clear()
        here.medium.resume()
        answers = await asyncio.gather(*late)
        assert calls(*here.engines) == [1, 0]
        assert here.store.log == ["get"], "one look for all"
        assert {answer.body for answer in answers} == {WHOLE if stream else COMPLETION}
        assert all("collapsed" in told(answer, b"cache-status") for answer in answers)
        await here.over()
        assert here.medium.flights[-1].end is FlightEnd.STORED, "for those who followed meanwhile"


async def test_B40_an_ordinary_miss_looks_no_second_time() -> None:
    async with replicas() as here:
        (asked,) = asking(here.engines[0])
        await turns()
        answered(here.engines[0])
        await asked
        assert here.store.log.count("get") == 1


@pytest.mark.parametrize("why", ["purged", "gone", "store down"])
async def test_B40_what_was_stored_lately_and_can_t_be_had_is_asked_for(why: str) -> None:
    async with replicas() as here:
        one, other = here.engines
        late = await looked_too_early(here)
        if why == "purged":
            await other.generations.add(Selector())
        elif why == "gone":
            here.store.values.clear()
        else:
            here.store.down.add("get")
        here.medium.resume()
        await turns()
        assert calls(one, other) == [1, 1]
        answered(other)
        assert {answer.body for answer in await asyncio.gather(*late)} == {COMPLETION}
        await here.over()


async def test_B13_what_was_stored_lately_may_still_be_too_old_for_a_client() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one)
        await turns()
        here.medium.stall()
        late = going(other.ask_with((b"cache-control", b"max-age=0")))
        await turns()
        answered(one)
        await leader
        await nothing_left(one)
        other.clock.advance(1.0)
        here.medium.resume()
        await turns()
        assert calls(one, other) == [1, 1]
        answered(other)
        await late
        await here.over()
