"""Doing work for a client only while the client is there."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from proxy.edge.asgi import ClientGone, Receive
from proxy.tasks import TaskGroup


async def while_connected(
    work: Coroutine[Any, Any, None], gone: Coroutine[Any, Any, None], tasks: TaskGroup
) -> None:
    """Run `work` to its end, or cancel it when `gone` returns first; raises what `work` raises."""
    worker = tasks.start(work, name="request", awaited=True)
    watcher = tasks.start(gone, name="disconnect-watch")
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        watcher.cancel()
        if not worker.done():
            worker.cancel()
            await asyncio.wait({worker})
    if not worker.cancelled():
        worker.result()


async def disconnected(receive: Receive) -> None:
    """Return when the client has gone; only once the request's body has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Upload:
    """A request's body as it arrives, and the wait for the disconnect that may follow it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._read = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            more = message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk
        self._read.set()

    async def disconnected(self) -> None:
        """Return when the client has gone after its body; during the body, the reader is told."""
        await self._read.wait()
        await disconnected(self._receive)
