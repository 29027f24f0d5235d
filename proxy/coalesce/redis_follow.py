"""One follower's place in what a leader elsewhere publishes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, Protocol

from proxy.coalesce.base import FlightEnd, Followed, FollowEvent, Landed, Published
from proxy.coalesce.redis_records import ReadEntry
from proxy.errors import FellBehind, StoreError, StoreUnavailable

START: Final = b"0-0"
_MOST_BUFFERED: Final = 1024 * 1024  # bytes read ahead of one follower


class Reader(Protocol):
    """What reads for those who follow."""

    def add(self, follow: "Follow") -> None: ...

    def remove(self, follow: "Follow") -> None: ...

    def ring(self) -> None: ...


class RedisFollowed(Followed):
    """Each call of `events` follows on its own."""

    def __init__(self, reader: Reader, key: str, token: int) -> None:
        super().__init__(key, token)
        self._reader = reader

    async def events(self, *, live: bool) -> AsyncIterator[FollowEvent]:
        follow = Follow(self.key, self.token, live=live, has_room=self._reader.ring)
        self._reader.add(follow)
        try:
            while not isinstance(event := await follow.next(), Landed):
                yield event
            yield event
        finally:
            self._reader.remove(follow)


class Follow:
    """One follower's place in one stream, and what it has not taken yet."""

    def __init__(self, key: str, token: int, *, live: bool, has_room: Callable[[], None]) -> None:
        self.key = key
        self.token = token
        self.live = live
        self.settled = False
        """True once the end or an error is known."""
        self._has_room = has_room
        self._next = 0
        self._records: list[bytes] = []
        self._bytes = 0
        self._last: Landed | StoreError | None = None
        self._news = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether enough was read ahead."""
        return self._bytes >= _MOST_BUFFERED

    async def next(self) -> FollowEvent:
        """What came since, or the end. Raises StoreError."""
        await self._news.wait()
        if self._records:
            was_full = self.full
            records, self._records, self._bytes = self._records, [], 0
            if self._last is None:
                self._news.clear()
                if was_full:
                    self._has_room()
            return Published(records)
        if isinstance(self._last, StoreError):
            raise type(self._last)(self._last.message)  # the others raise the same
        assert self._last is not None
        return self._last

    def take(self, entry: ReadEntry) -> None:
        """The next entry of the stream, or one from before that another follower needed."""
        if self.settled:
            return
        if self.live and entry.number > self._next:
            self.settle(FellBehind("records of the leader are gone that were not read yet"))
        elif entry.end is not None:
            self.settle(Landed(entry.end))
        elif self.live and entry.number == self._next:
            self._next += len(entry.records)
            self._records += entry.records
            self._bytes += sum(map(len, entry.records))
            self._news.set()

    def settle(self, last: Landed | StoreError) -> None:
        """What comes after the records that are there already, once."""
        if not self.settled:
            self.settled = True
            self._last = last
            self._news.set()


class FollowedStream:
    """All who follow one lease here, and up to where it was read."""

    def __init__(self, lease: str, token: int) -> None:
        self.lease = lease
        self.token = token
        self.position = START
        self.follows: list[Follow] = []
        self.gone = False
        """True once the lease is known to be gone: only what was said before is still to come."""

    @property
    def readable(self) -> bool:
        """Whether somebody waits for more, and nobody has too much as it is."""
        unsettled = [follow for follow in self.follows if not follow.settled]
        return bool(unsettled) and not any(follow.full for follow in unsettled)

    def settle(self, last: Landed | StoreUnavailable) -> None:
        for follow in self.follows:
            follow.settle(last)

    def take(self, entries: Sequence[tuple[bytes, Any]]) -> None:
        """What was read since `position`: pairs of an entry's place and its fields."""
        try:
            for number, fields in entries:
                entry = ReadEntry(fields)
                self.position = number
                for follow in self.follows:
                    follow.take(entry)
        except ValueError as error:
            self.settle(StoreUnavailable(f"redis leases: {error}"))
        if self.gone and not entries:
            self.settle(Landed(FlightEnd.ABANDONED))
