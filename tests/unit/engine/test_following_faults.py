"""A medium that fails, and followers that fall behind: everyone is answered all the same (B41, B50)."""

import asyncio
from dataclasses import replace

import pytest

from proxy.coalesce.base import FlightEnd
from proxy.engine.flight import Head
from proxy.engine.records import Ended, Headed, LeaderCall, Piece, read_record, written
from proxy.errors import UpstreamProtocolError
from tests.coalescing import FakeFlight
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
)
from tests.unit.engine.kit import COMPLETION, RULE
from tests.unit.engine.upstreams import DONE, STREAM, chunk, turns

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

SAME = [chunk("Once ", name="d"), chunk("upon", name="d"), chunk(finish="stop", name="d"), DONE]


@pytest.mark.parametrize("stream", [True, False])
async def test_B50_a_medium_that_is_down_costs_one_request_per_worker(stream: bool) -> None:
    async with replicas() as here:
        here.medium.go_down()
        asked = [*asking_whole(here.engines[0], 5, stream=stream)]
        asked += asking_whole(here.engines[1], 5, stream=stream)
        await turns()
        assert calls(*here.engines) == [1, 1]
        for engine in here.engines:
            answered(engine, STREAM if stream else None)
        assert set(await asyncio.gather(*asked)) == {WHOLE if stream else COMPLETION}
        await here.over()


@pytest.mark.parametrize("stream", [True, False])
async def test_B50_who_follows_when_the_medium_fails_goes_alone(stream: bool) -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, followers = await leading_and_following(
            here, leads=stream, follows=stream, followers=5
        )
        here.medium.go_down()
        await turns()
        assert calls(one, other) == [1, 1]
        for engine in here.engines:
            answered(engine, STREAM if stream else None)
        bodies = await asyncio.gather(leader, *followers)
        assert set(bodies) == {WHOLE if stream else COMPLETION}
        here.medium.come_back(empty=True)
        await here.over()


@pytest.mark.parametrize("handed_on", range(len(STREAM)))
@pytest.mark.parametrize("says_the_same", [True, False])
async def test_B50_a_stream_goes_on_after_the_medium_failed_if_the_answer_is_the_same(
    says_the_same: bool, handed_on: int
) -> None:
    async with replicas() as here:
        one, other = here.engines
        leader, (follower,) = await leading_and_following(here, leads=True, follows=True)
        response = saying(one, *STREAM[:handed_on])
        await turns()
        here.medium.go_down()
        await turns()
        new = SAME if says_the_same else [chunk("No.", name="d"), *SAME[2:]]
        answered(other, new)
        response.say_all(STREAM[handed_on:])
        assert await leader == WHOLE, "its own client needs no medium"
        if says_the_same or not handed_on:
            assert await follower == (WHOLE if handed_on else b"".join(new))
        else:
            with pytest.raises(UpstreamProtocolError):
                await follower
        here.medium.come_back(empty=True)
        await here.over()


async def test_B50_a_medium_that_is_slow_holds_up_who_publishes_but_not_its_clients() -> None:
    async with replicas() as here:
        leader, (follower,) = await leading_and_following(here, leads=True, follows=True)
        response = saying(here.engines[0], STREAM[0])
        await turns()
        here.medium.stall()
        response.say_all(STREAM[1:])
        assert await leader == WHOLE
        await turns()
        assert not follower.done()
        here.medium.resume()
        assert await follower == WHOLE
        assert calls(*here.engines) == [1, 0]
        await here.over()


async def test_B43_who_fell_behind_the_leader_goes_alone() -> None:
    async with replicas() as here:
        one, other = here.engines
        (leader,) = asking_whole(one, stream=True)
        await turns()
        (early,) = asking_whole(other, stream=True)
        await turns()
        response = saying(one, *STREAM[:2])
        await turns()
        (key,) = here.medium.held
        here.medium.forget(key, 2)
        third = here.add()
        (late,) = asking_whole(third, stream=True)
        await turns()
        assert calls(one, other, third) == [1, 0, 1]
        answered(third, STREAM)
        response.say_all(STREAM[2:])
        assert set(await asyncio.gather(leader, early, late)) == {WHOLE}
        await here.over()


# ---- leaders that say what they should not, or not all of it ----


def led_by_hand(here: Replicas, key: str) -> FakeFlight:
    return here.medium.lead(key)


