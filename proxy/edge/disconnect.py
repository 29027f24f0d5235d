"""Doing work for a client only while the client is there."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, Final

from proxy.edge.asgi import ClientGone, Receive
from proxy.tasks import TaskGroup

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

# What is being cancelled already is looked at again after this.
_AGAIN_SECONDS: Final = 0.05


async def while_connected(
    work: Coroutine[Any, Any, None], receive: Receive, tasks: TaskGroup
) -> None:
    """Run `work` to its end, or cancel it when the client goes; raises what `work` raises.

    While the request's body comes, its reader is told instead. `receive` is uvicorn's: behind
    another server only readers of bodies are told.
    """
    task = asyncio.current_task()
    assert task is not None
    watch = _Watch()
    cycle: Any = getattr(receive, "__self__", None)
    if isinstance(getattr(cycle, "message_event", None), asyncio.Event):
        watch.begin(task, cycle)
    tasks.adopt(task, name="request")
    try:
        await work
    except asyncio.CancelledError:
        if not watch.has_cancelled or task.uncancel() > 0:
            raise
    finally:
        tasks.let_go(task)
        watch.end()


class _Watch(asyncio.Event):
    """Cancels a task when the client goes.

    It stands in for the event that uvicorn sets for a `receive` that waits: to wait there would
    take one more task for each request.
    """

    def __init__(self) -> None:
        super().__init__()
        self.has_cancelled = False
        # Both while there is something to cancel.
        self._task: asyncio.Task[Any] | None = None
        self._cycle: RequestResponseCycle | None = None

    def begin(self, task: asyncio.Task[Any], cycle: "RequestResponseCycle") -> None:
        """Take the event's place; nobody waits for it yet."""
        if cycle.message_event.is_set():
            super().set()
        cycle.message_event = self
        self._task, self._cycle = task, cycle
        self._look()

    def end(self) -> None:
        """There is nothing left to cancel."""
        self._task = self._cycle = None

    def set(self) -> None:
        """There is more of the request's body, or its client has gone, or it is answered."""
        super().set()
        self._look()

    def _look(self) -> None:
        cycle = self._cycle
        if cycle is None or cycle.more_body:
            return
        if cycle.disconnected:
            asyncio.get_running_loop().call_soon(self._cancel)
        else:
            cycle.flow.resume_reading()  # it may have stopped, and would not see the end

    def _cancel(self) -> None:
        task = self._task
        if task is None:
            return
        if task.cancelling():
            # By a time-out within it, or for good: what is being cleaned up is not broken off.
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._cancel)
            return
        self.end()
        self.has_cancelled = True
        task.cancel()


class Upload:
    """A request's body as it arrives."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._first = b""
        self._read = False  # to its end

    async def begin(self) -> bytes | None:
        """Wait for the first bytes; the body, where that is all of it. Raises `ClientGone`."""
        self._first = await self._next()
        return self._first if self._read else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        first, self._first = self._first, b""
        if first:
            yield first
        while not self._read:
            if chunk := await self._next():
                yield chunk

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            raise ClientGone
        self._read = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body
