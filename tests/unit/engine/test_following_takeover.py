"""A leader dies: somebody who followed it takes over, and clients see one answer or an error (B41).

The new answer says the same under other names, or says something else.
"""

import asyncio
from dataclasses import replace

import orjson
import pytest

from proxy.errors import UpstreamProtocolError
from tests.unit.engine.crowds import (
    WHOLE,
    Replicas,
    answered,
    asking,
    asking_whole,
    calls,
    leading_and_following,
    replicas,
    saying,
    upstream,
)
from tests.unit.engine.kit import COMPLETION, RULE, told
from tests.unit.engine.upstreams import (
    DONE,
    JSON,
    STREAM,
    LiveForwarder,
    LiveResponse,
    UsageForwarder,
    body_of,
    chunk,
    turns,
    usage_chunk,
)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

SAME = [chunk("Once ", name="d"), chunk("upon", name="d"), chunk(finish="stop", name="d"), DONE]
OTHER = [chunk("Twice", name="d"), chunk(finish="stop", name="d"), DONE]


def text_of(completion: bytes) -> str:
    said: str = orjson.loads(completion)["choices"][0]["message"]["content"]
    return said


async def begun(here: Replicas, handed_on: int, followers: int = 1) -> list[asyncio.Task[bytes]]:
    """A leader that has said so many events, and died; who follows it elsewhere is returned."""
    leader, following = await leading_and_following(
        here, leads=True, follows=True, followers=followers
    )
    saying(here.engines[0], *STREAM[:handed_on])
    await turns()
    await here.kill(here.engines[0])
    leader.cancel()
    return following


async def parted(here: Replicas, handed_on: int, new: list[bytes]) -> asyncio.Task[bytes]:
    """The new answer breaks the stream off; who waits for the whole of it is returned."""
    (stream,) = await begun(here, handed_on)
    other = here.engines[1]
    (whole,) = asking_whole(other)
    await turns()
    answered(other, new)
    with pytest.raises(UpstreamProtocolError):
        await stream
    return whole


@pytest.mark.parametrize("stream", [True, False])
async def test_B41_a_leader_that_dies_before_its_head_is_taken_over(stream: bool) -> None:
    async with replicas(count=3) as here:
        one, two, three = here.engines
        (leader,) = asking_whole(one, stream=stream)
        await turns()
        followers = [
            *asking_whole(two, 5, stream=stream),
            *asking_whole(three, 5, stream=stream),
        ]
        await turns()
        await here.kill(one)
        leader.cancel()
        assert sorted(calls(two, three)) == [0, 1], "one takes over, the other follows it"
        new = two if calls(two) == [1] else three
        answered(new, STREAM if stream else None)
        assert set(await asyncio.gather(*followers)) == {WHOLE if stream else COMPLETION}
        assert sorted(calls(two, three)) == [0, 1]
        for engine in (two, three):
            assert told(await engine.ask(stream=stream), b"x-cache") == "HIT"


@pytest.mark.parametrize("handed_on", range(len(STREAM)))
async def test_B41_the_same_answer_under_another_name_goes_on_in_one_stream(
    handed_on: int,
) -> None:
    async with replicas() as here:
        followers = await begun(here, handed_on, followers=3)
        other = here.engines[1]
        assert calls(other) == [1]
        answered(other, SAME)
        expected = WHOLE if handed_on else b"".join(SAME)
        assert await asyncio.gather(*followers) == [expected] * 3
        await turns()
        assert text_of(await body_of(await other.ask())) == "Once upon"
        (outcome, *_) = other.witness.outcomes
        assert outcome.complete
        assert outcome.collapsed
        assert other.witness.unattended == [("finish", "stored")], "billed, and nobody's own"


