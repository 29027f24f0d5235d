"""Connections to one Redis server: each is used by one caller at a time and never left dirty.

redis-py's client and pool are passed by, its `Connection` is used: the client makes a command cost
half as much again (retries, telemetry; bench/bench_stores.py), and a pool that takes back a
connection with an unread reply hands one caller the answer of another (redis-py#2665). Here a
connection comes back to the idle ones only after every reply was read; else it is closed.

A connection is made in a task of its own, under its own time limit: callers with a deadline far
shorter than a TLS handshake wait for it only as long as they like, and the next ones find it made.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_dial import Command, RedisDialler, exchange
from proxy.tasks import TaskGroup


class RedisLink:
    """Sends commands and reads their replies, over at most `max_connections` connections.

    Raises ValueError for a URL that redis-py does not take.
    """

    def __init__(self, config: RedisConfig, *, max_connections: int) -> None:
        self._dialler = RedisDialler(config)
        self._max_connections = max_connections
        self._idle: list[AbstractConnection] = []
        self._waiting: deque[asyncio.Future[AbstractConnection]] = deque()
        self._open = 0  # idle, lent, and being made
        self._making = 0
        self._tasks = TaskGroup()
        self._closed = False

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in the order of `commands`; an error reply stands there as an exception.

        Raises RedisError or OSError where the connection failed. When cancelled, the connection
        is closed, not handed on.
        """
        connection = await self._take()
        try:
            replies = await exchange(connection, commands)
        except BaseException:  # cancellation too: replies may still be under way
            await self._discard(connection)
            raise
        self._give(connection)
        return replies

    async def close(self) -> None:
        """Close the idle connections and refuse new work; lent ones close when they come back."""
        self._closed = True
        self._fail_waiting("the store is closed")
        await self._tasks.cancel()
        while self._idle:
            await self._discard(self._idle.pop())

    async def drop_idle(self) -> None:
        """Close the idle connections, as after a fail-over."""
        while self._idle:
            await self._discard(self._idle.pop())

    async def _take(self) -> AbstractConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_connected and not await connection.can_read():
                return connection
            await self._discard(connection)  # the server hung up, or said something unasked
        if self._closed:
            raise RedisConnectionError("the store is closed")
        turn: asyncio.Future[AbstractConnection] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._make_for_waiting()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._give(turn.result())
            raise

    def _give(self, connection: AbstractConnection) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        if self._closed:
            self._tasks.start(self._discard(connection), name="redis-hang-up")
        else:
            self._idle.append(connection)

    async def _discard(self, connection: AbstractConnection) -> None:
        self._open -= 1
        self._make_for_waiting()
        await connection.disconnect(nowait=True)

    def _make_for_waiting(self) -> None:
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        while (
            not self._closed
            and self._making < len(self._waiting)
            and self._open < self._max_connections
        ):
            self._open += 1
            self._making += 1
            self._tasks.start(self._make(), name="redis-connect")

    async def _make(self) -> None:
        try:
            connection = await self._dialler.dial()
        except BaseException as error:  # cancellation too: the place has to come free
            self._open -= 1
            self._making -= 1
            if not isinstance(error, Exception):
                raise  # cancelled
            self._fail_waiting(str(error))
        else:
            self._making -= 1
            self._give(connection)

    def _fail_waiting(self, reason: str) -> None:
        """Those who wait learn at once that there is no connection to be had."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(RedisConnectionError(reason))
