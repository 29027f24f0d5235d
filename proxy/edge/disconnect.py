"""Doing work for a client only while the client is there."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final

from proxy.edge.asgi import ClientGone, Receive
from proxy.tasks import TaskGroup

# What is done sooner is not broken off: most of it is, and to watch costs as much as a look-up.
_UNWATCHED_SECONDS: Final = 0.05


async def while_connected(
    work: Coroutine[Any, Any, None], gone: Coroutine[Any, Any, None], tasks: TaskGroup
) -> None:
    """Run `work` to its end, or cancel it when `gone` returns first; raises what `work` raises."""
    task = asyncio.current_task()
    assert task is not None
    watch = _Watch(task, gone, tasks)
    tasks.adopt(task, name="request")
    try:
        await work
    except asyncio.CancelledError:
        if not watch.has_cancelled or task.uncancel() > 0:
            raise
    finally:
        tasks.let_go(task)
        watch.end()


class _Watch:
    """Cancels a task when `gone` returns; begins to wait for that after a moment."""

    def __init__(
        self, task: asyncio.Task[Any], gone: Coroutine[Any, Any, None], tasks: TaskGroup
    ) -> None:
        self.has_cancelled = False
        self._task = task
        self._gone = gone
        self._tasks = tasks
        self._watcher: asyncio.Task[None] | None = None
        self._ended = False
        self._timer = asyncio.get_running_loop().call_later(_UNWATCHED_SECONDS, self._begin)

    def end(self) -> None:
        """There is nothing left to cancel."""
        self._ended = True
        self._timer.cancel()
        if self._watcher is None:
            self._gone.close()
        else:
            self._watcher.cancel()

    def _begin(self) -> None:
        self._watcher = self._tasks.start(self._gone, name="disconnect-watch")
        self._watcher.add_done_callback(self._cancel)

    def _cancel(self, watcher: asyncio.Task[None]) -> None:
        if self._ended or watcher.cancelled():
            return
        if self._task.cancelling():
            # By a time-out within it, or for good: what is being cleaned up is not broken off.
            asyncio.get_running_loop().call_later(_UNWATCHED_SECONDS, self._cancel, watcher)
            return
        self.has_cancelled = True
        self._task.cancel()


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone; only once the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Upload:
    """A request's body as it arrives, and the wait for the disconnect that may follow it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._first = b""
        self._read = asyncio.Event()

    async def begin(self) -> bytes | None:
        """Wait for the first bytes; the body, where that is all of it. Raises `ClientGone`."""
        self._first = await self._next()
        return self._first if self._read.is_set() else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        first, self._first = self._first, b""
        if first:
            yield first
        while not self._read.is_set():
            if chunk := await self._next():
                yield chunk

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        if not message.get("more_body", False):
            self._read.set()
        body: bytes = message.get("body", b"")
        return body

    async def disconnected(self) -> None:
        """Return when the client has gone after its body; during the body, the reader is told."""
        await self._read.wait()
        await disconnected(self._receive)