@pytest.mark.parametrize("handed_on", [2, 3])
@pytest.mark.parametrize(
    ("new", "text"),
    [
        pytest.param(OTHER, "Twice", id="other"),
        pytest.param([*SAME[:1], *OTHER], "Once Twice", id="other from the second event on"),
        pytest.param([chunk("Once upon"), *SAME[2:]], "Once upon", id="cut into other events"),
    ],
)
async def test_B41_another_answer_breaks_the_stream_off_and_is_finished_for_the_rest(
    new: list[bytes], text: str, handed_on: int
) -> None:
    async with replicas() as here:
        other = here.engines[1]
        whole = await parted(here, handed_on, new)
        assert text_of(await whole) == text
        assert not other.witness.outcomes[0].complete
        hit = await other.ask()
        assert (told(hit, b"x-cache"), text_of(await body_of(hit))) == ("HIT", text)
        assert calls(other) == [1]


async def test_B41_nobody_gets_a_stream_from_its_middle_that_broke_off_for_others() -> None:
    async with replicas() as here:
        (stream,) = await begun(here, 2)
        other = here.engines[1]
        new = saying(other, *OTHER[:1])
        with pytest.raises(UpstreamProtocolError):
            await stream
        (late,) = asking_whole(other, stream=True)
        await turns()
        new.say_all(OTHER[1:])
        assert text_of(await body_of(await other.ask())) == "Twice"
        assert await late == b"".join(OTHER)
        assert calls(other) == [1]


@pytest.mark.parametrize("handed_on", [2, 3])
@pytest.mark.parametrize("new", [SAME[:1], []], ids=["shorter", "empty"])
async def test_B41_a_new_answer_that_is_not_whole_breaks_the_stream_off_and_is_not_stored(
    new: list[bytes], handed_on: int
) -> None:
    async with replicas() as here:
        other = here.engines[1]
        whole = await parted(here, handed_on, new)
        await turns()
        assert calls(other) == [2], "who was sent nothing tries once more"
        assert here.store.values == {}
        answered(other)
        assert await whole == COMPLETION
        assert not other.witness.outcomes[0].complete


@pytest.mark.parametrize("new", [SAME, OTHER])
async def test_B41_who_waits_for_the_entry_gets_a_right_answer_either_way(
    new: list[bytes],
) -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, wholes = await leading_and_following(here, leads=True, follows=False, followers=3)
        saying(one, *STREAM[:2])
        await turns()
        await here.kill(one)
        leader.cancel()
        assert calls(other) == [1]
        answered(other)
        assert await asyncio.gather(*wholes) == [COMPLETION] * 3
        assert calls(other) == [1]


async def test_B41_a_whole_answer_can_t_go_on_with_a_stream_but_serves_those_who_wait() -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, wholes = await leading_and_following(here, leads=True, follows=False, followers=2)
        (stream,) = asking_whole(other, stream=True)
        await turns()
        saying(one, STREAM[0])
        await turns()
        await here.kill(one)
        leader.cancel()
        assert calls(other) == [1], "it asks as the first of its clients did: for JSON"
        answered(other)
        with pytest.raises(UpstreamProtocolError):
            await stream
        assert await asyncio.gather(*wholes) == [COMPLETION] * 2
        assert calls(other) == [1]
        await turns()
        assert told(await other.ask(), b"x-cache") == "HIT"


async def test_B41_a_stream_that_has_only_begun_does_not_end_empty() -> None:
    """The head was handed on, and not a byte of the body."""
    async with replicas() as here:
        one, other = here.engines
        leader, wholes = await leading_and_following(here, leads=True, follows=False)
        (asked,) = asking(other, stream=True)
        await turns()
        saying(one)
        stream = await asked
        await here.kill(one)
        leader.cancel()
        answered(other)
        with pytest.raises(UpstreamProtocolError):
            await body_of(stream)
        assert await asyncio.gather(*wholes) == [COMPLETION]


