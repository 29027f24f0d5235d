"""A line to an upstream that is slow, narrow, or lost: bytes are carried, and never looked at."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self
from urllib.parse import urlsplit

_READ_BYTES = 4096


class Loss(StrEnum):
    """How a connection is lost."""

    RESET = "reset"  # both ends see a TCP RST
    CLOSE = "close"  # both ends see it closed in order
    SILENCE = "silence"  # nobody hears anything any more


@dataclass(frozen=True, slots=True)
class Line:
    """One direction: each read is passed on after `delay_seconds`, no faster than
    `bytes_per_second`; after `most_bytes` of one connection that is lost.
    """

    delay_seconds: float = 0.0
    bytes_per_second: float | None = None
    most_bytes: int | None = None
    loss: Loss = Loss.RESET


class TcpProxy:
    """Between a client and the server at `url`, for as long as the `with` block lasts.

    `up` (to the server) and `down` count for connections that are made from then on.
    """

    def __init__(self, url: str, *, up: Line | None = None, down: Line | None = None) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self.up, self.down = up or Line(), down or Line()
        self.accepted = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self._listener.setblocking(False)
        self._fillers: list[socket.socket] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._doomed: set[asyncio.StreamWriter] = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}{parts.path}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        for each in (self._listener, *self._fillers):
            each.close()

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._writers) // 2

    def lose(self, loss: Loss = Loss.RESET) -> None:
        """Lose every connection that there is, idle or not."""
        self._call(lambda: self._lose(loss))

    def doom(self) -> None:
        """Lose each connection that there is as soon as it is used again, and not before."""
        self._call(lambda: self._doomed.update(self._writers))

    def refuse(self) -> None:
        """Lose every connection, and refuse new ones from now on."""

        def refuse() -> None:
            self._accepting.cancel()
            self._listener.shutdown(socket.SHUT_RDWR)  # it keeps the port, and listens no more
            self._lose(Loss.RESET)

        self._call(refuse)

    def stall(self) -> None:
        """Lose every connection, and let new ones wait from now on: the queue is full."""

        def stall() -> None:
            self._accepting.cancel()
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(self._listener.getsockname())
                self._fillers.append(filler)
            self._lose(Loss.RESET)

        self._call(stall)

    def _call(self, what: Callable[[], None]) -> None:
        done = threading.Event()

        def call() -> None:
            what()
            # What is aborted is closed in the next turn of the loop.
            self._loop.call_soon(self._loop.call_soon, done.set)

        self._loop.call_soon_threadsafe(call)
        assert done.wait(10)

    def _lose(self, loss: Loss) -> None:
        for writer in self._writers:
            lose(writer, loss)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = self._start(self._accept())
        self._ready.set()
        await self._over.wait()
        self._lose(Loss.RESET)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self.accepted += 1
            self._start(self._carry(client))

    async def _carry(self, client: socket.socket) -> None:
        near = await asyncio.open_connection(sock=client)
        far = await asyncio.open_connection(*self._target)
        ends = {near[1], far[1]}
        self._writers |= ends
        passing = [
            self._start(self._pass(near[0], far[1], ends, self.up)),
            self._start(self._pass(far[0], near[1], ends, self.down)),
        ]
        try:
            await asyncio.wait(passing)
        finally:
            self._writers -= ends
            for writer in ends:
                writer.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        ends: set[asyncio.StreamWriter],
        line: Line,
    ) -> None:
        """One direction, until it is closed or lost."""
        passed = 0
        with contextlib.suppress(ConnectionError):
            while read := await reader.read(_READ_BYTES):
                most = 0 if writer in self._doomed else line.most_bytes
                piece = read if most is None else read[: max(0, most - passed)]
                await asyncio.sleep(line.delay_seconds)
                await _write(writer, piece, line.bytes_per_second)
                passed += len(piece)
                if len(piece) < len(read):
                    for each in ends:
                        lose(each, line.loss)
                    if line.loss is not Loss.SILENCE:
                        return
                    while await reader.read(_READ_BYTES):
                        pass
            writer.close()


async def _write(writer: asyncio.StreamWriter, piece: bytes, pace: float | None) -> None:
    step = len(piece) if pace is None else max(1, int(pace * 0.01))
    for at in range(0, len(piece), step or 1):
        writer.write(piece[at : at + step])
        await writer.drain()
        if pace is not None:
            await asyncio.sleep(step / pace)


def lose(writer: asyncio.StreamWriter, loss: Loss) -> None:
    """End one end of a connection in this way."""
    if loss is Loss.CLOSE:
        writer.close()
    elif loss is Loss.RESET and not writer.is_closing():
        # Without lingering, closing it is a TCP RST.
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
