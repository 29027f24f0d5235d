"""Background tasks: held, named, told when they fail, and ended in order."""

import asyncio
import gc
import logging

import pytest

from proxy.tasks import TaskGroup

pytestmark = pytest.mark.anyio

# Long enough never to run out in a test that works.
GRACE = 30.0


async def failing(message: str = "broken") -> None:
    raise ZeroDivisionError(message)


class Stubborn:
    """Work that takes a turn to end after it was cancelled."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cleaned_up = False

    async def run(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned_up = True


async def turns(count: int = 5) -> None:
    """Let what is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_group_alone_keeps_a_task_alive() -> None:
    group = TaskGroup()
    ended: list[str] = []

    async def work() -> None:
        # Nothing else refers to the future: without the group, the cycle would be collected.
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(future.set_result)
        await future
        ended.append("work")

    waiting: list[object] = []
    group.start(work(), name="held")
    await turns()
    del waiting[:]
    gc.collect()
    await turns()

    assert len(group) == 1
    assert ended == []
    await group.cancel()


async def test_a_task_that_has_ended_is_let_go() -> None:
    group = TaskGroup()
    done = asyncio.Event()
    tasks = [group.start(done.wait(), name=name) for name in ("a", "a", "b")]

    assert (len(group), group.count("a"), group.count("b"), group.count("c")) == (3, 2, 1, 0)
    assert [task.get_name() for task in tasks] == ["a", "a", "b"]
    done.set()
    await group.drain(GRACE)
    await turns()
    assert (len(group), group.count("a")) == (0, 0)


async def test_a_failure_is_logged_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    group = TaskGroup()

    group.start(failing(), name="sweeper")
    await group.drain(GRACE)
    await turns()
    gc.collect()

    (record,) = caplog.records
    assert (record.name, record.levelno) == ("magic_proxy.tasks", logging.ERROR)
    assert record.getMessage() == "background task sweeper failed"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert len(group) == 0


async def test_a_failure_that_somebody_waits_for_is_theirs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    group = TaskGroup()

    task = group.start(failing(), name="awaited", awaited=True)
    with pytest.raises(ZeroDivisionError):
        await task
    await turns()

    assert caplog.records == []
    assert len(group) == 0


async def test_cancelling_waits_until_each_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    group = TaskGroup()
    works = [Stubborn(), Stubborn()]
    tasks = [group.start(work.run(), name="stubborn") for work in works]
    for work in works:
        await work.begun.wait()

    await group.cancel()

    assert all(work.cleaned_up for work in works)
    assert all(task.cancelled() for task in tasks)
    await turns()
    assert len(group) == 0
    assert caplog.records == [], "to be cancelled is no failure"


async def test_draining_lets_a_task_finish() -> None:
    group = TaskGroup()
    done = asyncio.Event()
    task = group.start(done.wait(), name="slow")

    drained = asyncio.gather(group.drain(GRACE))
    await turns()
    assert not drained.done()
    assert not task.cancelled()
    done.set()
    await drained

    assert task.result() is True


async def test_draining_cancels_what_is_left_after_the_grace() -> None:
    group = TaskGroup()
    late = Stubborn()
    task = group.start(late.run(), name="late")
    quick = group.start(asyncio.sleep(0, "done"), name="quick")
    await late.begun.wait()

    await group.drain(0.01)

    assert task.cancelled()
    assert late.cleaned_up
    assert quick.result() == "done"


async def test_an_empty_group_ends_at_once() -> None:
    group = TaskGroup()

    await group.drain(GRACE)
    await group.cancel()

    assert len(group) == 0


async def test_a_task_that_was_started_elsewhere_is_held_until_it_is_let_go() -> None:
    group = TaskGroup()
    done = asyncio.Event()
    task = asyncio.get_running_loop().create_task(done.wait())

    group.adopt(task, name="request")
    assert group.count("request") == 1
    drained = asyncio.gather(group.drain(GRACE))
    await turns()
    assert not drained.done()
    done.set()
    await task
    group.let_go(task)
    await drained

    assert group.count("request") == 0
