"""The board of one machine's workers: two tables in the file of the disk store.

Times are wall-clock seconds of that machine. Where its clock steps back, nothing lasts longer than
it did when it was posted. Older versions of the program pass the tables over.
"""

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from proxy.backends.circuit import Circuit
from proxy.backends.sqlite_thread import SqliteThread
from proxy.clock import Clock
from proxy.core.breaker import Breaker
from proxy.upstream.allowance import Use
from proxy.upstream.board import LONGEST_SECONDS, Posts, Read, Uses, added
from proxy.upstream.pooled_key import KeyNews
from proxy.upstream.windows import WINDOW_SECONDS

_T = TypeVar("_T")

_RETRY_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 1.0  # a file that was moved aside is let go of
_RESTORED: Final = -1.0

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS key_states (name TEXT PRIMARY KEY, number INTEGER NOT NULL, "
    "posted_at REAL NOT NULL, cool_until REAL NOT NULL, probe_at REAL NOT NULL, "
    "rejections INTEGER NOT NULL, reason TEXT NOT NULL) STRICT, WITHOUT ROWID"
)
_USES: Final = (
    "CREATE TABLE IF NOT EXISTS key_uses (id INTEGER PRIMARY KEY AUTOINCREMENT, "
    "told_at REAL NOT NULL, origin TEXT NOT NULL, name TEXT NOT NULL, "
    "requests INTEGER NOT NULL, tokens INTEGER NOT NULL) STRICT"
)
_IS_THERE: Final = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
_NUMBER: Final = "SELECT coalesce(max(number), 0) FROM key_states"
_ROW: Final = "SELECT cool_until, probe_at, rejections FROM key_states WHERE name = ?"
_PUT: Final = "INSERT OR REPLACE INTO key_states VALUES (?, ?, ?, ?, ?, ?, ?)"
_SWEEP: Final = "DELETE FROM key_states WHERE max(cool_until, probe_at) < ? AND posted_at < ?"
_SINCE: Final = (
    "SELECT name, posted_at, cool_until, probe_at, rejections, reason FROM key_states "
    "WHERE number > ?"
)
_USED: Final = (
    "INSERT INTO key_uses (told_at, origin, name, requests, tokens) VALUES (?, ?, ?, ?, ?)"
)
_USED_BEFORE: Final = "DELETE FROM key_uses WHERE told_at NOT BETWEEN ? AND ?"
_USE_NUMBER: Final = "SELECT coalesce(max(id), 0) FROM key_uses"
_USED_SINCE: Final = (
    "SELECT name, requests, tokens FROM key_uses "
    "WHERE id > ? AND origin != ? AND told_at BETWEEN ? AND ? ORDER BY id"
)


class DiskKeyBoard:
    """In the file at `path`, over a thread of its own; what others post is found by looking."""

    poll_seconds = 0.5

    def __init__(self, path: Path, *, clock: Clock, timeout_seconds: float = 5.0) -> None:
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        breaker = Breaker(retry_seconds=_RETRY_SECONDS, longest_wait_seconds=_RETRY_SECONDS)
        self._circuit = Circuit("disk key states", breaker, clock)
        # Its jobs begin their own transactions: a reading must not wait for a writer.
        self._thread = SqliteThread(
            "disk key states", path, clock, writes=False, idle_seconds=_LOOK_SECONDS
        )
        self._seen = 0
        self._seen_use = 0
        self._origin = secrets.token_hex(8)

    def open(self, heard: Callable[[], None], connected: Callable[[], None]) -> None:
        """Nothing to do: the file is opened by what is asked first."""

    async def post(self, posts: Posts) -> None:
        now = self._clock.wall()
        await self._ask(lambda file: _post(file, posts, now))

    async def tell(self, uses: Uses) -> None:
        now, origin = self._clock.wall(), self._origin
        await self._ask(lambda file: _tell(file, uses, origin, now))

    async def read(self, *, whole: bool) -> Read:
        seen, seen_use, now = self._seen, self._seen_use, self._clock.wall()
        (number, posts), (number_use, uses) = await self._ask(
            lambda file: (
                _read(file, seen, now, whole=whole),
                _uses(file, seen_use, self._origin, now),
            )
        )
        self._seen, self._seen_use = number, number_use
        return Read(posts, lost=number < seen, uses=added(uses))

    async def close(self) -> None:
        await self._thread.close()

    async def _ask(self, job: Callable[[sqlite3.Connection], _T]) -> _T:
        return await self._thread.ask_behind(self._circuit, self._timeout_seconds, job)


