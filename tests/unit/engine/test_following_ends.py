"""How a flight ends, for those who follow it elsewhere (B41, B42)."""

import asyncio
from dataclasses import replace

import orjson
import pytest

from proxy.core.rules import OnDisconnect
from proxy.core.selectors import Selector
from proxy.engine.following import share
from proxy.engine.write_behind import WriteLimits
from proxy.errors import UpstreamProtocolError, UpstreamUnreachable
from tests.unit.engine.crowds import (
    WHOLE,
    answered,
    asking,
    asking_whole,
    calls,
    leading_and_following,
    left,
    nothing_left,
    replicas,
    saying,
    started,
    upstream,
)
from tests.unit.engine.kit import COMPLETION, RULE, going, told
from tests.unit.engine.upstreams import (
    DONE,
    JSON,
    SSE,
    STREAM,
    LiveResponse,
    UsageForwarder,
    body_of,
    chunk,
    event,
    turns,
    usage_chunk,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

LENGTH = COMPLETION.replace(b'"stop"', b'"length"')
CUT = [chunk("cut"), chunk(finish="length"), DONE]


# ---- uncacheable ----


async def test_B41_after_an_uncacheable_answer_all_go_at_once_and_not_one_by_one() -> None:
    async with replicas(count=3) as here:
        one, *others = here.engines
        asked = asking(one, 3)
        await turns()
        asked += [task for other in others for task in asking(other, 3)]
        await turns()
        response = LiveResponse(headers=JSON)
        upstream(one).answer(0, response)
        response.say(LENGTH, None)
        await turns()
        assert calls(*here.engines) == [3, 3, 3], "all are under way before any is answered"
        for engine in here.engines:
            for number in range(engine is one, 3):
                own = LiveResponse(headers=JSON)
                upstream(engine).answer(number, own)
                own.say(LENGTH, None)
        answers = await asyncio.gather(*asked)
        assert {answer.body for answer in answers} == {LENGTH}
        assert not any("collapsed" in told(answer, b"cache-status") for answer in answers)
        assert here.medium.acquired == 3, "whoever goes alone asks nobody"
        await here.over()
        assert here.store.values == {}


async def test_B41_an_uncacheable_stream_is_still_whole_for_those_who_follow_it() -> None:
    async with replicas() as here:
        leader, followers = await leading_and_following(here, leads=True, follows=True, followers=3)
        here.store.log.clear()
        answered(here.engines[0], CUT)
        assert await asyncio.gather(leader, *followers) == [b"".join(CUT)] * 4
        assert calls(*here.engines) == [1, 0]
        await here.over()
        assert here.store.log == [], "there is nothing to look for"
        assert all(outcome.complete for outcome in here.engines[1].witness.outcomes)


async def test_B41_a_stream_that_ends_in_the_middle_of_an_event_is_followed_to_its_last_byte() -> (
    None
):
    """What an upstream sends is passed on as it is, also what is not well."""
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=UsageForwarder()), here.add(forwarder=UsageForwarder())
        leader, (plain,) = await leading_and_following(here, leads=True, follows=True)
        (asked,) = asking_whole(other, stream=True, stream_options={"include_usage": True})
        await turns()
        odd = [STREAM[0], b"data: {"]
        answered(one, odd)
        assert set(await asyncio.gather(leader, plain, asked)) == {b"".join(odd)}
        assert calls(one, other) == [1, 0]
        await here.over()


async def test_B41_a_stream_in_a_coding_that_can_t_be_read_is_its_leaders_alone() -> None:
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=UsageForwarder()), here.add(forwarder=UsageForwarder())
        (asked,) = asking(one, stream=True)
        await turns()
        followers = [*asking_whole(one, stream=True), *asking_whole(other, stream=True)]
        await turns()
        response = LiveResponse(headers=(*SSE, (b"Content-Encoding", b"br")))
        upstream(one).answer(0, response)
        leader = await asked
        assert not isinstance(leader.body, bytes)
        reading = aiter(leader.body)
        for piece in (b"\x0b\x02\x80", b"\x68\x69\x03"):
            response.say(piece)
            assert await anext(reading) == piece, "as it comes"
        await turns()
        assert calls(one, other) == [2, 1], "the others need not wait for its end"
        answered(one, STREAM)
        answered(other, STREAM)
        assert await asyncio.gather(*followers) == [WHOLE] * 2
        response.say(None)
        assert [piece async for piece in reading] == []
        await left(leader)
        await here.over()


