"""Following: what leaders elsewhere publish, read over one connection by reads that block."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final
from uuid import uuid4

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ResponseError

from proxy.backends.redis_dial import Command, RedisDialler, exchange
from proxy.backends.redis_guard import GuardedRedis
from proxy.clock import Clock
from proxy.coalesce.redis_follow import START, Follow, FollowedStream
from proxy.coalesce.redis_scripts import CHECK, JOIN, Names
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_READ_ENTRIES: Final = 64  # of each stream, per read
_DOORBELL_MS: Final = 60_000
_CHECK_BATCH: Final = 500
_FEW_STREAMS: Final = 20
_PAUSE_PER_STREAM: Final = 0.000_02
_LONGEST_PAUSE: Final = 0.01
_REPLY_SECONDS: Final = 1.0  # for a reply, beyond what the read was told to block


class StreamReader:
    """Reads all streams that are followed, in a task that ends a while after the last of them.

    A new follower rings the doorbell, a stream of the reader's own, upon which the blocked read
    comes back and goes out again with one stream more.
    """

    def __init__(
        self,
        redis: GuardedRedis,
        dialler: RedisDialler,
        names: Names,
        clock: Clock,
        tasks: TaskGroup,
        *,
        check_seconds: float,
        linger_seconds: float,
        announce: Callable[[Follow], Awaitable[None]],
    ) -> None:
        self._redis = redis
        self._dialler = dialler
        self._names = names
        self._clock = clock
        self._tasks = tasks
        self._check_seconds = check_seconds
        self._linger_seconds = linger_seconds
        self._announce = announce
        self._doorbell = names.doorbell(uuid4().hex)
        self._streams: dict[bytes, FollowedStream] = {}
        self._joining: list[Follow] = []
        self._rings = False
        self._reads = False
        self._works = False  # the connection that reads now
        self._closed = False
        self._needed_until = 0.0
        self._check_at = 0.0
        self._heard = START

    def add(self, follow: Follow) -> None:
        """Read for `follow` from now on. Raises StoreUnavailable where that is known to fail."""
        if self._closed:
            raise StoreUnavailable("redis leases: closed")
        self._redis.admit()
        name = self._names.flight(follow.key, follow.token).encode()
        stream = self._streams.get(name)
        if stream is None:
            stream = FollowedStream(self._names.lease(follow.key), follow.token)
            self._streams[name] = stream
        stream.follows.append(follow)
        stream.position = START  # those who have read further pass over what they know
        if follow.live:
            self._joining.append(follow)
        self.ring()
        if not self._reads:
            self._reads = True
            self._tasks.start(self._read(), name="redis-follow")

    def remove(self, follow: Follow) -> None:
        """`follow` needs nothing more."""
        name = self._names.flight(follow.key, follow.token).encode()
        stream = self._streams[name]
        stream.follows.remove(follow)
        if not stream.follows:
            del self._streams[name]

    def ring(self) -> None:
        """Have the blocked read come back: there is something else to read."""
        if not self._rings:
            self._rings = True
            self._tasks.start(self._join(), name="redis-join")

    def close(self) -> None:
        """All who follow get StoreUnavailable."""
        self._closed = True
        self._fail_all(StoreUnavailable("redis leases: closed"))

    async def _join(self) -> None:
        self._rings = False
        joining, self._joining = self._joining, []
        leases = [self._names.lease(follow.key) for follow in joining]
        tokens = [follow.token for follow in joining]
        try:
            await self._redis.run(
                JOIN, [self._doorbell, *leases], [_DOORBELL_MS, *tokens], _REPLY_SECONDS
            )
        except StoreUnavailable as error:
            for follow in joining:
                follow.settle(error)
            return
        for follow in joining:
            await self._announce(follow)

    async def _read(self) -> None:
        """Read until nobody follows; connect anew, once, where a connection fails that worked."""
        while self._reads:
            self._works = False
            try:
                connection = await self._dialler.dial()
                try:
                    self._check_at, self._heard = self._clock.monotonic(), START
                    while self._is_needed():
                        await self._read_once(connection)
                    self._reads = False  # before any wait: who follows from now on starts another
                finally:
                    await connection.disconnect(nowait=True)
            except Exception as error:  # noqa: BLE001 - boundary: redis-py fails in many ways, all the same here
                if not self._works:
                    self._reads = False
                    self._fail_all(self._redis.failed(str(error) or type(error).__name__))

    def _is_needed(self) -> bool:
        now = self._clock.monotonic()
        follows = (follow for stream in self._streams.values() for follow in stream.follows)
        if not all(follow.settled for follow in follows):
            self._needed_until = now + self._linger_seconds
            return True
        return not self._closed and now < self._needed_until

    async def _read_once(self, connection: AbstractConnection) -> None:
        now = self._clock.monotonic()
        asked = {name: stream for name, stream in self._streams.items() if stream.readable}
        positions = {name: stream.position for name, stream in asked.items()}
        if now >= self._check_at:
            self._check_at = now + self._check_seconds
            await self._check(connection, asked.values())
        block = 0.0
        if not any(stream.gone for stream in asked.values()):
            block = max(self._check_at - self._clock.monotonic(), 0.001)
        command = self._command(positions, block)
        async with asyncio.timeout(block + _REPLY_SECONDS):
            (reply,) = await exchange(connection, [command])
        if isinstance(reply, ResponseError):
            raise reply
        # Not before: a server that lets nobody read streams may answer all else, again and again.
        self._works = True
        read = dict(reply or ())
        if rung := read.get(self._doorbell.encode()):
            self._heard = rung[-1][0]
        for name, stream in asked.items():
            if stream.position is positions[name]:  # else somebody joined meanwhile: from the start
                stream.take(read.get(name, ()))
        if reply and len(asked) > _FEW_STREAMS:
            # A read costs as much as there are streams: let more come for the next.
            await self._clock.sleep(min(len(asked) * _PAUSE_PER_STREAM, _LONGEST_PAUSE))

    def _command(self, positions: dict[bytes, bytes], block: float) -> Command:
        blocks = ("BLOCK", round(block * 1000)) if block else ()
        streams = (self._doorbell, *positions, self._heard, *positions.values())
        return ("XREAD", "COUNT", _READ_ENTRIES, *blocks, "STREAMS", *streams)

    async def _check(
        self, connection: AbstractConnection, streams: Iterable[FollowedStream]
    ) -> None:
        """Find out whose leases are gone: nothing more is said under them."""
        ask = partial(exchange, connection)
        rest = iter(streams)
        while batch := list(islice(rest, _CHECK_BATCH)):
            keys = [stream.lease for stream in batch]
            tokens = [stream.token for stream in batch]
            async with asyncio.timeout(_REPLY_SECONDS):
                held = await CHECK.run(ask, keys, tokens)
            if isinstance(held, ResponseError):
                raise held
            for stream, holds in zip(batch, held, strict=True):
                stream.gone = not holds

    def _fail_all(self, error: StoreUnavailable) -> None:
        for stream in self._streams.values():
            stream.settle(error)
