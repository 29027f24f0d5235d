"""What those who share a flight do not share, and flights that nobody wants any more."""

import asyncio
import gzip
import tracemalloc
from dataclasses import replace

import orjson
import pytest

from proxy.core.paths import FieldPath
from proxy.core.rules import OnDisconnect
from proxy.core.tags import MOST_TAGS, TagTemplate
from tests.unit.engine.crowds import (
    answered,
    asking,
    asking_whole,
    calls,
    left,
    nothing_left,
    saying,
    started,
    upstream,
)
from tests.unit.engine.kit import COMPLETION, RULE, going, told
from tests.unit.engine.upstreams import JSON, STREAM, LiveResponse, body_of, turns

pytestmark = pytest.mark.anyio

MESSAGES = replace(RULE, include_in_key=(FieldPath.parse("messages"),))


@pytest.mark.parametrize("status", [400, 403, 422])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_B41_who_asks_otherwise_is_not_told_of_the_leaders_fault(
    stream: bool, status: int
) -> None:
    engine = started(MESSAGES)
    leader = asking(engine, max_tokens=10**9)
    await turns()
    others = asking(engine, 3, max_tokens=5, stream=stream)
    await turns()
    answered(engine, status=status)
    await turns()
    assert calls(engine) == [2]  # together again, without the leader
    answered(engine)
    answers = await asyncio.gather(*leader, *others)
    assert [answer.status for answer in answers] == [status, 200, 200, 200]
    await nothing_left(engine)


@pytest.mark.parametrize("status", [429, 500])
async def test_B41_who_asks_otherwise_shares_what_is_no_fault_of_a_request(status: int) -> None:
    engine = started(MESSAGES)
    asked = [*asking(engine, max_tokens=10**9), *asking(engine, 3, max_tokens=5)]
    await turns()
    answered(engine, status=status)
    assert [answer.status for answer in await asyncio.gather(*asked)] == [status] * 4
    assert calls(engine) == [1]
    await nothing_left(engine)


async def test_B42_an_overlong_answer_is_not_read_for_nobody() -> None:
    engine = started(replace(RULE, max_entry_bytes=1000))
    (leader,) = asking(engine)
    await turns()
    leader.cancel()
    await turns()
    response = LiveResponse(headers=JSON)
    upstream(engine).answer(0, response)
    response.say(*[b"x" * 2000] * 50)  # and no end
    await nothing_left(engine)
    assert response.closed.is_set()
    assert response.read <= 2


async def test_B41_who_comes_as_the_last_client_goes_does_not_join_what_is_given_up() -> None:
    engine = started(replace(RULE, on_disconnect=OnDisconnect.CANCEL))
    (first,) = asking(engine, stream=True)
    await turns()
    response = saying(engine, STREAM[0])
    answer = await first
    gone = going(left(answer))
    (second,) = asking_whole(engine, stream=True)  # in the same turn of the loop
    await turns()
    answered(engine, STREAM)
    assert await second == b"".join(STREAM)
    assert calls(engine) == [2]
    assert response.closed.is_set()
    await gone
    await nothing_left(engine)


async def test_B17_a_follower_has_an_id_of_its_own_where_the_rule_wants_new_ones() -> None:
    engine = started(replace(RULE, fresh_ids=True))
    asked = asking(engine, 2)
    await turns()
    answered(engine)
    bodies = [await body_of(answer) for answer in await asyncio.gather(*asked)]
    assert [orjson.loads(body)["id"] for body in bodies] == ["c", "chatcmpl-req_1"]
    await nothing_left(engine)


async def test_B19_a_follower_that_takes_no_plain_bytes_gets_none() -> None:
    engine = started()
    coded = (b"accept-encoding", b"gzip, identity;q=0")
    asked = [*asking(engine), going(engine.ask_with(coded))]
    await turns()
    answered(engine)
    _, follower = await asyncio.gather(*asked)
    assert told(follower, b"content-encoding") == "gzip"
    assert gzip.decompress(await body_of(follower)) == COMPLETION
    await nothing_left(engine)


async def test_B50_an_answer_that_unpacks_to_far_more_than_an_entry_is_passed_on_packed() -> None:
    engine = started(replace(RULE, max_entry_bytes=100_000))
    packed = gzip.compress(b" " * 50_000_000)
    (asked,) = asking(engine)
    await turns()
    response = LiveResponse(headers=(*JSON, (b"Content-Encoding", b"gzip")))
    upstream(engine).answer(0, response)
    tracemalloc.start()
    response.say_all([packed])
    answer = await asked
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert await body_of(answer) == packed
    assert "not-stored:too-large" in told(answer, b"cache-status")
    assert most < 25_000_000
    await nothing_left(engine)


async def test_B40_what_has_too_many_tags_to_be_stored_is_waited_for_by_nobody() -> None:
    tags = tuple(TagTemplate.parse(f"t{number}") for number in range(MOST_TAGS + 1))
    engine = started(replace(RULE, tags=tags))
    asked = asking(engine, 2)
    await turns()
    assert calls(engine) == [2]
    asked.pop().cancel()
    await turns()
    assert upstream(engine).calls[1].cancelled(), "nor is it finished for nobody"
    answered(engine, call=0)
    await asyncio.gather(*asked)
    await nothing_left(engine)