@pytest.mark.parametrize("handed_on", range(len(STREAM)))
async def test_B41_who_follows_the_second_leader_gets_nothing_twice(handed_on: int) -> None:
    async with replicas(count=3) as here:
        one, two, three = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        followers = [*asking_whole(two, stream=True), *asking_whole(three, stream=True)]
        await turns()
        saying(one, *STREAM[:handed_on])
        await turns()
        await here.kill(one)
        leader.cancel()
        new = two if calls(two) == [1] else three
        response = LiveResponse()
        upstream(new).answer(0, response)
        late: list[asyncio.Task[bytes]] = []
        for event in SAME[:-1]:
            response.say(event)
            await turns()
            late += asking_whole(three if new is two else two, stream=True)
        response.say(DONE, None)
        expected = WHOLE if handed_on else b"".join(SAME)
        assert set(await asyncio.gather(*followers, *late)) == {expected}
        assert sorted(calls(two, three)) == [0, 1]


async def test_B41_leaders_may_die_one_after_the_other() -> None:
    async with replicas(count=5) as here:
        clients: dict[str, asyncio.Task[bytes]] = {}
        alive = dict(zip("cdefg", here.engines, strict=True))
        for name, engine in alive.items():
            (clients[name],) = asking_whole(engine, stream=True)
            await turns()
        for said in range(1, 4):
            name, leader = next(each for each in alive.items() if calls(each[1]) == [1])
            named = [event.replace(b'"c"', b'"%s"' % name.encode()) for event in STREAM]
            saying(leader, *named[:said])
            await turns()
            clients.pop(name).cancel()
            await here.kill(alive.pop(name))
        leader = next(engine for engine in alive.values() if calls(engine) == [1])
        answered(leader, SAME)
        assert set(await asyncio.gather(*clients.values())) == {WHOLE}
        assert sum(calls(*here.engines)) == 4


@pytest.mark.parametrize("cut", [1, 6, 20, -3, -1])
async def test_B41_an_event_that_was_cut_in_the_middle_is_handed_on_whole_or_not_at_all(
    cut: int,
) -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, (follower,) = await leading_and_following(here, leads=True, follows=True)
        saying(one, STREAM[0], STREAM[1][:cut])
        await turns()
        await here.kill(one)
        leader.cancel()
        answered(other, SAME)
        assert await follower == WHOLE


async def test_B25_what_is_cut_anywhere_is_followed_byte_for_byte() -> None:
    async with replicas() as here:
        one, _ = here.engines
        leader, (follower,) = await leading_and_following(here, leads=True, follows=True)
        whole = b": hello\r\n\r\n" + WHOLE
        response = saying(one)
        for at in range(0, len(whole), 7):
            response.say(whole[at : at + 7])
            await turns(4)
        response.say(None)
        assert await leader == whole == await follower
        await here.over()


# ---- the usage chunk ----


@pytest.mark.parametrize("handed_on", range(len(STREAM) + 1))
async def test_B24_the_usage_chunk_goes_to_those_who_asked_across_a_takeover(
    handed_on: int,
) -> None:
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=UsageForwarder()), here.add(forwarder=UsageForwarder())
        with_usage = [*STREAM[:-1], usage_chunk(), DONE]
        (leader,) = asking_whole(one, stream=True)
        await turns()
        (plain,) = asking_whole(other, stream=True)
        (asked,) = asking_whole(other, stream=True, stream_options={"include_usage": True})
        await turns()
        saying(one, *with_usage[:handed_on])
        await turns()
        await here.kill(one)
        leader.cancel()
        renamed = [event.replace(b'"id":"c"', b'"id":"d"') for event in with_usage]
        answered(other, renamed)
        expected = with_usage if handed_on else renamed
        assert await asked == b"".join(expected)
        assert await plain == b"".join(event for event in expected if b'"usage"' not in event)


async def test_B24_a_usage_chunk_that_only_the_second_leader_gets_is_for_nobody() -> None:
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=LiveForwarder()), here.add(forwarder=UsageForwarder())
        leader, (plain,) = await leading_and_following(here, leads=True, follows=True)
        saying(one, STREAM[0])
        await turns()
        await here.kill(one)
        leader.cancel()
        answered(other, [*SAME[:-1], usage_chunk(), DONE])
        assert await plain == WHOLE


