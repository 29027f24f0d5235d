"""A connection that is no longer HTTP: bytes between a client and an upstream, both ways.

Nothing is decoded: messages, fragments, extensions, pings and closing handshakes are between the
two of them, byte for byte. The frames are only followed, so that the proxy can close a connection
in order when it must, and tell how one ended.
"""

import asyncio
from collections.abc import MutableSet
from typing import Any, Final

from proxy.core.websocket import GOING_AWAY, FrameWatch, SocketEnd, close_frame
from proxy.errors import UpstreamError
from proxy.tasks import TaskGroup
from proxy.upstream.base import Upgraded

_READ_BYTES: Final = 65_536
# How long the other side may take to answer a close, or to say its last words.
_LINGER_SECONDS: Final = 2.0


class ClientEnd(asyncio.StreamReaderProtocol):
    """The client's side, taken over from the HTTP protocol; it stands among the connections."""

    def __init__(self, transport: asyncio.Transport, connections: MutableSet[Any]) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(limit=_READ_BYTES, loop=loop)
        super().__init__(self.reader, loop=loop)
        self._connections = connections
        self.going_away = asyncio.Event()
        connections.add(self)
        self.connection_made(transport)
        transport.set_protocol(self)
        self.writer = asyncio.StreamWriter(transport, self, self.reader, loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client's connection is gone."""
        self._connections.discard(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops; it asks all its connections to end."""
        self.going_away.set()

    def close(self) -> None:
        """Send what is on its way, and close; a client that does not take it is cut off."""
        transport = self.writer.transport
        transport.close()
        asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.abort)


class Relay:
    """Carries the bytes of one connection until either side ends it."""

    def __init__(
        self, client: ClientEnd, upstream: Upgraded, idle_seconds: float | None, tasks: TaskGroup
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._idle_seconds = idle_seconds
        self._tasks = tasks
        self._moved_at = 0.0
        self._from_client = FrameWatch()
        self._from_upstream = FrameWatch()
        self._between_frames = True  # where what the client was sent has ended
        self._closing = False

    @property
    def close_code(self) -> int | None:
        """Of the close frame that went by; of two the upstream's. None: there was none."""
        return self._from_upstream.close_code or self._from_client.close_code

    async def run(self) -> SocketEnd:
        """Both directions, to the end; both connections are closed when this returns."""
        start = self._tasks.start
        upward = start(self._upward(), name="websocket", awaited=True)
        downward = start(self._downward(), name="websocket", awaited=True)
        stop = start(self._stopped(), name="websocket", awaited=True)
        try:
            end = await self._ended(downward, upward, stop)
            if end in {SocketEnd.IDLE, SocketEnd.SHUTDOWN}:
                await self._close_in_order(downward, upward, end)
                return end
            return end if self.close_code is None else SocketEnd.CLOSED
        finally:
            pumps = {upward, downward, stop}
            for pump in pumps:
                pump.cancel()
            self._client.close()
            await self._upstream.aclose()
            await asyncio.wait(pumps)

    async def _ended(
        self, downward: asyncio.Task[SocketEnd], *others: asyncio.Task[SocketEnd]
    ) -> SocketEnd:
        pumps = (downward, *others)
        now = asyncio.get_running_loop().time
        self._moved_at = now()
        idle = self._idle_seconds
        while True:
            left = None if idle is None else self._moved_at + idle - now()
            await asyncio.wait(pumps, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                if not pump.done():
                    continue
                if (end := pump.result()) is SocketEnd.UPSTREAM_GONE:
                    # It reads no more; what it said before that still goes to the client.
                    await asyncio.wait({downward}, timeout=_LINGER_SECONDS)
                return end
            if idle is not None and now() >= self._moved_at + idle:
                return SocketEnd.IDLE

    async def _stopped(self) -> SocketEnd:
        await self._client.going_away.wait()
        return SocketEnd.SHUTDOWN

    async def _upward(self) -> SocketEnd:
        now = asyncio.get_running_loop().time
        try:
            while data := await self._client.reader.read(_READ_BYTES):
                self._moved_at = now()
                self._from_client.feed(data)
                await self._upstream.write(data)
                if self._closing and self._from_client.close_code is not None:
                    break
        except UpstreamError:
            return SocketEnd.UPSTREAM_GONE
        except OSError:
            return SocketEnd.CLIENT_GONE
        return SocketEnd.CLIENT_GONE

    async def _downward(self) -> SocketEnd:
        now = asyncio.get_running_loop().time
        try:
            async for data in self._upstream.aiter_raw():
                self._moved_at = now()
                whole = self._from_upstream.feed(data)
                if self._closing and whole:
                    self._client.writer.write(data[:whole])
                    self._between_frames = True
                    break
                self._between_frames = self._from_upstream.at_boundary
                self._client.writer.write(data)
                await self._client.writer.drain()
        except UpstreamError:
            return SocketEnd.UPSTREAM_GONE
        except OSError:
            return SocketEnd.CLIENT_GONE
        return SocketEnd.UPSTREAM_GONE

    async def _close_in_order(
        self, downward: asyncio.Task[SocketEnd], upward: asyncio.Task[SocketEnd], end: SocketEnd
    ) -> None:
        """Close toward the client; its answer goes on to the upstream, as a close of its own."""
        self._closing = True
        if not self._between_frames:
            await asyncio.wait({downward}, timeout=_LINGER_SECONDS)
        if self._between_frames and self._from_upstream.close_code is None:
            downward.cancel()
            self._client.writer.write(close_frame(GOING_AWAY, end.value))
        await asyncio.wait({upward}, timeout=_LINGER_SECONDS)
