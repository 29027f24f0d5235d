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
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from proxy.tasks import TaskGroup

Command: TypeAlias = tuple[str | bytes | int, ...]

_POOL_OPTIONS: Final = ("max_connections", "timeout")  # of a URL, but not for a connection


class RedisLink:
    """Sends commands and reads their replies, over at most `max_connections` connections.

    Raises ValueError for a URL that redis-py does not take.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int,
        connect_timeout_seconds: float,
        ca_file: str | None = None,
    ) -> None:
        self._options = _options(url, connect_timeout_seconds, ca_file)
        self._class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        self._max_connections = max_connections
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle: list[AbstractConnection] = []
        self._waiting: deque[asyncio.Future[AbstractConnection]] = deque()
        self._open = 0  # idle, lent, and being made
        self._making = 0
        self._tasks = TaskGroup()
        self._closed = False
        try:
            model = self._class(**self._options)
        except (RedisError, TypeError) as error:
            raise ValueError(f"the Redis URL has an option that is not taken: {error}") from error
        # Made once and shared: loading the certificates takes some 10 ms.
        self._tls = model.ssl_context if isinstance(model, SSLConnection) else None

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in the order of `commands`; an error reply stands there as an exception.

        Raises RedisError or OSError where the connection failed. When cancelled, the connection
        is closed, not handed on.
        """
        connection = await self._take()
        try:
            packed = connection.pack_commands(commands)
            await connection.send_packed_command(packed, check_health=False)
            replies = [await _reply(connection) for _ in commands]
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
        connection = self._class(**self._options)
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                if self._tls is not None:
                    assert isinstance(connection, SSLConnection)
                    await asyncio.to_thread(self._tls.get)
                    connection.ssl_context = self._tls
                await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's gap
        except BaseException as error:  # cancellation too: the place has to come free
            self._open -= 1
            self._making -= 1
            await connection.disconnect(nowait=True)
            if not isinstance(error, Exception):
                raise  # cancelled
            timed_out = f"no connection within {self._connect_timeout_seconds:g} s"
            self._fail_waiting(timed_out if isinstance(error, TimeoutError) else str(error))
        else:
            self._making -= 1
            self._give(connection)

    def _fail_waiting(self, reason: str) -> None:
        """Those who wait learn at once that there is no connection to be had."""
        waiting, self._waiting = self._waiting, deque()
        for turn in waiting:
            if not turn.done():
                turn.set_exception(RedisConnectionError(reason))


async def _reply(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _options(url: str, connect_timeout_seconds: float, ca_file: str | None) -> dict[str, Any]:
    parsed: Mapping[str, Any] = parse_url(url)
    options = {name: value for name, value in parsed.items() if name not in _POOL_OPTIONS}
    options |= {
        # RESP2 needs no greeting; its replies to our commands are the same, and cost the same.
        "protocol": 2,
        "decode_responses": False,
        # One deadline stands around each batch; a second one inside only costs time.
        "socket_timeout": None,
        "socket_connect_timeout": connect_timeout_seconds,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,
    }
    if url.startswith(("redis:", "rediss:")):
        options["socket_keepalive"] = True
    if ca_file is not None and url.startswith("rediss:"):
        options["ssl_ca_certs"] = ca_file
    return options
