"""The leases as a table of the disk store's file has them; each call is one transaction for many.

A row is there while its lease is held, and for a while after its end if anyone follows, or if an
entry was stored: who looked for that before may have missed it. `ends_at`
is wall-clock seconds, of the one clock that all workers of a machine share; a lease that claims to
last longer than leases do was written before the clock stepped back, and is void. Older versions
of the program pass the table over.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final, TypeAlias, cast

from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd

Row: TypeAlias = tuple[str, int]
"""Key and token."""

_SLACK_SECONDS: Final = 1.0  # by which clocks are corrected without stepping
_MICROSECONDS: Final = 1_000_000
_LATELY_SECONDS: Final = 2.0  # longer than a look-up takes, and the step from there to a lease
_FENCE: Final = ""  # the key of the row with the highest token ever given: no store key is empty

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS leases (key TEXT, token INTEGER, ends_at REAL NOT NULL, "
    "followed INTEGER NOT NULL DEFAULT 0, ended TEXT, PRIMARY KEY (key, token)) "
    "STRICT, WITHOUT ROWID"
)
_IS_THERE: Final = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'leases'"
_FENCE_ON: Final = "UPDATE leases SET token = max(?, token + 1) WHERE key = ? RETURNING token"
_ROWS: Final = "SELECT token, ended, ends_at FROM leases WHERE key = ? ORDER BY token DESC"
_FOLLOW: Final = "UPDATE leases SET followed = 1 WHERE key = ? AND token = ? AND followed = 0"
_DROP: Final = "DELETE FROM leases WHERE key = ? AND ended IS NULL"
_ADD: Final = "INSERT INTO leases (key, token, ends_at) VALUES (?, ?, ?)"
_RENEW: Final = "UPDATE leases SET ends_at = ? WHERE key = ? AND token = ? AND ended IS NULL"
_FORGET: Final = "DELETE FROM leases WHERE key = ? AND token = ? AND followed = 0"
_END: Final = (
    "UPDATE leases SET ended = ?, ends_at = ? WHERE key = ? AND token = ? AND ended IS NULL"
)
_END_STORED: Final = (
    "UPDATE leases SET ended = 'stored', ends_at = CASE followed WHEN 0 THEN ? ELSE ? END "
    "WHERE key = ? AND token = ? AND ended IS NULL"
)
_LOOK: Final = "SELECT ended, ends_at FROM leases WHERE key = ? AND token = ?"
_SWEEP: Final = "DELETE FROM leases WHERE key <> ? AND (ends_at <= ? OR ends_at > ?)"


class DiskLeases:
    """Jobs for a thread: each takes a connection; those that write expect a transaction.

    `prepare` comes first.
    """

    def __init__(self, clock: Clock, *, lease_seconds: float) -> None:
        self._clock = clock
        self._lease_seconds = lease_seconds

    def prepare(self, file: sqlite3.Connection) -> None:
        """Have the table; once for each connection that writes, outside of transactions."""
        file.execute(_TABLE)

    def acquire(
        self, file: sqlite3.Connection, keys: Sequence[str]
    ) -> tuple[int, list[int | None], list[bool]]:
        """The token of those that were free, and for each the token of who holds it, or None.

        Then, for each, whether it was free with an entry stored lately.
        """
        now = self._clock.wall()
        token = self._next_token(file, now)
        holders, lately = [], []
        for key in keys:
            holder, was_stored, is_left = self._found(file, key, now)
            if holder is not None:
                file.execute(_FOLLOW, (key, holder))
            else:
                if is_left:
                    file.execute(_DROP, (key,))
                file.execute(_ADD, (key, token, now + self._lease_seconds))
            holders.append(holder)
            lately.append(holder is None and was_stored)
        return token, holders, lately

    def renew(self, file: sqlite3.Connection, rows: Sequence[Row]) -> list[bool]:
        """Whether each is still held; if so, it lasts a whole lease time from now."""
        ends_at = self._clock.wall() + self._lease_seconds
        return [file.execute(_RENEW, (ends_at, *row)).rowcount == 1 for row in rows]

    def release(self, file: sqlite3.Connection, ends: Sequence[tuple[Row, FlightEnd]]) -> None:
        """Give the keys free; where somebody follows, say for a lease time how it ended."""
        now = self._clock.wall()
        followed_until = now + self._lease_seconds
        stored_until = now + min(_LATELY_SECONDS, self._lease_seconds)
        for row, end in ends:
            if end is FlightEnd.STORED:
                file.execute(_END_STORED, (stored_until, followed_until, *row))
            elif file.execute(_FORGET, row).rowcount == 0:
                file.execute(_END, (end.value, followed_until, *row))

    def look(self, file: sqlite3.Connection, rows: Sequence[Row]) -> list[FlightEnd | None]:
        """How each ended, or None while it is held."""
        if file.execute(_IS_THERE).fetchone() is None:  # the file was begun anew
            return [FlightEnd.ABANDONED] * len(rows)
        return [self._end_of(file, row) for row in rows]

    def sweep(self, file: sqlite3.Connection) -> None:
        """Remove what is over, in a transaction of its own."""
        now = self._clock.wall()
        file.execute(_SWEEP, (_FENCE, now, self._latest(now)))

    def _next_token(self, file: sqlite3.Connection, now: float) -> int:
        """Above every token given before, also where the clock stepped back."""
        token = int(now * _MICROSECONDS)
        for (moved_on,) in file.execute(_FENCE_ON, (token, _FENCE)).fetchall():
            return cast("int", moved_on)
        file.execute(_ADD, (_FENCE, token, 0.0))
        return token

    def _found(
        self, file: sqlite3.Connection, key: str, now: float
    ) -> tuple[int | None, bool, bool]:
        """The token of who holds the key, if its entry was stored lately, and if a row is left."""
        holder, was_stored, is_left = None, False, False
        for token, ended, ends_at in file.execute(_ROWS, (key,)).fetchall():
            is_in_force = now < ends_at <= self._latest(now)
            if ended is None and is_in_force:
                holder = token if holder is None else holder
            elif ended is None:
                is_left = True
            elif ended == FlightEnd.STORED and is_in_force:
                was_stored = True
        return holder, was_stored, is_left

    def _end_of(self, file: sqlite3.Connection, row: Row) -> FlightEnd | None:
        found = file.execute(_LOOK, row).fetchone()
        now = self._clock.wall()
        if found is None:
            return FlightEnd.ABANDONED
        ended, ends_at = found
        if ended is not None:
            return _known(ended)
        return None if now < ends_at <= self._latest(now) else FlightEnd.ABANDONED

    def _latest(self, now: float) -> float:
        """Beyond this no lease lasts that was taken under the clock as it is."""
        return now + self._lease_seconds + _SLACK_SECONDS


def _known(ended: str) -> FlightEnd:
    """The end that was told; one that another version of the program told is of no use here."""
    try:
        return FlightEnd(ended)
    except ValueError:
        return FlightEnd.FAILED