@pytest.mark.parametrize(
    "hopeless", [event(error={"message": "overloaded"}), b"data: no chunk\n\n"], ids=["error", "no"]
)
async def test_B41_who_waits_for_an_entry_that_will_never_be_need_not_wait_for_the_rest(
    hopeless: bytes,
) -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        (near,) = asking_whole(one)
        (far,) = asking_whole(other)
        await turns()
        response = saying(one, STREAM[0], hopeless)
        await turns()
        assert calls(one, other) == [2, 1], "while the leader's answer goes on"
        answered(one)
        answered(other)
        assert await near == await far == COMPLETION
        response.say_all([DONE])
        assert await leader == STREAM[0] + hopeless + DONE
        await here.over()
        assert one.witness.unattended == []


async def test_B41_a_hopeless_stream_is_still_followed_to_its_end() -> None:
    async with replicas() as here:
        one = here.engines[0]
        leader, followers = await leading_and_following(here, leads=True, follows=True)
        bad = event(error={"message": "overloaded"})
        response = saying(one, STREAM[0], bad)
        await turns()
        leader.cancel()  # its client goes, and others still read
        await turns()
        assert not response.closed.is_set()
        response.say_all([DONE])
        assert await asyncio.gather(*followers) == [STREAM[0] + bad + DONE]
        await here.over()


# ---- failed ----


@pytest.mark.parametrize("status", [400, 429, 500])
@pytest.mark.parametrize("stream", [True, False])
async def test_B41_after_an_error_one_asks_again_for_all_of_a_worker(
    stream: bool, status: int
) -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking(one, stream=stream)
        await turns()
        followers = asking(other, 20, stream=stream)
        await turns()
        answered(one, status=status)
        await turns()
        assert calls(one, other) == [1, 1], "not twenty, against an upstream that says no"
        answered(other, status=status)
        answers = await asyncio.gather(leader, *followers)
        assert {answer.status for answer in answers} == {status}
        assert calls(one, other) == [1, 1]
        await here.over()


async def test_B41_after_a_failure_before_the_first_byte_one_asks_again_for_all() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking(one)
        await turns()
        followers = asking(other, 5)
        await turns()
        upstream(one).answer(0, UpstreamUnreachable("refused"))
        assert (await leader).status == 502
        await turns()
        assert calls(one, other) == [1, 1]
        answered(other)
        answers = await asyncio.gather(*followers)
        assert {answer.body for answer in answers} == {COMPLETION}
        assert sum("collapsed" in told(answer, b"cache-status") for answer in answers) == 4
        await here.over()
        assert told(await one.ask(), b"x-cache") == "HIT"


async def test_B21_a_failure_in_the_middle_breaks_every_stream_and_stores_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with replicas() as here:
        leader, followers = await leading_and_following(here, leads=True, follows=True, followers=3)
        saying(here.engines[0], STREAM[0], UpstreamProtocolError("reset"))
        results = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert [type(result) for result in results] == [UpstreamProtocolError] * 4
        await here.over()
        assert here.store.values == {}
        for engine in here.engines:
            assert not any(outcome.complete for outcome in engine.witness.outcomes)
        assert calls(*here.engines) == [1, 0]
    assert caplog.get_records("call") == [], "an upstream that breaks off is no defect here"


async def test_B41_who_was_sent_nothing_tries_again_together_once() -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, wholes = await leading_and_following(here, leads=True, follows=False, followers=3)
        (streams,) = asking_whole(other, stream=True)
        await turns()
        saying(one, STREAM[0], UpstreamProtocolError("reset"))
        results = await asyncio.gather(leader, streams, return_exceptions=True)
        assert [type(result) for result in results] == [UpstreamProtocolError] * 2
        await turns()
        assert calls(one, other) == [1, 1]
        answered(other)
        assert await asyncio.gather(*wholes) == [COMPLETION] * 3
        assert calls(one, other) == [1, 1]
        await here.over()


# ---- what could not be kept ----


async def test_B41_an_entry_that_is_not_to_be_found_is_asked_for_once() -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, followers = await leading_and_following(
            here, leads=False, follows=False, followers=10
        )
        here.store.down.add("put")
        answered(one)
        assert await leader == COMPLETION
        await turns()
        assert calls(one, other) == [1, 1]
        answered(other)
        assert await asyncio.gather(*followers) == [COMPLETION] * 10
        assert calls(one, other) == [1, 1]
        await here.over()


