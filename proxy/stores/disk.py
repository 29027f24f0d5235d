"""The disk store: one SQLite file in WAL mode, shared by the worker processes of one machine.

Look-ups and writes have a thread each, so that neither the event loop nor a look-up waits for a
commit. A hit writes nothing: when an entry was last used is kept to within five minutes, and
written with the next sweep. A process that is killed leaves whole entries only.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar, cast

from proxy.backends.circuit import Circuit
from proxy.backends.sqlite_thread import SqliteThread
from proxy.clock import Clock
from proxy.core.breaker import Breaker
from proxy.errors import StoreUnavailable
from proxy.stores.base import LookUpObserver, Put, StoreStats
from proxy.stores.batcher import Batcher
from proxy.tasks import TaskGroup

_T = TypeVar("_T")

_LARGEST_SHARE: Final = 8  # an entry above 1/8 of the bound would push out too many others
_ROOM_SHARE: Final = 20  # an eviction frees 1/20 of the bound, so that not every write evicts
_USE_SECONDS: Final = 300.0  # how coarse the last use is kept
_MOST_MARKS: Final = 10_000
_PAGE_KEYS: Final = 500
_HEADS_AT_ONCE: Final = 100  # a look-up that comes meanwhile waits for so many: about 1 ms
_VACUUM_PAGES: Final = 16_384  # 64 MiB per sweep: the write lock is held meanwhile
_RETRY_SECONDS: Final = 2.0


def _get_many(count: int) -> str:
    """A query for so many keys that gives all of them in one row."""
    columns = ", ".join(f"e{at}.value, e{at}.expires_at, e{at}.used_at" for at in range(count))
    joins = " ".join(f"LEFT JOIN entries AS e{at} ON e{at}.key = ?" for at in range(count))
    return f"SELECT {columns} FROM (SELECT 1) {joins}"  # noqa: S608 - of numbers alone


# Each row that is stepped to lets the event loop's thread in, and then waits for it.
_GET_AT_ONCE: Final = 16
_GET: Final = [_get_many(count) for count in range(_GET_AT_ONCE + 1)]
_FIND: Final = "SELECT id FROM entries WHERE key = ? AND expires_at > ?"
_PUT: Final = (
    "INSERT INTO entries (key, expires_at, used_at, value) VALUES (?, ?, ?, ?) ON CONFLICT (key) "
    "DO UPDATE SET expires_at = excluded.expires_at, used_at = excluded.used_at, "
    "value = excluded.value"
)
_DELETE: Final = "DELETE FROM entries WHERE key = ? RETURNING expires_at"
_SCAN: Final = (
    "SELECT key FROM entries WHERE key {} ? AND expires_at > ? ORDER BY key LIMIT ?"  # > or >=
)
_SWEEP: Final = (
    "DELETE FROM entries WHERE id IN "
    "(SELECT id FROM entries WHERE expires_at <= ? ORDER BY expires_at LIMIT ?)"
)
_LEAST_USED: Final = "SELECT id, length(value) FROM entries ORDER BY used_at LIMIT ?"
_FILE_BYTES: Final = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
_USED: Final = (
    "SELECT (page_count - freelist_count) * page_size "
    "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)


class DiskStore:
    """Holds up to `max_bytes` of pages in the file at `path` (its log beside it: ≤ 16 MiB).

    An entry larger than an eighth of the bound is not kept, silently. Where the place is full or
    read-only, writes raise StoreUnavailable and reads go on.
    """

    name = "disk"

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        max_bytes: int,
        sweep_interval_seconds: float = 30.0,
        read_timeout_seconds: float = 0.5,
        write_timeout_seconds: float = 10.0,
        observer: LookUpObserver | None = None,
    ) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._read_timeout_seconds = read_timeout_seconds
        self._write_timeout_seconds = write_timeout_seconds
        self._reads_circuit = Circuit("disk", Breaker(retry_seconds=_RETRY_SECONDS), clock)
        self._writes_circuit = Circuit("disk writes", Breaker(retry_seconds=_RETRY_SECONDS), clock)
        self._observer = observer
        self._tasks = TaskGroup()
        self._batcher = Batcher(self._fetch, self._tasks)
        self._used: dict[str, None] = {}
        pause = sweep_interval_seconds
        self._writer = SqliteThread(
            "disk", path, clock, writes=True, idle=self._sweep, idle_seconds=pause
        )
        self._reader = SqliteThread("disk", path, clock, writes=False, idle_seconds=pause)

    @property
    def available(self) -> bool:
        return self._reader.runs and self._reads_circuit.closed

    async def open(self) -> None:
        """Start the threads and open the file; a place that can't be used costs the hits only."""
        for ask in (self._write, self._read):
            try:
                await ask(lambda _: None)
            except StoreUnavailable:
                continue  # counted and, when it lasts, logged by the circuit

    def get_now(self, key: str) -> bytes | None:  # noqa: ARG002 - the file is never at hand
        return None

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._batcher.get_many(keys)

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.get_many(keys)

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        heads: list[bytes | None] = []
        for at in range(0, len(keys), _HEADS_AT_ONCE):
            now = self._clock.wall()
            some = keys[at : at + _HEADS_AT_ONCE]
            heads += await self._read(partial(_heads, keys=some, length=length, now=now))
        return heads

    async def put_many(self, puts: Sequence[Put]) -> None:
        if puts:
            now = self._clock.wall()
            await self._write(lambda connection: self._put(connection, puts, now))

    async def delete_many(self, keys: Sequence[str]) -> int:
        if not keys:
            return 0
        now = self._clock.wall()
        return await self._write(lambda connection: _delete(connection, keys, now))

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        last, relation = prefix, ">="
        while True:
            now = self._clock.wall()
            keys = await self._read(partial(_page, relation=relation, last=last, now=now))
            for key in keys:
                if not key.startswith(prefix):
                    return
                yield key
            if len(keys) < _PAGE_KEYS:
                return
            last, relation = keys[-1], ">"

    async def stats(self) -> StoreStats:
        entries, held = await self._read(
            lambda connection: (_one(connection, "SELECT count(*) FROM entries"), _held(connection))
        )
        return StoreStats(entries=entries, bytes=held, max_bytes=self._max_bytes)

    async def close(self) -> None:
        await self._writer.close()
        await self._reader.close()
        await self._tasks.cancel()

    async def _fetch(self, keys: Sequence[str]) -> list[bytes | None]:
        if self._observer is not None:
            self._observer.looked_up(self.name, len(keys))
        now = self._clock.wall()
        return await self._read(lambda connection: self._get(connection, keys, now))

    async def _read(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        return await self._reader.ask_behind(self._reads_circuit, self._read_timeout_seconds, job)

    async def _write(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        return await self._writer.ask_behind(self._writes_circuit, self._write_timeout_seconds, job)

    # From here on: in the threads.

    def _get(
        self, connection: sqlite3.Connection, keys: Sequence[str], now: float
    ) -> list[bytes | None]:
        values: list[bytes | None] = []
        for at in range(0, len(keys), _GET_AT_ONCE):
            some = keys[at : at + _GET_AT_ONCE]
            found = connection.execute(_GET[len(some)], some).fetchone()
            for place, key in enumerate(some):
                value, expires_at, used_at = found[3 * place : 3 * place + 3]
                if value is None or expires_at <= now:
                    values.append(None)
                    continue
                values.append(value)
                if used_at < now - _USE_SECONDS and len(self._used) < _MOST_MARKS:
                    self._used[key] = None
        return values

    def _put(self, connection: sqlite3.Connection, puts: Sequence[Put], now: float) -> None:
        for put in puts:
            if put.expires_at <= now or len(put.value) > self._max_bytes // _LARGEST_SHARE:
                connection.execute(_DELETE, (put.key,)).fetchall()
            else:
                connection.execute(_PUT, (put.key, put.expires_at, now, put.value))
        if _held(connection) > self._max_bytes:
            self._evict(connection)

    def _evict(self, connection: sqlite3.Connection) -> None:
        target = self._max_bytes - self._max_bytes // _ROOM_SHARE
        self._remove_expired(connection)
        while (excess := _held(connection) - target) > 0:
            leaving = []
            for row, size in connection.execute(_LEAST_USED, (_PAGE_KEYS,)):
                leaving.append((row,))
                excess -= size
                if excess <= 0:
                    break
            if not leaving:
                return
            connection.executemany("DELETE FROM entries WHERE id = ?", leaving)

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """The idle work of the writing thread, in short transactions."""
        used = list(self._used)
        now = self._clock.wall()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(
            "UPDATE entries SET used_at = ? WHERE key = ?", [(now, key) for key in used]
        )
        self._remove_expired(connection)
        if _held(connection) > self._max_bytes:  # the bound was lowered
            self._evict(connection)
        connection.execute("COMMIT")
        for key in used:
            self._used.pop(key, None)
        if _one(connection, _FILE_BYTES) > self._max_bytes:
            # As a script: a single execute gives back one page only.
            connection.executescript(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")

    def _remove_expired(self, connection: sqlite3.Connection) -> None:
        now = self._clock.wall()
        while connection.execute(_SWEEP, (now, _PAGE_KEYS)).rowcount == _PAGE_KEYS:
            pass


def _delete(connection: sqlite3.Connection, keys: Sequence[str], now: float) -> int:
    removed = 0
    for key in keys:
        row = connection.execute(_DELETE, (key,)).fetchall()
        removed += bool(row) and row[0][0] > now
    return removed


def _page(connection: sqlite3.Connection, *, relation: str, last: str, now: float) -> list[str]:
    rows = connection.execute(_SCAN.format(relation), (last, now, _PAGE_KEYS))
    return [key for (key,) in rows]


def _heads(
    connection: sqlite3.Connection, *, keys: Sequence[str], length: int, now: float
) -> list[bytes | None]:
    heads: list[bytes | None] = []
    connection.execute("BEGIN")  # what was found stays there until it is read
    for key in keys:
        row = connection.execute(_FIND, (key, now)).fetchone()
        if row is None:
            heads.append(None)
            continue
        # Not substr: that reads the whole value, 1.6 ms for 5 MB.
        with connection.blobopen("entries", "value", row[0], readonly=True) as value:
            heads.append(value.read(length) or None)
    connection.execute("COMMIT")
    return heads


def _held(connection: sqlite3.Connection) -> int:
    """Bytes of the pages that hold something."""
    return _one(connection, _USED)


def _one(connection: sqlite3.Connection, query: str) -> int:
    (number,) = connection.execute(query).fetchone()
    return cast("int", number)
