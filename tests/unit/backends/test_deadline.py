"""The time limit that is fair to others while the loop is busy."""

import asyncio
import socket
import time

import pytest

from proxy.backends.deadline import deadline

pytestmark = pytest.mark.anyio


async def test_what_does_not_come_is_given_up_in_time() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with deadline(0.05):
            await asyncio.Event().wait()
    assert 0.05 <= time.monotonic() - began < 1.0


async def test_a_reply_that_came_while_the_loop_was_busy_is_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        async with deadline(0.05):
            theirs.sendall(b"reply")
            time.sleep(0.2)  # noqa: ASYNC251 - the loop is busy
            for _ in range(20):  # what it takes to get from the socket to who waits
                await asyncio.sleep(0)
            assert await reader.readexactly(5) == b"reply"
        writer.close()
        await writer.wait_closed()


async def test_what_does_not_come_either_is_given_up_after_that() -> None:
    async def wait() -> None:
        async with deadline(0.05):
            time.sleep(0.2)  # noqa: ASYNC251 - the loop is busy
            await asyncio.Event().wait()

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await wait()
    assert time.monotonic() - began < 1.0


async def test_a_cancellation_is_none_of_its_business() -> None:
    async def wait() -> None:
        async with deadline(5.0):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
