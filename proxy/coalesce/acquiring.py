"""Acquisitions that nobody waits for longer than they like, and that leave no lease behind.

Each runs in a task that is never cut off: what it gets when its caller has gone, or was told that
it took too long, is let go of.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeAlias

from proxy.backends.deadline import deadline
from proxy.coalesce.base import FlightEnd, Followed, Lease
from proxy.tasks import TaskGroup

Acquired: TypeAlias = list[Lease | Followed]


class Acquisitions:
    """Those under way."""

    def __init__(self, tasks: TaskGroup, *, timeout_seconds: float) -> None:
        self._tasks = tasks
        self._timeout_seconds = timeout_seconds
        self._under_way: set[asyncio.Task[Acquired]] = set()

    def __bool__(self) -> bool:
        return bool(self._under_way)

    async def wait(self, work: Coroutine[Any, Any, Acquired]) -> Acquired | None:
        """What `work` gets, or None where that takes too long. Raises what it raises."""
        task: asyncio.Task[Acquired]
        task = self._tasks.start(work, name="lease-acquire", awaited=True)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        try:
            async with deadline(self._timeout_seconds):
                return await asyncio.shield(task)
        except TimeoutError:
            task.add_done_callback(self._let_go)
            return None
        except asyncio.CancelledError:
            task.add_done_callback(self._let_go)
            raise

    async def settle(self) -> None:
        """Wait until all have come to an end."""
        if self._under_way:
            await asyncio.wait(self._under_way)

    def _let_go(self, task: asyncio.Task[Acquired]) -> None:
        if task.cancelled() or task.exception() is not None:
            return
        for got in task.result():
            if not isinstance(got, Followed):
                self._tasks.start(got.release(FlightEnd.ABANDONED), name="lease-return")
