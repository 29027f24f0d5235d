"""Work for a client that may go away."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import pytest

from proxy.edge.disconnect import while_connected
from proxy.tasks import TaskGroup
from tests.waiting import until

pytestmark = pytest.mark.anyio


class Client:
    """A client that goes when it is told to."""

    def __init__(self) -> None:
        self.left = asyncio.Event()
        self.watched = False

    async def gone(self) -> None:
        self.watched = True
        await self.left.wait()


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


async def test_short_work_is_done_without_a_watch(tasks: TaskGroup) -> None:
    client, done = Client(), []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append(tasks.count("request"))

    await while_connected(work(), client.gone(), tasks)

    assert done == [1]
    assert not client.watched
    assert len(tasks) == 0


async def test_B42_work_is_cancelled_when_the_client_goes(tasks: TaskGroup) -> None:
    client, work = Client(), Work()
    request = going(while_connected(work.run(), client.gone(), tasks))
    await until(lambda: client.watched)

    client.left.set()
    await request

    assert work.cancelled
    assert work.cleaned_up
    assert not request.cancelling()
    await until(lambda: len(tasks) == 0)


async def test_B42_a_client_that_went_at_once_is_noticed_too(tasks: TaskGroup) -> None:
    client, work = Client(), Work()
    client.left.set()
    await while_connected(work.run(), client.gone(), tasks)
    assert work.cancelled


async def test_the_watch_ends_with_the_work(tasks: TaskGroup) -> None:
    client, work = Client(), Work()
    request = going(while_connected(work.run(), client.gone(), tasks))
    await until(lambda: client.watched)
    work.may_end.set()
    await request
    assert not work.cancelled
    await until(lambda: len(tasks) == 0)


async def test_what_the_work_raises_is_raised(tasks: TaskGroup) -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await while_connected(fails(), Client().gone(), tasks)
    assert len(tasks) == 0


@pytest.mark.parametrize("also_gone", [False, True])
async def test_B44_a_server_that_stops_cancels_the_work_and_hears_that_it_did(
    also_gone: bool, tasks: TaskGroup
) -> None:
    client, work = Client(), Work()
    request = going(while_connected(work.run(), client.gone(), tasks))
    await until(lambda: client.watched)

    if also_gone:
        client.left.set()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request

    assert work.cleaned_up
    await until(lambda: len(tasks) == 0)


async def test_B42_a_client_that_goes_while_a_time_out_ends_is_noticed_afterwards(
    tasks: TaskGroup,
) -> None:
    client, work = Client(), Work()

    async def waits_twice() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                try:
                    await until(lambda: client.watched)
                    limit.reschedule(0.0)
                    await asyncio.Event().wait()
                finally:
                    client.left.set()
                    await asyncio.sleep(0.01)  # the watch meets a task that is being cancelled
        await work.run()

    await while_connected(waits_twice(), client.gone(), tasks)

    assert work.cancelled