async def test_B53_an_answer_that_the_queue_did_not_take_is_shared_all_the_same() -> None:
    async with replicas(limits=WriteLimits(entries=0)) as here:
        one, other = here.engines
        leaders = asking(one, 10)
        await turns()
        followers = asking(other, 10)
        await turns()
        answered(one)
        answers = await asyncio.gather(*leaders)
        await turns()
        assert calls(one, other) == [1, 1]
        answered(other)
        answers += await asyncio.gather(*followers)
        assert {answer.body for answer in answers} == {COMPLETION}
        statuses = [told(answer, b"cache-status") for answer in answers]
        assert sum("not-stored:queue-full" in status for status in statuses) == 2
        assert sum("collapsed" in status for status in statuses) == 18
        assert calls(one, other) == [1, 1]
        await here.over()
        assert here.store.values == {}


@pytest.mark.parametrize("stream", [True, False])
async def test_B41_nothing_is_stored_under_a_lease_that_was_lost(stream: bool) -> None:
    async with replicas() as here:
        one, other = here.engines
        leaders = asking_whole(one, 5, stream=stream)
        await turns()
        (key,) = here.medium.held
        here.medium.lose(key)
        (newer,) = asking_whole(other)
        await turns()
        assert calls(one, other) == [1, 1], "the key is free for others"
        answered(one, STREAM if stream else None)
        bodies = await asyncio.gather(*leaders)
        assert set(bodies) == {WHOLE if stream else COMPLETION}
        assert calls(one, other) == [1, 1], "who asked the old leader is answered by it"
        await turns()
        assert here.store.values == {}
        own = LiveResponse(headers=JSON)
        upstream(other).answer(0, own)
        own.say(COMPLETION.replace(b'"hi"', b'"newer"'), None)
        assert b"newer" in await newer
        await here.over()
        assert b"newer" in await asking_whole(one)[0]


async def test_B41_followers_of_a_leader_that_lost_its_lease_have_the_whole_stream() -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, followers = await leading_and_following(here, leads=True, follows=True)
        response = saying(one, *STREAM)
        await turns()
        (key,) = here.medium.held or [""]
        if key:
            here.medium.lose(key)
        response.say(None)
        assert await asyncio.gather(leader, *followers) == [WHOLE] * 2
        assert calls(one, other) == [1, 0]
        await here.over()


# ---- a purge between ----


@pytest.mark.parametrize("stream", [True, False])
async def test_B54_what_was_asked_before_a_purge_is_not_followed_after_it(stream: bool) -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=stream)
        await turns()
        response = saying(one, STREAM[0]) if stream else LiveResponse(headers=JSON)
        await other.generations.add(Selector())
        followers = asking_whole(other, 10, stream=stream)
        await turns()
        if stream:
            assert calls(one, other) == [1, 1]
            response.say_all(STREAM[1:])
        else:
            upstream(one).answer(0, response)
            response.say(COMPLETION, None)
        await leader
        await turns()
        assert calls(one, other) == [1, 1]
        newer = [event for event in STREAM if b"upon" not in event]
        if stream:
            answered(other, newer)
        else:
            own = LiveResponse(headers=JSON)
            upstream(other).answer(0, own)
            own.say(COMPLETION.replace(b'"hi"', b'"newer"'), None)
        for body in await asyncio.gather(*followers):
            assert (body == b"".join(newer)) if stream else (b"newer" in body)
        assert calls(one, other) == [1, 1], "one for all"
        await here.over()


async def test_B54_who_asks_after_a_purge_waits_for_nobody_who_asked_before_it() -> None:
    async with replicas(count=1) as here:
        (one,) = here.engines
        (before,) = asking_whole(one)
        await turns()
        await one.generations.add(Selector())
        after = asking_whole(one, 3)
        await turns()
        assert calls(one) == [2]
        assert here.medium.acquired == 1, "the lease of the older request is held here"
        own = LiveResponse(headers=JSON)
        upstream(one).answer(1, own)
        own.say(COMPLETION.replace(b'"hi"', b'"newer"'), None)
        assert all(b"newer" in body for body in await asyncio.gather(*after))
        answered(one, call=0)
        assert await before == COMPLETION
        await here.over()


async def test_B54_an_older_request_that_lands_leaves_the_newer_one_to_be_joined() -> None:
    async with replicas(count=1) as here:
        (one,) = here.engines
        (before,) = asking_whole(one)
        await turns()
        await one.generations.add(Selector())
        after = asking_whole(one)
        await turns()
        answered(one, call=0)
        await before
        after += asking_whole(one)
        await turns()
        assert calls(one) == [2]
        answered(one, call=1)
        assert await asyncio.gather(*after) == [COMPLETION] * 2
        await here.over()


# ---- clients that go ----


