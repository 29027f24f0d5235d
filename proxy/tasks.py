"""The only place that starts tasks: they are named, held, and drained."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger("magic_proxy.tasks")


class TaskGroup:
    """Holds strong references to background tasks and ends them in order at shutdown.

    A task that fails is logged once, by name, and never takes the process down.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], str] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def count(self, name: str) -> int:
        """How many tasks of that name are under way."""
        return sum(held == name for held in self._tasks.values())

    def start(
        self, work: Coroutine[Any, Any, Any], *, name: str, awaited: bool = False
    ) -> asyncio.Task[Any]:
        """Run `work` in the background; the group keeps it alive until it ends.

        `awaited` says that somebody waits for the task and sees its failure.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self.let_go if awaited else self._ended)
        return task

    def adopt(self, task: asyncio.Task[Any], *, name: str) -> None:
        """Hold a task that was started elsewhere, until it is let go: `drain` waits for it too."""
        self._tasks[task] = name

    def let_go(self, task: asyncio.Task[Any]) -> None:
        """Hold the task no more; it may have ended."""
        self._tasks.pop(task, None)

    async def drain(self, grace_seconds: float) -> None:
        """Wait up to `grace_seconds` for all tasks, then cancel those that are left.

        Those that are started meanwhile are waited for as well.
        """
        deadline = asyncio.get_running_loop().time() + grace_seconds
        while self._tasks:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                await self._cancel(set(self._tasks))
                return
            await asyncio.wait(set(self._tasks), timeout=left)

    async def cancel(self) -> None:
        """Cancel every task and wait until each has ended."""
        await self._cancel(set(self._tasks))

    async def _cancel(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.let_go(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background task %s failed", task.get_name(), exc_info=error)
