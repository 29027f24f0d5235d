"""Who accepts a connection: the worker that has the fewest.

All workers listen on one socket, so each of them is woken. Left to themselves, whoever comes first
takes all that wait: a client that opens its connections at once would have a single worker for
them, for as long as they stay open.
"""

import asyncio
import logging
import mmap
import socket
from collections.abc import Callable
from typing import Final

from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy")

# How long a connection is left to those that have fewer; then it is taken all the same, for they
# may be busy.
_LEFT_SECONDS: Final = 0.002
# After an error that time alone can heal, such as too many open files.
_RETRY_SECONDS: Final = 1.0
_COUNT_BYTES: Final = 4
_AWAY: Final = 2**32 - 1


class Crowd:
    """How many connections each worker has, in memory that all share; numbered from 1."""

    def __init__(self, workers: int) -> None:
        self._memory = mmap.mmap(-1, workers * _COUNT_BYTES)
        self._counts = memoryview(self._memory).cast("I")
        for number in range(1, workers + 1):
            self.away(number)

    def put(self, number: int, connections: int) -> None:
        """A worker has so many."""
        self._counts[number - 1] = connections

    def away(self, number: int) -> None:
        """A worker does not accept any."""
        self._counts[number - 1] = _AWAY

    def has_fewest(self, number: int) -> bool:
        """True where no other has fewer."""
        return self._counts[number - 1] <= min(self._counts)


class Acceptor:
    """Accepts for one worker; to uvicorn it is a server like asyncio's."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        may_accept: Callable[[], bool],
        tasks: TaskGroup,
    ) -> None:
        self.sockets = (listener,)
        self._listener = listener
        self._make_protocol = make_protocol
        self._may_accept = may_accept
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._paused: asyncio.TimerHandle | None = None
        self._listen()

    def close(self) -> None:
        """Accept no more."""
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._loop.remove_reader(self._listener)
        self._listener.close()

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._readable)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._paused = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        self._listen()
        self._accept()

    def _readable(self) -> None:
        if self._may_accept():
            self._accept()
        else:
            self._pause(_LEFT_SECONDS)

    def _accept(self) -> None:
        """Take one connection, if nobody else was faster."""
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("no connection can be accepted: %s", error)  # noqa: TRY400  # it says enough
            self._pause(_RETRY_SECONDS)
            return
        connection.setblocking(False)  # noqa: FBT003  # the standard library's name for it
        self._tasks.start(self._connect(connection), name="connection")

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # the client is gone already
            connection.close()
