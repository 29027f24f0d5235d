"""What a leader says, as entries of a Redis stream: several records to one entry, all numbered."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from proxy.backends.redis_dial import Command
from proxy.backends.redis_guard import GuardedRedis
from proxy.coalesce.base import FlightEnd

_ENTRY_RECORDS: Final = 128
_ENTRY_BYTES: Final = 64 * 1024
_TRIP_BYTES: Final = 1024 * 1024  # per round trip, so that its deadline fits
_MOST_ENTRIES: Final = 10_000
_MOST_BYTES: Final = 16 * 1024 * 1024


class Recording:
    """The stream of one lease, written by its leader.

    The oldest entries give way above 10,000 entries or 16 MiB. After an append that failed, those
    who read find out that something is missing.
    """

    def __init__(
        self, redis: GuardedRedis, stream: str, stream_ms: int, timeout_seconds: float
    ) -> None:
        self._redis = redis
        self._stream = stream
        self._stream_ms = stream_ms
        self._timeout_seconds = timeout_seconds
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.records = 0
        """How many were appended so far."""

    async def append(self, records: Sequence[bytes]) -> None:
        """Raises StoreUnavailable; then what is missing is noticed by those who read."""
        trip: list[Command] = []
        size = 0
        for entry in _entries(records):
            trip.append(self._command(entry))
            size += self._sizes[-1]
            if size >= _TRIP_BYTES:
                await self._send(trip)
                trip, size = [], 0
        if trip:
            await self._send(trip)

    async def _send(self, trip: Sequence[Command]) -> None:
        kept = ("PEXPIRE", self._stream, self._stream_ms)
        await self._redis.ask([*trip, kept], self._timeout_seconds)

    def _command(self, entry: Sequence[bytes]) -> Command:
        size = sum(map(len, entry))
        self._sizes.append(size)
        self._bytes += size
        while len(self._sizes) > _MOST_ENTRIES or (
            self._bytes > _MOST_BYTES and len(self._sizes) > 1
        ):
            self._bytes -= self._sizes.popleft()
        number = self.records
        self.records += len(entry)
        fields = (part for record in entry for part in (b"r", record))
        cap = ("MAXLEN", "~", len(self._sizes))
        return ("XADD", self._stream, *cap, "*", b"n", number, *fields)


def _entries(records: Iterable[bytes]) -> Iterator[list[bytes]]:
    entry: list[bytes] = []
    size = 0
    for record in records:
        if entry and (len(entry) == _ENTRY_RECORDS or size + len(record) > _ENTRY_BYTES):
            yield entry
            entry, size = [], 0
        entry.append(record)
        size += len(record)
    if entry:
        yield entry


class ReadEntry:
    """One entry as it is read: the number of its first record, and its records or the end."""

    __slots__ = ("end", "number", "records")

    def __init__(self, fields: Any) -> None:
        """Raises ValueError for what no leader writes."""
        match fields:
            case [b"n", number, b"end", end]:
                self.records: Sequence[bytes] = ()
                self.end: FlightEnd | None = FlightEnd(end.decode("ascii"))
            case [b"n", number, b"r", *_]:
                self.records = fields[3::2]
                self.end = None
            case _:
                raise ValueError("no entry of a leader")
        self.number = int(number)
