"""The channel over Redis pub/sub: one connection that listens, and comes back by itself."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_dial import RedisDialler
from proxy.backends.redis_guard import GuardedRedis
from proxy.clock import Clock
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.stores")

_MAX_CONNECTIONS: Final = 2
_GROWTH: Final = 2.0
_JITTER: Final = 0.2


class RedisChannel:
    """Topics are names of Redis channels as they are: whoever shares a server prefixes them.

    A connection on which nothing came for `ping_seconds` is pinged; when nothing comes for as long
    again, it is given up. Raises ValueError for a URL that can't be used.
    """

    def __init__(
        self,
        config: RedisConfig,
        *,
        clock: Clock,
        publish_timeout_seconds: float = 0.25,
        ping_seconds: float = 2.0,
        retry_seconds: float = 0.1,
        longest_retry_seconds: float = 5.0,
    ) -> None:
        self._clock = clock
        self._publish_timeout_seconds = publish_timeout_seconds
        self._ping_seconds = ping_seconds
        self._retry_seconds = retry_seconds
        self._longest_retry_seconds = longest_retry_seconds
        self._dialler = RedisDialler(config)
        self._publisher = GuardedRedis(
            "redis messages", config, clock=clock, max_connections=_MAX_CONNECTIONS
        )
        self._heard: dict[bytes, list[Callable[[bytes], None]]] = {}
        self._connected: list[Callable[[], None]] = []
        self._connection: AbstractConnection | None = None
        self._confirmed: set[bytes] = set()
        self._listening = False
        self._lost = False
        self._tried = asyncio.Event()
        self._tasks = TaskGroup()

    @property
    def listening(self) -> bool:
        """Whether all topics are subscribed to right now."""
        return self._listening

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        name = topic.encode()
        self._heard.setdefault(name, []).append(heard)
        if self._connection is not None:
            self._tasks.start(self._subscribe_late(name), name="redis-subscribe")

    def when_connected(self, callback: Callable[[], None]) -> None:
        self._connected.append(callback)

    async def publish(self, topic: str, message: bytes) -> None:
        await self._publisher.ask([("PUBLISH", topic, message)], self._publish_timeout_seconds)

    async def open(self) -> None:
        """Begin to listen; returns when the first attempt to connect has ended, well or not."""
        self._tasks.start(self._listen(), name="redis-listen")
        await self._tried.wait()

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._publisher.close()

    async def _listen(self) -> None:
        pause = self._retry_seconds
        while True:
            began = self._clock.monotonic()
            try:
                await self._hear_all()
            except Exception as error:  # noqa: BLE001 - boundary: redis-py fails in many ways, all the same here
                self._say_lost(str(error) or type(error).__name__)
            self._tried.set()
            if self._clock.monotonic() - began > 2 * self._ping_seconds:  # it did work for a while
                pause = self._retry_seconds
            jitter = 1.0 + random.uniform(-_JITTER, _JITTER)  # noqa: S311 - spreads, no secret
            await self._clock.sleep(pause * jitter)
            pause = min(pause * _GROWTH, self._longest_retry_seconds)

    async def _hear_all(self) -> None:
        """Connect, subscribe, and pass messages on until the connection fails."""
        connection = await self._dialler.dial()
        try:
            self._connection = connection
            if self._heard:
                await _send(connection, "SUBSCRIBE", *self._heard)
            self._look_whether_listening()
            while True:
                self._take(await self._next(connection))
        finally:
            self._connection = None
            self._confirmed.clear()
            self._listening = False
            await connection.disconnect(nowait=True)

    async def _next(self, connection: AbstractConnection) -> Any:
        """What comes next. Raises RedisError or OSError where the connection fails or is dead."""
        for pinged in (False, True):
            try:
                async with asyncio.timeout(self._ping_seconds):
                    # A time-out in the middle of a message must leave what came so far.
                    return await connection.read_response(disconnect_on_error=False)
            except TimeoutError:
                if not pinged:
                    await _send(connection, "PING")
        raise RedisConnectionError(f"nothing came for {2 * self._ping_seconds:g} s")

    def _take(self, reply: Any) -> None:
        match reply:
            case [b"message", bytes() as topic, bytes() as message]:
                for heard in self._heard.get(topic, ()):
                    _tell(heard, message)
            case [b"subscribe", bytes() as topic, _]:
                self._confirmed.add(topic)
            case ResponseError():
                raise reply
            case _:
                pass  # the answer to a ping
        self._look_whether_listening()

    def _look_whether_listening(self) -> None:
        if not self._listening and self._confirmed >= self._heard.keys():
            self._listening = True
            self._say_connected()
            for callback in self._connected:
                _tell(callback)
            self._tried.set()

    async def _subscribe_late(self, topic: bytes) -> None:
        if self._connection is not None:
            with contextlib.suppress(RedisError, OSError):  # the listening task finds out
                await _send(self._connection, "SUBSCRIBE", topic)

    def _say_lost(self, reason: str) -> None:
        if not self._lost:
            self._lost = True
            log.warning("redis messages: none are heard for now (%s)", reason)

    def _say_connected(self) -> None:
        if self._lost:
            self._lost = False
            log.info("redis messages: heard again")


def _tell(callback: Callable[..., None], *arguments: bytes) -> None:
    try:
        callback(*arguments)
    except Exception:  # boundary: who listens must not keep the others from hearing
        log.exception("a message could not be taken in")


async def _send(connection: AbstractConnection, *words: str | bytes) -> None:
    packed = connection.pack_command(*words)
    await connection.send_packed_command(packed, check_health=False)