async def test_B24_who_was_promised_the_usage_chunk_is_not_left_without() -> None:
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=UsageForwarder()), here.add(forwarder=LiveForwarder())
        (leader,) = asking_whole(one, stream=True)
        await turns()
        (plain,) = asking_whole(other, stream=True)
        await turns()
        (asked,) = asking_whole(other, stream=True, stream_options={"include_usage": True})
        await turns()
        saying(one, STREAM[0])
        await turns()
        await here.kill(one)
        leader.cancel()
        answered(other, [*SAME[:-1], usage_chunk(), DONE])
        (outgoing,) = [
            bytes(sent.body) for sent in upstream(other).sent if isinstance(sent.body, bytes)
        ]
        assert b'"include_usage":true' in outgoing, "who was promised it lends its request"
        assert await plain == WHOLE
        assert usage_chunk() in await asked


async def test_B41_who_streams_lends_its_request_where_a_plain_one_began_the_flight() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        (whole,) = asking_whole(other)
        await turns()
        streams = asking_whole(other, 2, stream=True)
        await turns()
        saying(one, STREAM[0])
        await turns()
        await here.kill(one)
        leader.cancel()
        await turns()
        (outgoing,) = [
            bytes(sent.body) for sent in upstream(other).sent if isinstance(sent.body, bytes)
        ]
        assert b'"stream":true' in outgoing
        answered(other, SAME)
        assert await asyncio.gather(*streams) == [WHOLE] * 2
        message = orjson.loads(await whole)["choices"][0]["message"]
        assert message["content"] == "Once upon"


async def test_B41_an_error_for_an_answer_breaks_the_stream_and_is_tried_again_for_the_rest() -> (
    None
):
    async with replicas() as here:
        (stream,) = await begun(here, 1)
        other = here.engines[1]
        wholes = asking_whole(other, 3)
        await turns()
        response = LiveResponse(500, JSON)
        upstream(other).answer(0, response)
        response.say(b'{"error":{}}', None)
        with pytest.raises(UpstreamProtocolError):
            await stream
        await turns()
        assert calls(other) == [2]
        answered(other)
        assert await asyncio.gather(*wholes) == [COMPLETION] * 3


async def test_B41_a_stream_of_which_the_beginning_is_gone_is_not_gone_on_with() -> None:
    async with replicas(replace(RULE, max_entry_bytes=1000)) as here:
        one, other = here.engines
        leader, (follower,) = await leading_and_following(here, leads=True, follows=True)
        long = [chunk("x" * 200) for _ in range(30)]
        saying(one, *long)
        await turns()
        await here.kill(one)
        leader.cancel()
        answered(other, [*long, *STREAM])
        with pytest.raises(UpstreamProtocolError):
            await follower


async def test_B41_a_new_answer_that_is_no_stream_and_too_long_breaks_the_stream_off() -> None:
    async with replicas(replace(RULE, max_entry_bytes=1000)) as here:
        (stream,) = await begun(here, 1)
        response = LiveResponse(headers=JSON)
        upstream(here.engines[1]).answer(0, response)
        response.say(COMPLETION + b" " * 2000, None)
        with pytest.raises(UpstreamProtocolError):
            await stream


async def test_B24_nor_is_the_tail_of_a_stream_lost_that_only_the_second_leader_counts() -> None:
    async with replicas(count=0) as here:
        one, other = here.add(forwarder=LiveForwarder()), here.add(forwarder=UsageForwarder())
        leader, (plain,) = await leading_and_following(here, leads=True, follows=True)
        saying(one, STREAM[0])
        await turns()
        await here.kill(one)
        leader.cancel()
        answered(other, [*SAME[:-1], usage_chunk(), b"data: [DO"])
        assert await plain == WHOLE.removesuffix(b"NE]\n\n")