# From here on: in the thread.


def _post(file: sqlite3.Connection, posts: Posts, now: float) -> None:
    """One transaction; what fails in it is rolled back by the thread."""
    file.execute("BEGIN IMMEDIATE")
    file.execute(_TABLE)
    (number,) = file.execute(_NUMBER).fetchone()
    for name, news in posts.items():
        cool, probe, rejections = file.execute(_ROW, (name,)).fetchone() or (0.0, 0.0, 0)
        if news.cooling_seconds > 0.0:
            cool = max(cool, now + news.cooling_seconds)
        if news.retired_seconds > 0.0:
            probe = max(probe, now + news.retired_seconds)
            rejections = max(rejections, news.rejections)
        elif news.restored:
            probe, rejections = _RESTORED, 0
        # Of the time, so that a table that was lost does not begin below what others have seen.
        number = max(number + 1, int(now * 1000))
        file.execute(_PUT, (name, number, now, cool, probe, rejections, news.reason))
    file.execute(_SWEEP, (now, now - LONGEST_SECONDS))
    file.execute("COMMIT")


def _read(
    file: sqlite3.Connection, seen: int, now: float, *, whole: bool
) -> tuple[int, dict[str, KeyNews]]:
    """The highest number, and what was posted since the one that was seen."""
    if file.execute(_IS_THERE, ("key_states",)).fetchone() is None:
        return 0, {}
    (number,) = file.execute(_NUMBER).fetchone()
    if number == seen and not whole:
        return number, {}
    rows = file.execute(_SINCE, (0 if whole or number < seen else seen,))
    return number, {
        name: KeyNews(
            cooling_seconds=_left(cool, posted_at, now),
            retired_seconds=_left(probe, posted_at, now),
            rejections=rejections,
            restored=probe == _RESTORED,
            reason=reason,
        )
        for name, posted_at, cool, probe, rejections, reason in rows
    }


def _tell(file: sqlite3.Connection, uses: Uses, origin: str, now: float) -> None:
    file.execute("BEGIN IMMEDIATE")
    file.execute(_USES)
    file.execute(_USED_BEFORE, _window(now))
    rows = [(now, origin, name, use.requests, use.tokens) for name, use in uses.items()]
    file.executemany(_USED, rows)
    file.execute("COMMIT")


def _uses(
    file: sqlite3.Connection, seen: int, own: str, now: float
) -> tuple[int, list[tuple[str, Use]]]:
    """The highest number, and what others told since the one that was seen.

    What is over counts no more, also where nobody has told anything since, and so swept it out.
    """
    if file.execute(_IS_THERE, ("key_uses",)).fetchone() is None:
        return 0, []
    (number,) = file.execute(_USE_NUMBER).fetchone()
    # Lower where all that was seen is gone, or the table was lost: what is there is new.
    rows = file.execute(_USED_SINCE, (seen if number >= seen else 0, own, *_window(now)))
    return number, [(name, Use(requests, tokens)) for name, requests, tokens in rows]


def _window(now: float) -> tuple[float, float]:
    """Between which times it counts; what is later was told before the clock stepped back."""
    return now - WINDOW_SECONDS, now + WINDOW_SECONDS


def _left(until: float, posted_at: float, now: float) -> float:
    return min(max(until - max(now, posted_at), 0.0), LONGEST_SECONDS)
