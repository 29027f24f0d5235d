"""An upstream that is written by hand, in a thread: it keeps every byte, and says what it is told."""

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self

from proxy.standin.signals import Signal
from tests.contract.raw_server import OK, Peer, Server
from tests.waiting import eventually


@dataclass(eq=False)
class Seen:
    """One request as it arrived, and a way to go on talking on its connection."""

    head: bytes
    peer: Peer
    loop: asyncio.AbstractEventLoop
    body: bytearray = field(default_factory=bytearray)
    gone: Signal = field(default_factory=lambda: Signal("connection closed by the proxy"))

    @property
    def lines(self) -> list[bytes]:
        """The request line, and the header lines in their order."""
        return self.head.removesuffix(b"\r\n\r\n").split(b"\r\n")

    @property
    def target(self) -> bytes:
        return self.lines[0].split(b" ")[1]

    def values(self, name: str) -> list[bytes]:
        """Of all headers of that name, in any case."""
        pairs = [line.partition(b":") for line in self.lines[1:]]
        return [value.strip() for key, _, value in pairs if key.lower() == name.encode()]

    def say(self, raw: bytes) -> None:
        """Bytes as they are, now."""
        self.loop.call_soon_threadsafe(self.peer.writer.write, raw)

    def close(self) -> None:
        """End the connection in order."""
        self.loop.call_soon_threadsafe(self.peer.writer.close)

    async def take_all(self) -> None:
        """Keep what comes until the other side ends it."""
        with contextlib.suppress(ConnectionError):
            while data := await self.peer.reader.read(65_536):
                self.body += data
        self.gone.set()

    async def take(self, size: int) -> None:
        """Keep so many bytes more."""
        self.body += await self.peer.reader.readexactly(size)

    async def take_framed(self) -> None:
        """Keep the body as the head frames it, decoded."""
        if self.values("transfer-encoding") == [b"chunked"]:
            while size := int(await self.peer.reader.readline(), 16):
                await self.take(size)
                await self.peer.reader.readexactly(2)
            await self.peer.reader.readline()
        elif lengths := self.values("content-length"):
            await self.take(int(lengths[0]))


Serve = Callable[[Seen], Awaitable[bool]]
"""Answers one request; True: the connection goes on."""


def saying(*pieces: bytes) -> Serve:
    """Read the request whole, and answer it with these bytes."""

    async def serve(seen: Seen) -> bool:
        await seen.take_framed()
        await seen.peer.say(*pieces)
        return True

    return serve


class RawUpstream:
    """Listens as long as the `with` block lasts; `serve` can be changed between requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="raw-upstream", daemon=True)
        self.seen: list[Seen] = []
        self.serve: Serve = saying(OK)
        self.root = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def reset(self) -> None:
        """As if nothing had been asked."""
        self.seen.clear()
        self.serve = saying(OK)

    def wait(self, count: int = 1) -> Seen:
        """The last of so many requests, once they have come."""
        eventually(lambda: len(self.seen) >= count)
        return self.seen[count - 1]

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with Server(self._script, self._tls) as server:
            self.root = server.root
            self._up.set()
            await self._over.wait()

    async def _script(self, peer: Peer) -> None:
        goes_on = True
        while goes_on:
            head = await peer.reader.readuntil(b"\r\n\r\n")
            seen = Seen(head, peer, self._loop)
            self.seen.append(seen)
            goes_on = await self.serve(seen)
