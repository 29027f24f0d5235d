"""The purge marks of one machine's workers, in a table of the disk store's file.

Rows are the texts of the marks with their numbers; beside them stand `number`, the highest ever
given, and `epoch`, the number at which the table was begun or repaired: a reader that knows another
epoch reads all of it. Older versions of the program pass the table over.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar, cast

from proxy.backends.circuit import Circuit
from proxy.backends.sqlite_thread import SqliteThread
from proxy.clock import Clock
from proxy.core.breaker import Breaker
from proxy.core.marks import MOST_MARKS, next_number
from proxy.core.selectors import Mark, Selector
from proxy.stores.marks import Hearing, Reading
from proxy.stores.marks_text import (
    EPOCH_NAME,
    EVERYTHING_TEXT,
    FOLDED_SHARE,
    NUMBER_NAME,
    mark_of,
    mark_text,
)

_T = TypeVar("_T")

_RETRY_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 1.0  # a file that was moved aside must not keep marks to itself for long

_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS marks (text TEXT PRIMARY KEY, number INTEGER NOT NULL) "
    "STRICT, WITHOUT ROWID"
)
_IS_THERE: Final = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'marks'"
_NUMBER: Final = "SELECT number FROM marks WHERE text = ?"
_PUT: Final = "INSERT OR REPLACE INTO marks (text, number) VALUES (?, ?)"
_SINCE: Final = "SELECT text, number FROM marks WHERE number > ?"
_OLDEST: Final = "SELECT number FROM marks ORDER BY number LIMIT 1 OFFSET ?"


class DiskMarkLog:
    """In the file at `path`, over a thread of its own; what others add is found by reading.

    Where the place is full or read-only, `add` and `keep` raise StoreUnavailable, `read` does not.
    """

    hearing = Hearing.UNTOLD

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock,
        timeout_seconds: float = 5.0,
        most: int = MOST_MARKS,
    ) -> None:
        self._clock = clock
        self._timeout_seconds = timeout_seconds
        self._most = most
        self._reads_circuit = _circuit("disk purges", clock)
        self._writes_circuit = _circuit("new disk purges", clock)
        # Its jobs begin their own transactions: a reading must not wait for a writer.
        self._thread = SqliteThread(
            "disk purges", path, clock, writes=False, idle_seconds=_LOOK_SECONDS
        )
        self._seen = 0
        self._epoch: int | None = None
        self._whole = True  # the next reading

    async def open(self, heard: Callable[[], None]) -> None:
        """Nothing to do: the file is opened by what is asked first."""

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        text = mark_text(selector, soft=soft, stored_before=stored_before)
        number = await self._ask(self._writes_circuit, lambda file: self._add(file, text, known))
        return Mark(number, selector, soft, stored_before)

    async def read(self, known: int) -> Reading | None:
        seen, epoch = self._seen, None if self._whole else self._epoch
        self._whole = False
        try:
            self._seen, self._epoch, reading = await self._ask(
                self._reads_circuit, lambda file: _read(file, known, seen, epoch)
            )
        except BaseException:  # cancellation too: what was new may be lost
            self._whole = True
            raise
        return reading

    async def keep(self, marks: Sequence[Mark]) -> None:
        try:
            await self._ask(self._writes_circuit, lambda file: self._keep(file, marks))
        except BaseException:  # cancellation too: some may be lacking
            self._whole = True
            raise

    async def close(self) -> None:
        await self._thread.close()

    async def _ask(self, circuit: Circuit, job: Callable[[sqlite3.Connection], _T]) -> _T:
        return await self._thread.ask_behind(circuit, self._timeout_seconds, job)

    # From here on: in the thread.

    def _add(self, file: sqlite3.Connection, text: str, known: int) -> int:
        with _writing(file):
            last, epoch = _state(file)
            number = next_number(last, known, self._clock.wall())
            _put(file, text, number)
            self._settle(file, number, number if not last or last < known else epoch)
        return number

    def _keep(self, file: sqlite3.Connection, marks: Sequence[Mark]) -> None:
        with _writing(file):
            last, epoch = _state(file)
            everything = _number(file, EVERYTHING_TEXT)
            highest, added, repaired = last, False, not last
            for mark in marks:
                text = mark_text(mark.selector, soft=mark.soft, stored_before=mark.stored_before)
                if mark.number <= max(everything, _number(file, text)):
                    continue
                _put(file, text, mark.number)
                added, repaired = True, repaired or mark.number <= last
                highest = max(highest, mark.number)
            if added and repaired:
                highest = epoch = max(highest, last + 1)
            if added:
                self._settle(file, highest, epoch)

    def _settle(self, file: sqlite3.Connection, number: int, epoch: int) -> None:
        everything = _number(file, EVERYTHING_TEXT)
        (count,) = file.execute("SELECT count(*) FROM marks").fetchone()
        excess = count - 2 - self._most
        if excess > 0:
            rank = excess + self._most // FOLDED_SHARE + 2  # `epoch` and `{}` may stand before
            (oldest,) = file.execute(_OLDEST, (rank,)).fetchone()
            everything = max(everything, oldest)
        if everything:
            file.execute("DELETE FROM marks WHERE number <= ?", (everything,))
            _put(file, EVERYTHING_TEXT, everything)
        _put(file, NUMBER_NAME, number)
        _put(file, EPOCH_NAME, epoch)


def _circuit(what: str, clock: Clock) -> Circuit:
    # Never shut for long: meanwhile the purges of others are not heard of.
    breaker = Breaker(retry_seconds=_RETRY_SECONDS, longest_wait_seconds=_RETRY_SECONDS)
    return Circuit(what, breaker, clock)


def _read(
    file: sqlite3.Connection, known: int, seen: int, epoch: int | None
) -> tuple[int, int, Reading | None]:
    """The number and epoch that stand there, and what is new since those that were seen."""
    there = file.execute(_IS_THERE).fetchone() is not None
    # In this order, so that what is added meanwhile is read again rather than never.
    number, now_epoch = _state(file) if there else (0, 0)
    whole = now_epoch != epoch
    if number < known:
        number = now_epoch = _lift(file, known)
        whole = True
    elif number == seen and not whole:
        return number, now_epoch, None
    rows = file.execute(_SINCE, (-1 if whole else seen,)) if there else ()
    own = (NUMBER_NAME, EPOCH_NAME)
    marks = [mark_of(text, at) for text, at in rows if text not in own]
    return number, now_epoch, Reading(marks, held=marks if whole else None)


def _lift(file: sqlite3.Connection, known: int) -> int:
    """Go on above `known` in a table that has lost it; another may have done so already."""
    with _writing(file):
        last, _ = _state(file)
        number = max(last, known)
        _put(file, NUMBER_NAME, number)
        _put(file, EPOCH_NAME, number)
    return number


@contextmanager
def _writing(file: sqlite3.Connection) -> Iterator[None]:
    """One transaction; what fails in it is rolled back by the thread."""
    file.execute("BEGIN IMMEDIATE")
    file.execute(_TABLE)
    yield
    file.execute("COMMIT")


def _state(file: sqlite3.Connection) -> tuple[int, int]:
    return _number(file, NUMBER_NAME), _number(file, EPOCH_NAME)


def _number(file: sqlite3.Connection, text: str) -> int:
    row = file.execute(_NUMBER, (text,)).fetchone()
    return 0 if row is None else cast("int", row[0])


def _put(file: sqlite3.Connection, text: str, number: int) -> None:
    file.execute(_PUT, (text, number))
