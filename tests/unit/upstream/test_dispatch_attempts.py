"""What can be sent again, what is held meanwhile, and given back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.base import Outgoing, UpstreamRequest
from proxy.upstream.dispatch import UpstreamSet
from proxy.upstream.pooled_key import KeyState
from proxy.upstream.router import Router
from tests.fakes import FakeClock
from tests.unit.upstream.scripted import (
    Answer,
    Step,
    World,
    body_of,
    limited,
    refused,
    refused_connection,
    up,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("step", [Answer(500), UpstreamUnreachable("reset")])
async def test_B63_work_that_may_have_been_done_is_not_repeated(step: Step) -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(any=[step])
    outgoing = Outgoing("POST", "/fine_tuning/jobs", "", (), b"{}")
    try:
        exchange = await world.ok(outgoing)
        assert exchange.response.status == 500
    except UpstreamUnreachable:
        pass
    assert transport.used == ["a"]


async def test_B63_work_that_was_refused_is_asked_of_the_next_key() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[limited(5)])
    await world.ok(Outgoing("POST", "/fine_tuning/jobs", "", (), b"{}"))
    assert transport.used == ["a", "b"]


@pytest.mark.parametrize(
    ("first", "second", "may_be_done"),
    [
        (refused_connection(), refused_connection(), False),
        (refused(), refused(), False),
        (UpstreamUnreachable("reset"), refused_connection(), True),
        (UpstreamTimeout("late"), Answer(), True),
    ],
    ids=["nobody there", "refused", "reset", "late"],
)
async def test_an_error_says_whether_the_work_may_have_been_done(
    first: Step, second: Step, may_be_done: bool
) -> None:
    world = World(up("up", "a", "b"))
    world.on(a=[first], b=[second])
    with pytest.raises(UpstreamError) as raised:
        await world.send(Outgoing("DELETE", "/assistants/a", "", ()))
    assert raised.value.may_be_done is may_be_done


async def source() -> AsyncIterator[bytes]:
    yield b"upload"


async def test_B63_an_upload_is_not_sent_twice() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[limited(5, b"slow")])
    exchange = await world.send(Outgoing("POST", "/files", "", (), source()))
    assert exchange.response.status == 429
    assert await body_of(exchange) == b"slow"
    assert transport.used == ["a"]


async def test_B63_an_upload_that_was_not_begun_can_be_sent_on_another_key() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[UpstreamUnreachable("refused")])
    transport.takes_body = False
    assert (await world.ok(Outgoing("POST", "/files", "", (), source()))).response.status == 200
    assert transport.used == ["a", "b"]


async def test_B62_a_key_is_in_flight_until_the_answer_is_closed() -> None:
    world = World(up("up", "a"))
    exchange = await world.send()
    assert world.in_flight() == 1
    await body_of(exchange)
    await exchange.response.aclose()
    await exchange.response.aclose()
    assert world.in_flight() == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("broken")])
async def test_B62_a_key_is_given_back_when_sending_ends_otherwise(error: BaseException) -> None:
    world = World(up("up", "a"))

    def ends(request: UpstreamRequest) -> Answer:
        raise error

    world.on(a=[ends])
    with pytest.raises(type(error)):
        await world.send()
    assert world.in_flight() == 0
    assert world.states() == [KeyState.AVAILABLE]


async def test_B62_a_cancelled_retry_closes_what_was_held() -> None:
    world = World(up("up", "a", "b"))
    held = Answer(500, b"x" * 200_000)

    def ends(request: UpstreamRequest) -> Answer:
        raise asyncio.CancelledError

    world.on(a=[held], b=[ends])
    with pytest.raises(asyncio.CancelledError):
        await world.send()
    assert held.closed
    assert world.in_flight() == 0


async def test_B65_a_long_error_is_read_in_part_and_passes_whole() -> None:
    world = World(up("up", "a"))
    answer = limited(5, bytes(range(256)) * 1000)
    world.on(a=[answer])
    exchange = await world.send()
    assert answer.closed == 0
    assert await body_of(exchange) == answer.body
    await exchange.response.aclose()
    assert answer.closed == 1


async def test_B65_an_error_that_breaks_off_breaks_off_for_the_client() -> None:
    world = World(up("up", "a"))
    world.on(a=[Answer(403, b"half", cut=True)])
    exchange = await world.send()
    chunks = aiter(exchange.response.aiter_raw())
    assert await anext(chunks) == b"half"
    with pytest.raises(UpstreamProtocolError):
        await anext(chunks)


async def test_a_route_to_an_unknown_upstream_is_refused() -> None:
    with pytest.raises(ValueError, match="gone"):
        UpstreamSet([up()], Router(default_upstream="gone"), clock=FakeClock())
