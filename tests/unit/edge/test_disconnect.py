"""Work for a client that may go away."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest

from proxy.edge.asgi import ClientGone, Message, read_body
from proxy.edge.disconnect import Upload, while_connected
from proxy.tasks import TaskGroup
from tests.unit.edge.kit import Client
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.cancelled = False
        self.cleaned_up = False

    async def run(self) -> None:
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            await asyncio.sleep(0)
            self.cleaned_up = True
            raise


def going(work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    return asyncio.get_running_loop().create_task(work)


@pytest.fixture
def tasks() -> TaskGroup:
    return TaskGroup()


async def test_work_is_done_to_its_end_and_held_meanwhile(tasks: TaskGroup) -> None:
    done = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(tasks.count("request"))

    await while_connected(work(), Client().receive, tasks)

    assert done == [1]
    assert len(tasks) == 0


async def test_B42_work_is_cancelled_when_the_client_goes(tasks: TaskGroup) -> None:
    client, work = Client(), Work()
    request = going(while_connected(work.run(), client.receive, tasks))
    await work.begun.wait()

    client.leaves()
    await request

    assert work.cancelled
    assert work.cleaned_up
    assert not request.cancelling()
    assert len(tasks) == 0


async def test_B42_a_client_that_went_at_once_is_noticed_too(tasks: TaskGroup) -> None:
    client, work = Client(), Work()
    client.leaves()
    await while_connected(work.run(), client.receive, tasks)
    assert work.cancelled


@pytest.mark.parametrize("leaves_before", [False, True])
async def test_the_watch_ends_with_the_work(leaves_before: bool, tasks: TaskGroup) -> None:
    client = Client()

    async def asks() -> None:
        await while_connected(ends(), client.receive, tasks)
        client.leaves()
        await asyncio.sleep(0)  # else nothing would be cancelled before the end

    async def ends() -> None:
        if leaves_before:
            client.leaves()

    await going(asks())
    assert len(tasks) == 0


async def test_what_the_work_raises_is_raised(tasks: TaskGroup) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await while_connected(fails(), Client().receive, tasks)
    assert len(tasks) == 0


@pytest.mark.parametrize("also_gone", [False, True])
async def test_B44_a_server_that_stops_cancels_the_work_and_hears_that_it_did(
    also_gone: bool, tasks: TaskGroup
) -> None:
    client, work = Client(), Work()
    request = going(while_connected(work.run(), client.receive, tasks))
    await work.begun.wait()

    if also_gone:
        client.leaves()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    assert work.cleaned_up
    assert len(tasks) == 0


async def test_B42_a_client_that_goes_while_a_time_out_ends_is_noticed_afterwards(
    tasks: TaskGroup,
) -> None:
    client, work = Client(), Work()

    async def waits_twice() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                try:
                    limit.reschedule(0.0)
                    await asyncio.Event().wait()
                finally:
                    client.leaves()
                    await asyncio.sleep(0.01)  # the watch meets a task that is being cancelled
        await work.run()

    await while_connected(waits_twice(), client.receive, tasks)

    assert work.cancelled


async def test_B42_who_reads_a_body_is_told_and_not_cancelled(tasks: TaskGroup) -> None:
    client, told = Client(more_body=True), []

    async def reads() -> None:
        upload = Upload(client.receive)
        assert await upload.begin() is None
        client.leaves()
        await asyncio.sleep(0)
        with pytest.raises(ClientGone):
            [_ async for _ in upload]
        await asyncio.sleep(0)
        told.append(True)

    client.sends(b"first", more=True)
    await while_connected(reads(), client.receive, tasks)

    assert told == [True]


@pytest.mark.parametrize("begun", [False, True])
async def test_B42_a_client_that_goes_after_its_body_is_noticed(
    begun: bool, tasks: TaskGroup
) -> None:
    """Also where the server stopped reading, so as not to hold too much of the body."""
    client, work = Client(more_body=True), Work()

    async def reads() -> None:
        assert await read_body(client.receive, (), 100) == b"first, last"
        await work.run()

    client.sends(b"first, ", more=begun)
    if not begun:
        client.sends(b"last")
    request = going(while_connected(reads(), client.receive, tasks))
    if begun:
        await until(lambda: client.connection.is_read)
        client.sends(b"last")
    await work.begun.wait()
    assert client.connection.is_read

    client.leaves()
    await request
    assert work.cancelled


async def test_behind_another_server_the_work_is_done_without_a_watch(tasks: TaskGroup) -> None:
    work = Work()
    work.may_end.set()

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    await while_connected(work.run(), receive, tasks)
    assert not work.cancelled
