"""The Redis store: shared by all replicas, and never waited for longer than it is worth.

Each batch of commands has one deadline. Failures in a row open the circuit: from then on every
call raises StoreUnavailable at once, and a ping in the background finds out when to come back, so
that no request pays for the probe.

Needs Redis 6.2 (`SET … PXAT`). Expired and evicted entries are Redis's own business.
"""

import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, Final, cast

from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_dial import Command
from proxy.backends.redis_guard import GuardedRedis
from proxy.clock import Clock
from proxy.errors import StoreUnavailable
from proxy.stores.base import LookUpObserver, Put, StoreStats
from proxy.stores.batcher import Batcher
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.stores")

# One write batch: short enough that its deadline fits, long enough to fill a segment.
_BATCH_COMMANDS: Final = 256
_BATCH_BYTES: Final = 1024 * 1024
_SCAN_COUNT: Final = 500
# For how many times the wait for one reply a look-up of many keys may go on, reply by reply.
_LONGEST_LOOK_UP: Final = 20
_INFO_LINE: Final = re.compile(rb"(\w+):(\d+)\r")


class RedisStore:
    """Keys and values as they come; the expiry is Redis's `PXAT`, in wall-clock milliseconds.

    A server that answers but takes no writes (out of memory, read-only) fails the writes alone:
    its circuit stays closed for reads. Raises ValueError for a URL that can't be used.
    """

    name = "redis"

    def __init__(
        self,
        config: RedisConfig,
        *,
        clock: Clock,
        timeout_seconds: float = 0.05,
        write_timeout_seconds: float = 1.0,
        max_connections: int = 16,
        max_value_bytes: int = 1024 * 1024,
        observer: LookUpObserver | None = None,
    ) -> None:
        self._observer = observer
        self._max_value_bytes = max_value_bytes
        self._timeout_seconds = timeout_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._redis = GuardedRedis(
            "redis",
            config,
            clock=clock,
            max_connections=max_connections,
            probe_seconds=write_timeout_seconds,
        )
        self._tasks = TaskGroup()
        self._batcher = Batcher(
            self._fetch, self._tasks, longest_seconds=_LONGEST_LOOK_UP * timeout_seconds
        )
        self._takes_writes = True

    @property
    def available(self) -> bool:
        return self._redis.available

    async def open(self) -> None:
        """Look whether the server is there; if it is not, the circuit finds out later."""
        await self._redis.open()

    def get_now(self, key: str) -> bytes | None:  # noqa: ARG002 - Redis is never at hand
        return None

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self._redis.admit()
        return await self._batcher.get_many(keys)

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.get_many(keys)

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        heads: list[bytes | None] = []
        for at in range(0, len(keys), _BATCH_COMMANDS):
            some = keys[at : at + _BATCH_COMMANDS]
            commands: list[Command] = [("GETRANGE", key, 0, length - 1) for key in some]
            for reply in await self._redis.exchange(commands, self._write_timeout_seconds):
                if isinstance(reply, ResponseError) and str(reply).startswith("WRONGTYPE"):
                    heads.append(None)
                else:
                    heads.append(self._checked(reply, _is_bytes) or None)
        return heads

    async def put_many(self, puts: Sequence[Put]) -> None:
        for batch in _batches(puts):
            commands = [self._write(put) for put in batch]
            replies = await self._redis.exchange(commands, self._write_timeout_seconds)
            self._written(replies)
            for command, reply in zip(commands, replies, strict=True):
                self._checked(reply, _is_stored if command[0] == "SET" else _is_number)

    def _write(self, put: Put) -> Command:
        if len(put.value) > self._max_value_bytes:
            # It could not be read in time, nor could what is read beside it. What it replaces goes.
            return ("UNLINK", put.key)
        return ("SET", put.key, put.value, "PXAT", _milliseconds(put.expires_at))

    async def delete_many(self, keys: Sequence[str]) -> int:
        removed = 0
        for at in range(0, len(keys), _BATCH_COMMANDS):
            command = ("UNLINK", *keys[at : at + _BATCH_COMMANDS])
            replies = await self._redis.exchange([command], self._write_timeout_seconds)
            self._written(replies)
            removed += self._checked(replies[0], _is_number)
        return removed

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        """As the Protocol says; a key may come twice while Redis resizes its table."""
        pattern = "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix) + "*"
        cursor = b"0"
        while True:
            command = ("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            (reply,) = await self._redis.exchange([command], self._write_timeout_seconds)
            cursor, keys = self._checked(reply, _is_page)
            for key in keys:
                yield key.decode("utf-8", "surrogateescape")
            if cursor == b"0":
                return

    async def stats(self) -> StoreStats:
        """Of the whole server, which may hold other things too."""
        commands: list[Command] = [("DBSIZE",), ("INFO", "memory")]
        entries, info = await self._redis.exchange(commands, self._write_timeout_seconds)
        self._checked(entries, _is_number)
        memory = dict(_INFO_LINE.findall(self._checked(info, _is_bytes)))
        used, bound = int(memory.get(b"used_memory", 0)), int(memory.get(b"maxmemory", 0))
        return StoreStats(entries=entries, bytes=used, max_bytes=bound or None)

    async def close(self) -> None:
        await self._tasks.cancel()
        await self._redis.close()

    async def _fetch(self, keys: Sequence[str]) -> list[bytes | None]:
        """One MGET; a key that holds something else than a string comes back as None."""
        if self._observer is not None:
            self._observer.looked_up(self.name, len(keys))
        (values,) = await self._redis.exchange([("MGET", *keys)], self._timeout_seconds)
        self._checked(values, lambda reply: _are_values(reply, len(keys)))
        return cast("list[bytes | None]", values)

    def _checked(self, reply: Any, is_sound: Callable[[Any], bool]) -> Any:
        """The reply, if it is what was asked for; all else counts against the server."""
        if isinstance(reply, ResponseError):
            raise self._redis.failed(str(reply))
        if not is_sound(reply):
            raise self._redis.failed("the reply is not of the form that was asked for")
        self._redis.succeeded()
        return reply

    def _written(self, replies: list[Any]) -> None:
        refusal = next((reply for reply in replies if isinstance(reply, ResponseError)), None)
        if refusal is None:
            if not self._takes_writes:
                self._takes_writes = True
                log.info("redis: takes writes again")
            return
        if isinstance(refusal, ReadOnlyError):
            self._redis.fail_over()
        elif not (isinstance(refusal, OutOfMemoryError) or _says_no_writes(refusal)):
            raise self._redis.failed(str(refusal))
        if self._takes_writes:
            self._takes_writes = False
            log.warning("redis: takes no writes (%s)", refusal)
        raise StoreUnavailable(f"redis: {refusal}")


def _are_values(reply: object, count: int) -> bool:
    if not isinstance(reply, list) or len(reply) != count:
        return False
    return all(value is None or isinstance(value, bytes) for value in reply)


def _is_number(reply: object) -> bool:
    return isinstance(reply, int)


def _is_bytes(reply: object) -> bool:
    return isinstance(reply, bytes)


def _is_page(reply: object) -> bool:
    match reply:
        case [bytes(), [*keys]]:
            return all(map(_is_bytes, keys))
        case _:
            return False


def _says_no_writes(refusal: ResponseError) -> bool:
    return str(refusal).startswith(("OOM", "MISCONF", "NOREPLICAS"))


def _milliseconds(expires_at: float) -> int:
    # Redis takes no time before 1 and none beyond 63 bits.
    return int(min(max(expires_at, 0.001), 1e12) * 1000)


def _is_stored(reply: object) -> bool:
    return reply == b"OK"


def _batches(puts: Sequence[Put]) -> Iterator[list[Put]]:
    batch: list[Put] = []
    size = 0
    for put in puts:
        if batch and (len(batch) == _BATCH_COMMANDS or size + len(put.value) > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(put)
        size += len(put.value)
    if batch:
        yield batch
