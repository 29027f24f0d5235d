"""One upstream request for all who ask the same at once, whatever becomes of them (B40, B41)."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace

import orjson
import pytest

from proxy.core.rules import Coalescing, OnDisconnect
from proxy.core.trailers import Trailers
from proxy.errors import UpstreamProtocolError, UpstreamUnreachable
from tests.unit.engine.crowds import asking, asking_whole, nothing_left, started, upstream
from tests.unit.engine.kit import COMPLETION, RULE, Engine, going, told
from tests.unit.engine.upstreams import (
    DONE,
    JSON,
    STREAM,
    LiveResponse,
    UsageForwarder,
    body_of,
    chunk,
    turns,
    usage_chunk,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    running = started()
    yield running
    await running.stop()


# ---- stored ----


async def test_B40_many_equal_requests_on_a_cold_key_are_one_upstream_request(
    engine: Engine,
) -> None:
    asked = asking(engine, 50)
    await turns()
    assert len(upstream(engine).calls) == 1
    response = LiveResponse(headers=JSON)
    upstream(engine).answer(0, response)
    response.say(COMPLETION, None)

    answers = await asyncio.gather(*asked)

    assert {bytes(answer.body) for answer in answers if isinstance(answer.body, bytes)} == {
        COMPLETION
    }
    statuses = [told(answer, b"cache-status") for answer in answers]
    assert sum("collapsed" in status for status in statuses) == 49
    assert sum("stored" in status for status in statuses) == 1
    assert all("fwd=miss" in status for status in statuses)
    assert len(upstream(engine).calls) == 1
    await nothing_left(engine)
    assert told(await engine.ask(), b"x-cache") == "HIT"


async def test_B40_different_requests_do_not_wait_for_each_other(engine: Engine) -> None:
    asked = [going(engine.ask("one")), going(engine.ask("two"))]
    await turns()
    assert len(upstream(engine).calls) == 2
    for number, text in ((1, "second"), (0, "first")):
        response = LiveResponse(headers=JSON)
        upstream(engine).answer(number, response)
        response.say(COMPLETION.replace(b'"hi"', f'"{text}"'.encode()), None)
    first, second = await asyncio.gather(*asked)
    assert b"first" in await body_of(first)
    assert b"second" in await body_of(second)


async def test_B40_followers_of_a_stream_get_it_live_from_its_first_event(engine: Engine) -> None:
    (leader,) = asking(engine, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say(STREAM[0])
    first = await leader
    assert not isinstance(first.body, bytes)
    reading = aiter(first.body)
    assert await anext(reading) == STREAM[0]

    (late,) = asking(engine, stream=True)
    second = await late
    assert not isinstance(second.body, bytes)
    following = aiter(second.body)
    assert await anext(following) == STREAM[0], "what came before it joined"
    response.say(STREAM[1])
    assert await anext(following) == STREAM[1] == await anext(reading), "and what comes, live"
    response.say_all(STREAM[2:])

    assert b"".join([piece async for piece in following]) == b"".join(STREAM[2:])
    assert b"".join([piece async for piece in reading]) == b"".join(STREAM[2:])
    assert "collapsed" in told(second, b"cache-status")
    assert "collapsed" not in told(first, b"cache-status")
    assert len(upstream(engine).calls) == 1
    for answer in (first, second):
        assert not isinstance(answer.body, bytes)
        await answer.body.aclose()
    await nothing_left(engine)


@pytest.mark.parametrize("leads_stream", [True, False])
async def test_B40_B23_a_mixed_crowd_gets_each_its_form(leads_stream: bool, engine: Engine) -> None:
    (leader,) = asking_whole(engine, stream=leads_stream)
    await turns()
    streams, wholes = asking_whole(engine, 3, stream=True), asking_whole(engine, 3)
    await turns()
    response = LiveResponse() if leads_stream else LiveResponse(headers=JSON)
    upstream(engine).answer(0, response)
    response.say_all(STREAM if leads_stream else [COMPLETION])

    streamed, whole = await asyncio.gather(*streams), await asyncio.gather(*wholes)

    text = "Once upon" if leads_stream else "hi"
    assert all(body.endswith(DONE) for body in streamed)
    for body in whole:
        assert orjson.loads(body)["choices"][0]["message"]["content"] == text
    assert (await leader).endswith(DONE) is leads_stream
    assert len(upstream(engine).calls) == 1
    await nothing_left(engine)


async def test_B24_each_follower_gets_the_usage_chunk_only_if_it_asked() -> None:
    engine = started(forwarder=UsageForwarder())
    (plain,) = asking_whole(engine, stream=True)
    await turns()
    (asked,) = asking_whole(engine, stream=True, stream_options={"include_usage": True})
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say_all([*STREAM[:-1], usage_chunk(), DONE])

    assert usage_chunk() not in await plain
    assert await asked == b"".join([*STREAM[:-1], usage_chunk(), DONE])
    assert len(upstream(engine).calls) == 1
    await engine.stop()


async def test_B24_a_follower_that_did_not_ask_has_the_leaders_usage_chunk_taken_out(
    engine: Engine,
) -> None:
    (asked,) = asking_whole(engine, stream=True, stream_options={"include_usage": True})
    await turns()
    (plain,) = asking_whole(engine, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say_all([*STREAM[:-1], usage_chunk(), DONE])

    assert await plain == b"".join(STREAM)
    assert usage_chunk() in await asked
    assert len(upstream(engine).calls) == 1


async def test_B24_who_wants_usage_that_the_stream_lacks_goes_alone(engine: Engine) -> None:
    (plain,) = asking_whole(engine, stream=True)
    await turns()
    (asked,) = asking_whole(engine, stream=True, stream_options={"include_usage": True})
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say_all(STREAM)
    await plain
    await turns()
    assert len(upstream(engine).calls) == 2
    own = LiveResponse()
    upstream(engine).answer(1, own)
    own.say_all([*STREAM[:-1], usage_chunk(), DONE])
    assert usage_chunk() in await asked


async def test_B16_a_follower_saves_what_the_leader_was_billed(engine: Engine) -> None:
    asked = asking(engine, 3)
    await turns()
    response = LiveResponse(headers=JSON)
    upstream(engine).answer(0, response)
    response.say(COMPLETION, None)
    await asyncio.gather(*asked)
    outcomes = engine.witness.outcomes
    assert [outcome.collapsed for outcome in outcomes].count(True) == 2
    assert all(outcome.usage is not None for outcome in outcomes)


async def test_B17_a_follower_has_a_request_id_of_its_own(engine: Engine) -> None:
    asked = asking(engine, 2, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say_all(STREAM)
    leader, follower = await asyncio.gather(*asked)
    assert told(leader, b"X-Request-Id") == "theirs"
    assert told(follower, b"x-request-id") == "req_1"
    assert told(follower, b"x-upstream-request-id") == "theirs"
    for answer in (leader, follower):
        await body_of(answer)


# ---- who does not join ----


async def test_B40_requests_for_a_new_answer_do_not_join(engine: Engine) -> None:
    (first,) = asking(engine)
    await turns()
    renewing = going(engine.ask_with((b"cache-control", b"no-cache")))
    await turns()
    assert len(upstream(engine).calls) == 2
    for number in (0, 1):
        response = LiveResponse(headers=JSON)
        upstream(engine).answer(number, response)
        response.say(COMPLETION, None)
    assert "collapsed" not in told(await renewing, b"cache-status")
    await first


async def test_B13_who_may_not_store_leads_nobody_but_may_follow(engine: Engine) -> None:
    alone = going(engine.ask_with((b"cache-control", b"no-store")))
    await turns()
    (leader,) = asking(engine)
    await turns()
    follower = going(engine.ask_with((b"cache-control", b"no-store")))
    await turns()
    assert len(upstream(engine).calls) == 2
    for number in (0, 1):
        response = LiveResponse(headers=JSON)
        upstream(engine).answer(number, response)
        response.say(COMPLETION, None)
    assert "collapsed" in told(await follower, b"cache-status")
    assert "collapsed" not in told(await alone, b"cache-status")
    assert "stored" in told(await leader, b"cache-status")


async def test_B40_a_rule_can_switch_it_off() -> None:
    engine = started(replace(RULE, coalesce=Coalescing.OFF))
    asked = asking(engine, 3)
    await turns()
    assert len(upstream(engine).calls) == 3
    for number in range(3):
        response = LiveResponse(headers=JSON)
        upstream(engine).answer(number, response)
        response.say(COMPLETION, None)
    await asyncio.gather(*asked)
    await engine.stop()


# ---- uncacheable ----


LENGTH = COMPLETION.replace(b'"stop"', b'"length"')


async def test_B41_after_an_uncacheable_answer_all_go_at_once_and_not_one_by_one(
    engine: Engine,
) -> None:
    asked = asking(engine, 5)
    await turns()
    response = LiveResponse(headers=JSON)
    upstream(engine).answer(0, response)
    response.say(LENGTH, None)
    await turns()
    assert len(upstream(engine).calls) == 5, "the leader's and four more, all under way"
    for number in range(1, 5):
        own = LiveResponse(headers=JSON)
        upstream(engine).answer(number, own)
        own.say(LENGTH, None)
    answers = await asyncio.gather(*asked)
    assert all("collapsed" not in told(answer, b"cache-status") for answer in answers)
    await nothing_left(engine)


async def test_B41_an_uncacheable_stream_is_still_whole_for_those_who_follow_it(
    engine: Engine,
) -> None:
    asked = asking_whole(engine, 3, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    stream = [chunk("cut"), chunk(finish="length"), DONE]
    response.say_all(stream)
    assert await asyncio.gather(*asked) == [b"".join(stream)] * 3
    assert len(upstream(engine).calls) == 1
    await nothing_left(engine)


@pytest.mark.parametrize("status", [400, 429, 500])
async def test_B41_an_error_answer_is_shared_with_all_that_helps_to_retry(
    status: int, engine: Engine
) -> None:
    asked = asking(engine, 3)
    await turns()
    response = LiveResponse(status, (*JSON, (b"Retry-After", b"7")))
    upstream(engine).answer(0, response)
    response.say(b'{"error":{}}', None)
    answers = await asyncio.gather(*asked)
    assert [answer.status for answer in answers] == [status] * 3
    assert [told(answer, b"Retry-After") for answer in answers] == ["7"] * 3
    assert {answer.body for answer in answers} == {b'{"error":{}}'}
    assert len(upstream(engine).calls) == 1
    await nothing_left(engine)


@pytest.mark.parametrize("is_stream", [False, True], ids=["error", "stream"])
async def test_B60_trailers_are_for_the_one_whose_answer_goes_by_as_it_came(
    is_stream: bool, engine: Engine
) -> None:
    asked = asking(engine, 3, stream=is_stream)
    await turns()
    response = LiveResponse() if is_stream else LiveResponse(400, JSON)
    response.trailers = Trailers([b"x-late"])
    upstream(engine).answer(0, response)
    response.say_all(STREAM)
    answers = await asyncio.gather(*asked)
    own = None if is_stream else response.trailers  # of a stream others may read something else
    assert [answer.trailers for answer in answers] == [own, None, None]
    await asyncio.gather(*(body_of(answer) for answer in answers))
    await nothing_left(engine)


# ---- failed ----


async def test_B41_a_failure_before_the_first_byte_is_shared(engine: Engine) -> None:
    asked = asking(engine, 3)
    await turns()
    upstream(engine).answer(0, UpstreamUnreachable("refused"))
    answers = await asyncio.gather(*asked)
    assert [answer.status for answer in answers] == [502] * 3
    assert len(upstream(engine).calls) == 1
    await nothing_left(engine)


async def test_B21_a_failure_in_the_middle_breaks_every_stream_and_stores_nothing(
    engine: Engine,
) -> None:
    asked = asking_whole(engine, 3, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say(STREAM[0], UpstreamProtocolError("reset"))
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [UpstreamProtocolError] * 3
    await nothing_left(engine)
    assert engine.store.values == {}
    assert [outcome.complete for outcome in engine.witness.outcomes] == [False] * 3


async def test_B41_who_was_sent_nothing_tries_again_together_once(engine: Engine) -> None:
    (leader,) = asking_whole(engine, stream=True)
    await turns()
    wholes = asking_whole(engine, 3)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say(STREAM[0], UpstreamProtocolError("reset"))
    with pytest.raises(UpstreamProtocolError):
        await leader
    await turns()
    assert len(upstream(engine).calls) == 2
    second = LiveResponse(headers=JSON)
    upstream(engine).answer(1, second)
    second.say(COMPLETION, None)
    assert await asyncio.gather(*wholes) == [COMPLETION] * 3
    assert len(upstream(engine).calls) == 2


# ---- clients that go ----


async def test_B41_followers_finish_when_the_leaders_client_has_gone(engine: Engine) -> None:
    (leader,) = asking(engine, stream=True)
    await turns()
    followers = asking_whole(engine, 2, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say(STREAM[0])
    gone = await leader
    assert not isinstance(gone.body, bytes)
    await gone.body.aclose()
    response.say_all(STREAM[1:])
    assert await asyncio.gather(*followers) == [b"".join(STREAM)] * 2
    await nothing_left(engine)
    assert len(engine.store.values) == 1 or len(engine.writes) == 1


@pytest.mark.parametrize("stage", ["asked", "headed"])
async def test_B42_with_all_clients_gone_the_answer_is_finished_and_stored(
    stage: str, engine: Engine
) -> None:
    asked = asking(engine, 2, stream=True)
    await turns()
    response = LiveResponse()
    if stage == "headed":
        upstream(engine).answer(0, response)
        response.say(STREAM[0])
        for task in asked:
            answer = await task
            assert not isinstance(answer.body, bytes)
            await answer.body.aclose()
        response.say_all(STREAM[1:])
    else:
        for task in asked:
            task.cancel()
        await turns()
        upstream(engine).answer(0, response)
        response.say_all(STREAM)
    await nothing_left(engine)
    assert response.closed.is_set()
    assert engine.witness.unattended == [("finish", "stored")]
    assert told(await engine.ask(), b"x-cache") == "HIT"


@pytest.mark.parametrize("stage", ["asked", "headed"])
async def test_B42_on_cancel_the_upstream_is_let_go_with_the_last_client(stage: str) -> None:
    engine = started(replace(RULE, on_disconnect=OnDisconnect.CANCEL))
    asked = asking(engine, 2, stream=True)
    await turns()
    response = LiveResponse()
    if stage == "headed":
        upstream(engine).answer(0, response)
        response.say(STREAM[0])
        answers = await asyncio.gather(*asked)
        for number, answer in enumerate(answers):
            assert not isinstance(answer.body, bytes)
            assert not response.closed.is_set(), f"{number} of 2 have gone"
            await answer.body.aclose()
        await turns()
        assert response.closed.is_set()
    else:
        asked[0].cancel()
        await turns()
        assert not upstream(engine).calls[0].cancelled()
        asked[1].cancel()
        await turns()
        assert upstream(engine).calls[0].cancelled()
    await nothing_left(engine)
    assert engine.store.values == {}
    await engine.stop()


async def test_B42_what_can_t_be_stored_is_not_finished_for_nobody(engine: Engine) -> None:
    asked = going(engine.ask_with((b"cache-control", b"no-store"), stream=True))
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    response.say(STREAM[0])
    answer = await asked
    assert not isinstance(answer.body, bytes)
    await answer.body.aclose()
    await turns()
    assert response.closed.is_set()
    await nothing_left(engine)


async def test_B42_an_error_answer_is_not_read_for_nobody(engine: Engine) -> None:
    (asked,) = asking(engine, stream=True)
    await turns()
    response = LiveResponse(500)
    upstream(engine).answer(0, response)
    await turns()
    answer = await asked
    assert not isinstance(answer.body, bytes)
    await answer.body.aclose()
    await turns()
    assert response.closed.is_set()


# ---- cancelled anywhere ----


@pytest.mark.parametrize("policy", list(OnDisconnect))
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("step", range(14))
async def test_B42_a_cancellation_at_any_step_leaves_nothing_behind(
    step: int, stream: bool, policy: OnDisconnect
) -> None:
    engine = started(replace(RULE, on_disconnect=policy))
    response = LiveResponse() if stream else LiveResponse(headers=JSON)
    pieces = STREAM if stream else [COMPLETION]
    (client,) = asking_whole(engine, stream=stream)
    await asyncio.sleep(0)
    for turn in range(step):
        # The upstream goes on by one step, too, so that each cancellation meets another state.
        if turn == 3 and upstream(engine).calls:
            upstream(engine).answer(0, response)
        elif turn > 4 and turn - 5 < len(pieces):
            response.say(pieces[turn - 5])
        await asyncio.sleep(0)

    client.cancel()
    await turns()
    if upstream(engine).calls and not upstream(engine).calls[0].done():
        upstream(engine).answer(0, response)
    response.say_all(pieces)
    await nothing_left(engine)

    began = upstream(engine).calls and not upstream(engine).calls[0].cancelled()
    assert response.closed.is_set() or not began
    again = asking_whole(engine, stream=stream)[0]
    await turns()
    if upstream(engine).calls and not upstream(engine).calls[-1].done():
        own = LiveResponse() if stream else LiveResponse(headers=JSON)
        upstream(engine).answer(-1, own)
        own.say_all(pieces)
    assert await again, "the key is free"
    await engine.stop()


# ---- bounds ----


async def test_B43_an_answer_beyond_what_may_be_kept_is_passed_on_to_its_leader_alone() -> None:
    engine = started(replace(RULE, max_entry_bytes=1000))
    asked = asking_whole(engine, 2)
    await turns()
    response = LiveResponse(headers=JSON)
    upstream(engine).answer(0, response)
    long = COMPLETION[:-1] + b',"x":"' + b"y" * 5000 + b'"}'
    response.say(long[:3000], long[3000:], None)
    await turns()
    assert len(upstream(engine).calls) == 2, "the follower went alone"
    own = LiveResponse(headers=JSON)
    upstream(engine).answer(1, own)
    own.say(long, None)
    assert await asyncio.gather(*asked) == [long, long]
    await nothing_left(engine)
    await engine.stop()


async def test_B43_a_follower_that_never_reads_holds_nobody_up_and_is_cut_off() -> None:
    engine = started(replace(RULE, max_entry_bytes=10_000))
    asked = asking(engine, 2, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    many = [chunk("x" * 1000) for _ in range(50)]
    response.say_all([*many, *STREAM])
    reads, stalls = await asyncio.gather(*asked)

    assert await body_of(reads) == b"".join([*many, *STREAM])
    with pytest.raises(Exception, match="so slowly"):
        await body_of(stalls)
    await nothing_left(engine)


async def test_B20_a_stream_that_nobody_shares_goes_on_while_its_client_reads() -> None:
    engine = started(replace(RULE, coalesce=Coalescing.OFF))
    (asked,) = asking(engine, stream=True)
    await turns()
    response = LiveResponse()
    upstream(engine).answer(0, response)
    answer = await asked
    assert not isinstance(answer.body, bytes)
    reading = aiter(answer.body)
    for piece in STREAM:
        response.say(piece)
        assert await anext(reading) == piece
    response.say(None)
    assert [piece async for piece in reading] == []
    await engine.stop()


async def test_B41_an_error_in_the_leaders_coding_is_shared_in_the_plain(engine: Engine) -> None:
    leader = going(engine.ask_with((b"accept-encoding", b"gzip")))
    await turns()
    (follower,) = asking(engine)
    await turns()
    response = LiveResponse(503, (*JSON, (b"Content-Encoding", b"gzip")))
    upstream(engine).answer(0, response)
    coded = gzip.compress(b'{"error":{}}')
    response.say(coded, None)
    first, second = await leader, await follower
    assert (first.body, told(first, b"Content-Encoding")) == (coded, "gzip")
    assert second.body == b'{"error":{}}'
    assert not any(name.lower() == b"content-encoding" for name, _ in second.headers)
    assert len(upstream(engine).calls) == 1
