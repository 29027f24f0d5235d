"""Writes an answer the way its script wants: held, slow, cut, compressed, or not HTTP at all."""

import asyncio
import gzip
import socket
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from proxy.standin.answers import Answer
from proxy.standin.record import Recorded
from proxy.standin.script import Close, Script
from proxy.standin.signals import Signal, first_of

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Gone(Exception):
    """The connection is no more; there is nobody left to answer."""


@dataclass(slots=True, eq=False)
class Connection:
    """The socket below a request, for what HTTP has no words for."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    lost: Signal = field(default_factory=lambda: Signal("connection lost"))

    def cut(self, how: Close) -> None:
        """Close it: in order, or with a reset that throws away what is still buffered."""
        if how is Close.FIN:
            self.transport.close()
            return
        # Options belong to the socket, not to the descriptor: a duplicate reaches it under any
        # loop, and is closed without closing the connection.
        duplicate = self.transport.get_extra_info("socket").dup()
        with duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


@dataclass(frozen=True, slots=True)
class Delivery:
    """One answer on its way out. Times in seconds."""

    record: Recorded
    answer: Answer
    script: Script
    headers: list[tuple[bytes, bytes]]
    connection: Connection
    gate: Signal | None
    first_seconds: float
    piece_seconds: float

    async def run(self, receive: Receive, send: Send) -> None:
        """Send it all, or up to where the script ends it. Raises `Gone`."""
        script = self.script
        await self._pause(self.first_seconds + self.piece_seconds * self.answer.tokens)
        if script.hold_after is None:
            await self._hold()
        if script.close_before_answer:
            await self._cut(receive)
        if script.raw is not None:
            self.connection.transport.write(script.raw.encode("latin-1"))
            await self._cut(receive)
        pieces = list(self._pieces())
        await send(
            {
                "type": "http.response.start",
                "status": self.answer.status,
                "headers": self._headers(pieces),
            }
        )
        self.record.headers_sent.set()
        for sent, piece in enumerate(pieces):
            await self._stops(sent, receive)
            if sent:
                await self._pause(self.piece_seconds)
            self._check()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            self.record.chunks_sent = sent + 1
            self.record.first_byte_sent.set()
        await self._stops(len(pieces), receive)
        self._check()
        # Told before the last byte leaves: whoever read the whole answer finds it finished.
        self.record.finished.set()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _stops(self, sent: int, receive: Receive) -> None:
        if self.script.hold_after == sent:
            await self._hold()
        if self.script.close_after == sent:
            await self._cut(receive)

    async def _hold(self) -> None:
        if self.gate is None:
            return
        self.record.holding.set()
        await first_of(self.gate, self.connection.lost)
        self._check()

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _check(self) -> None:
        if self.connection.lost.is_set():
            raise Gone

    async def _cut(self, receive: Receive) -> None:
        self.connection.cut(self.script.close)
        # The server looks for an answer until it knows that the connection is gone.
        while (await receive())["type"] != "http.disconnect":
            pass
        raise Gone

    def _headers(self, pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
        headers = [(b"content-type", self.answer.content_type.encode()), *self.headers]
        if self.script.encoding is not None:
            headers.append((b"content-encoding", self.script.encoding.encode()))
        if not self.answer.streamed and not self.script.chunked:
            size = sum(len(piece) for piece in pieces)
            headers.append((b"content-length", str(size).encode()))
        return headers

    def _pieces(self) -> Iterator[bytes]:
        pieces = self.answer.pieces
        if self.script.encoding == "gzip":
            pieces = list(_gzipped(pieces))
        size = self.script.split_bytes
        if size is None:
            yield from pieces
            return
        body = b"".join(pieces)
        for at in range(0, len(body), size):
            yield body[at : at + size]


def _gzipped(pieces: list[bytes]) -> Iterator[bytes]:
    """Each piece can be decoded when it has arrived, as a streaming server flushes."""
    if len(pieces) == 1:
        yield gzip.compress(pieces[0], mtime=0)
        return
    packer = zlib.compressobj(wbits=31)
    for piece in pieces:
        yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
    yield packer.flush()
