"""A client's own deadline: what it cuts off, and what not."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.core.wire import Headers
from proxy.engine.base import Answer
from proxy.engine.patience import Patience
from proxy.errors import ClientDeadline
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

HASTY: Headers = ((b"x-request-timeout", b"10"),)
SDK: Headers = ((b"x-stainless-read-timeout", b"10"),)


def begun(headers: Headers, *, ago: float = 0.0, uploads: bool = False) -> Patience:
    """The patience of a request that began so many seconds ago."""
    clock = FakeClock()
    return Patience(headers, clock, clock.monotonic() - ago, uploads=uploads)


class Body:
    """Two chunks, then silence; or after the first one `clock` goes on by 11 seconds."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"one"
        if self.clock is not None:
            self.clock.advance(11.0)
        yield b"two"
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed = True


async def too_long(patience: Patience) -> None:
    async with patience.beginning():
        await asyncio.Event().wait()


async def test_B68_what_takes_too_long_to_begin_is_cancelled() -> None:
    with pytest.raises(ClientDeadline) as caught:
        await too_long(begun(HASTY, ago=11.0))
    assert (caught.value.status, caught.value.error_code) == (504, "client_deadline")


async def test_an_sdk_gets_the_time_to_say_it_itself() -> None:
    async with begun(SDK, ago=10.5).beginning():
        await asyncio.sleep(0)
    with pytest.raises(ClientDeadline):
        await too_long(begun(SDK, ago=11.5))


async def test_an_sdk_s_time_does_not_run_during_an_upload() -> None:
    async with begun(SDK, ago=100.0, uploads=True).beginning():
        await asyncio.sleep(0)
    with pytest.raises(ClientDeadline):
        await too_long(begun(HASTY, ago=100.0, uploads=True))


async def test_another_time_out_stays_what_it_is() -> None:
    with pytest.raises(TimeoutError):
        async with begun(HASTY).beginning():
            raise TimeoutError


async def test_a_cancellation_stays_one() -> None:
    task = asyncio.create_task(too_long(begun(HASTY)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_B21_a_body_breaks_off_when_the_time_is_over() -> None:
    clock = FakeClock()
    body = Body(clock)
    bounded = Patience(HASTY, clock, clock.monotonic()).bounded_body(body)
    chunks = aiter(bounded)
    assert [await anext(chunks), await anext(chunks)] == [b"one", b"two"]
    with pytest.raises(ClientDeadline):
        await anext(chunks)
    await bounded.aclose()
    assert body.closed


async def test_B21_a_body_that_falls_silent_breaks_off_in_time() -> None:
    headers = ((b"x-request-timeout", b"30ms"),)
    clock = FakeClock()
    chunks = aiter(Patience(headers, clock, clock.monotonic()).bounded_body(Body()))
    assert [await anext(chunks), await anext(chunks)] == [b"one", b"two"]
    with pytest.raises(ClientDeadline):
        await anext(chunks)


async def test_only_a_body_that_is_still_to_come_is_bounded() -> None:
    whole, stream = Answer(200, [], b"whole"), Answer(200, [], Body())
    assert begun(HASTY, ago=11.0).bounded(whole) is whole
    assert begun(SDK, ago=11.0).bounded(stream) is stream
    assert begun(()).bounded(stream) is stream
    assert begun(HASTY).bounded(stream).body is not stream.body