@pytest.mark.parametrize("policy", list(OnDisconnect))
@pytest.mark.parametrize("stage", ["asked", "begun"])
async def test_B41_followers_elsewhere_finish_when_the_leaders_client_has_gone(
    stage: str, policy: OnDisconnect
) -> None:
    async with replicas(replace(RULE, on_disconnect=policy)) as here:
        one, other = here.engines
        leader, followers = await leading_and_following(here, leads=True, follows=True, followers=2)
        response = LiveResponse()
        if stage == "begun":
            upstream(one).answer(0, response)
            response.say(STREAM[0])
            await turns()
        leader.cancel()
        await turns()
        if stage == "asked":
            upstream(one).answer(0, response)
            response.say(STREAM[0])
        response.say_all(STREAM[1:])
        assert await asyncio.gather(*followers) == [WHOLE] * 2
        assert calls(one, other) == [1, 0]
        await here.over()
        assert one.witness.unattended == [("finish", "stored")]
        assert told(await other.ask(), b"x-cache") == "HIT"


async def test_B41_who_waits_for_the_entry_takes_over_where_the_leader_gives_up() -> None:
    async with replicas(replace(RULE, on_disconnect=OnDisconnect.CANCEL)) as here:
        one, other = here.engines
        leader, followers = await leading_and_following(
            here, leads=False, follows=False, followers=3
        )
        leader.cancel()
        await turns()
        assert upstream(one).calls[0].cancelled()
        assert calls(one, other) == [1, 1]
        answered(other)
        assert await asyncio.gather(*followers) == [COMPLETION] * 3
        await here.over()


@pytest.mark.parametrize("policy", list(OnDisconnect))
@pytest.mark.parametrize("stream", [True, False])
async def test_B42_a_worker_that_only_follows_stops_with_its_last_client(
    stream: bool, policy: OnDisconnect
) -> None:
    async with replicas(replace(RULE, on_disconnect=policy)) as here:
        one, other = here.engines
        leader, followers = await leading_and_following(
            here, leads=stream, follows=stream, followers=2
        )
        followers[0].cancel()
        await turns()
        assert len(other.flights) == 1
        followers[1].cancel()
        await turns()
        assert len(other.flights) == 0
        assert len(other.flying) == 0
        await here.kill(one)
        assert calls(one, other) == [1, 0], "nobody takes over for nobody"
        answered(one, STREAM if stream else None)
        await leader
        await here.over()
        assert other.witness.unattended == []


@pytest.mark.parametrize("policy", list(OnDisconnect))
async def test_B42_with_all_clients_gone_everywhere_the_policy_decides(
    policy: OnDisconnect,
) -> None:
    async with replicas(replace(RULE, on_disconnect=policy)) as here:
        one = here.engines[0]
        leader, followers = await leading_and_following(here, leads=False, follows=False)
        followers[0].cancel()
        await turns()
        leader.cancel()
        await turns()
        finishes = policy is OnDisconnect.FINISH
        assert upstream(one).calls[0].cancelled() is not finishes
        if finishes:
            answered(one)
        await here.over()
        assert bool(here.store.values) is finishes


async def test_B42_who_goes_before_the_upstream_was_asked_has_nothing_asked() -> None:
    async with replicas(count=1) as here:
        (one,) = here.engines
        here.medium.stall()
        (client,) = asking(one)
        await turns()
        client.cancel()
        await turns()
        here.medium.resume()
        await here.over()
        assert calls(one) == [0]


async def test_B42_publishing_that_fails_does_not_keep_the_work_up_for_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with replicas(replace(RULE, on_disconnect=OnDisconnect.CANCEL)) as here:
        one, other = here.engines
        leader, followers = await leading_and_following(here, leads=True, follows=True)
        response = saying(one, STREAM[0])
        await turns()
        leader.cancel()
        await turns()
        assert not response.closed.is_set()
        here.medium.go_down()
        response.say(STREAM[1])
        await turns()
        assert response.closed.is_set()
        answered(other, STREAM)
        assert await asyncio.gather(*followers) == [WHOLE]
        here.medium.come_back(empty=True)
        await here.over()
    assert caplog.get_records("call") == [], "the medium's own circuit tells of it"


async def test_B42_what_turns_out_hopeless_with_nobody_waiting_is_let_go_of() -> None:
    async with replicas() as here:
        one = here.engines[0]
        (client,) = asking_whole(one, stream=True)
        await turns()
        response = saying(one, STREAM[0])
        await turns()
        client.cancel()
        await turns()
        assert not response.closed.is_set(), "it may still become an entry"
        response.say(event(error={"message": "overloaded"}))
        await turns()
        assert response.closed.is_set()
        await here.over()
        assert one.witness.unattended == [("finish", "uncacheable")]