async def key_of(here: Replicas) -> str:
    """The store key of what all ask for here."""
    probe = here.add()
    (asked,) = asking(probe, stream=True)
    await turns()
    (key,) = here.medium.held
    asked.cancel()
    saying(probe)
    await turns()
    here.medium.held.clear()
    return key


def head() -> Headed:
    return Headed(
        LeaderCall(
            key="k", rule="all", model="m", tenant="", tags=(), stored_at=1.8e9, generation=0
        ),
        Head(
            status=200,
            headers=((b"content-type", b"text/event-stream"),),
            is_stream=True,
            upstream="u",
        ),
    )


def said(*pieces: bytes) -> list[bytes]:
    return [written(head()), *(written(Piece(piece)) for piece in pieces)]


@pytest.mark.parametrize(
    "records",
    [
        pytest.param([b""], id="nothing"),
        pytest.param([b"h{}"], id="a head of nothing"),
        pytest.param([b"h" + b"\xff"], id="no JSON"),
        pytest.param(
            [written(head()).replace(b'"version":1', b'"version":2')], id="another version"
        ),
        pytest.param([written(head()).replace(b'"tenant"', b'"renter"')], id="another shape"),
        pytest.param([b"x"], id="an unknown kind"),
        pytest.param([written(Piece(STREAM[0]))], id="no head"),
        pytest.param([written(Ended(None))], id="an end without a head"),
        pytest.param([*said(), b"e[1]"], id="an end of another shape"),
    ],
)
async def test_B50_a_leader_that_is_not_understood_is_not_followed(records: list[bytes]) -> None:
    async with replicas(count=1) as here:
        leader = led_by_hand(here, await key_of(here))
        (client,) = asking_whole(here.engines[0], stream=True)
        await turns()
        leader.records.extend(records)
        leader.change()
        await turns()
        assert calls(here.engines[0]) == [1]
        answered(here.engines[0], STREAM)
        assert await client == WHOLE


@pytest.mark.parametrize("end", [FlightEnd.STORED, FlightEnd.UNCACHEABLE])
@pytest.mark.parametrize("handed_on", range(3))
async def test_B43_a_stream_without_its_end_is_never_taken_for_the_whole(
    handed_on: int, end: FlightEnd
) -> None:
    """The leader stopped to publish: it had no room, or the medium hiccuped."""
    async with replicas(count=1) as here:
        key = await key_of(here)
        leader = led_by_hand(here, key)
        (client,) = asking_whole(here.engines[0], stream=True)
        await turns()
        leader.records.extend(said(*STREAM[:handed_on]))
        here.medium.land(key, end)
        await turns()
        assert calls(here.engines[0]) == [1]
        answered(here.engines[0], SAME)
        assert await client == (WHOLE if handed_on else b"".join(SAME))


async def test_B43_what_is_said_at_once_does_not_pass_those_who_have_not_begun_to_read() -> None:
    """A follower that comes late gets much in one go, more than may be held."""
    async with replicas(replace(RULE, max_entry_bytes=1000), count=1) as here:
        key = await key_of(here)
        leader = led_by_hand(here, key)
        clients = asking_whole(here.engines[0], 3, stream=True)
        await turns()
        many = [*[chunk("x" * 200) for _ in range(30)], *STREAM]
        leader.records.extend([*said(*many), written(Ended(None))])
        here.medium.land(key, FlightEnd.UNCACHEABLE)
        assert await asyncio.gather(*clients) == [b"".join(many)] * 3


@pytest.mark.parametrize("end", list(FlightEnd))
async def test_B21_a_stream_with_its_end_is_whole_whatever_becomes_of_the_leader(
    end: FlightEnd,
) -> None:
    async with replicas(count=1) as here:
        key = await key_of(here)
        leader = led_by_hand(here, key)
        (client,) = asking_whole(here.engines[0], stream=True)
        await turns()
        leader.records.extend([*said(*STREAM), written(Ended(None))])
        here.medium.land(key, end)
        assert await client == WHOLE
        assert calls(here.engines[0]) == [0]
        assert here.engines[0].witness.outcomes[-1].complete


async def test_records_are_read_as_they_were_written() -> None:
    for record in (head(), Piece(b"\x00p"), Piece(b""), Ended(None)):
        assert read_record(written(record)).__class__ is record.__class__
    assert read_record(written(Piece(b"\xff\n"))) == Piece(b"\xff\n")
    again = read_record(written(head()))
    assert isinstance(again, Headed)
    assert again.call == head().call