async def test_B16_a_hopeless_stream_whose_leader_went_is_billed_at_its_end() -> None:
    async with replicas(count=0) as here:
        one = here.add(forwarder=UsageForwarder())
        goes, stays = asking_whole(one, 2, stream=True)
        await turns()
        bad = event(error={"message": "overloaded"})
        response = saying(one, STREAM[0], bad)
        await turns()
        goes.cancel()
        await turns()
        response.say_all([usage_chunk(), DONE])
        assert await stays == STREAM[0] + bad + DONE
        await here.over()
        assert one.witness.unattended == [("finish", "uncacheable")]


async def test_B42_a_refresh_goes_on_when_a_client_that_joined_it_leaves() -> None:
    async with replicas(replace(RULE, stale_while_revalidate_seconds=60.0), count=1) as here:
        (one,) = here.engines
        (asked,) = asking(one)
        await turns()
        answered(one)
        await asked
        await here.over()
        one.clock.advance(70.0)
        here.medium.stall()
        assert told(await one.ask(), b"x-cache") == "STALE"
        joined = going(one.ask_with((b"cache-control", b"max-age=5")))
        await turns()
        joined.cancel()
        await turns()
        here.medium.resume()
        await turns()
        assert calls(one) == [2]
        answered(one)
        await here.over()
        assert told(await one.ask(), b"x-cache") == "HIT"


# ---- bounds ----


@pytest.mark.parametrize("joins", ["before", "when the source waits"])
async def test_B43_a_client_that_does_not_read_holds_up_nobody_who_waits_for_the_entry(
    joins: str,
) -> None:
    engine = started()
    (stalls,) = asking(engine, stream=True)
    await turns()
    near = asking_whole(engine) if joins == "before" else []
    await turns()
    response = answered(engine, [*[chunk("x" * 1000) for _ in range(600)], *STREAM])
    if joins == "when the source waits":
        await turns(700)
        assert response.read < 600
        near = asking_whole(engine)
    assert len(orjson.loads(await near[0])["choices"][0]["message"]["content"]) > 600_000
    await left(await stalls)
    await nothing_left(engine)
    await engine.stop()


async def test_B42_a_client_that_left_holds_nothing_up() -> None:
    engine = started()
    (client,) = asking(engine, stream=True)
    await turns()
    response = saying(engine, STREAM[0])
    await left(await client)
    response.say_all([*[chunk("x" * 1000) for _ in range(600)], *STREAM[1:]])
    await nothing_left(engine)
    assert engine.witness.unattended == [("finish", "stored")]
    await engine.stop()


async def test_B43_nor_for_ever_who_waits_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.engine.flights._PATIENCE_SECONDS", 0.05)
    async with replicas() as here:
        (stalls,) = asking(here.engines[0], stream=True)
        await turns()
        (far,) = asking_whole(here.engines[1])
        await turns()
        long = [chunk("x" * 1000) for _ in range(600)]
        answered(here.engines[0], [*long, *STREAM])
        assert len(orjson.loads(await far)["choices"][0]["message"]["content"]) > 600_000
        await left(await stalls)
        await here.over()


async def test_B43_a_worker_that_follows_reads_no_faster_than_its_fastest_client() -> None:
    async with replicas(replace(RULE, max_entry_bytes=100_000)) as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        asked = asking(other, 2, stream=True)
        await turns()
        response = saying(one, STREAM[0])
        reads, stalls = await asyncio.gather(*asked)
        (flight,) = other.flights._table.values()
        # The leader goes on in turns, so that it can't come in one piece.
        held = []
        for _ in range(300):
            response.say(chunk("y" * 1000))
            await turns(8)
            held.append(len(flight.body.whole()))
        assert max(held) < 110_000
        reading = going(body_of(reads))
        response.say_all([*STREAM[1:]])
        assert (await reading).endswith(DONE)
        await leader
        with pytest.raises(Exception, match="so slowly"):
            await body_of(stalls)
        await here.over()


async def test_B43_a_stream_of_which_the_beginning_is_gone_is_not_published() -> None:
    async with replicas(replace(RULE, max_entry_bytes=1000)) as here:
        one = here.engines[0]
        (client,) = asking_whole(one, stream=True)
        await turns()
        (flight,) = one.flights._table.values()
        (lease,) = here.coalescers[0].leases
        response = saying(one, *[chunk("x" * 200) for _ in range(30)])
        await turns()
        assert not flight.body.is_whole
        await share(flight, lease)
        assert lease.flight.records == []
        response.say(None)
        await client
