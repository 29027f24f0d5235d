"""The SQLite file behind the disk store: opened safely, and made anew where it is not ours.

A cache may lose everything but must never be in the way: a file that is damaged, foreign, or of
another schema version is moved aside, once, by one of the worker processes. It is never deleted:
it may be somebody's own database under a mistaken path.
"""

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

log = logging.getLogger("magic_proxy.stores")

SCHEMA_VERSION: Final = 1
_APPLICATION_ID: Final = 0x4D505843  # "MPXC"
_BUSY_SECONDS: Final = 2.0
_WAL_BYTES: Final = 16 * 1024 * 1024

_SCHEMA: Final = f"""
BEGIN;
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    expires_at REAL NOT NULL,
    used_at REAL NOT NULL,
    value BLOB NOT NULL
) STRICT;
CREATE INDEX entries_by_expiry ON entries (expires_at);
CREATE INDEX entries_by_use ON entries (used_at);
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


class NotOurFile(Exception):
    """The file is no intact store of this schema version."""


def open_file(path: Path, *, now: float, thorough: bool = False) -> sqlite3.Connection:
    """A connection to the store at `path`, which is made where it is absent.

    What lies there and can't be used is moved aside, with `now` (wall-clock seconds) in its new
    name. `thorough` looks at every page first: for a file that has shown damage. Raises
    sqlite3.Error or OSError where the place can't be used.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock(path):
        try:
            return _connect(path, thorough=thorough)
        except NotOurFile as error:
            aside = path.with_name(f"{path.name}.unusable-{now:.0f}")
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.rename(f"{path}{suffix}", f"{aside}{suffix}")  # noqa: PTH104 - beside it
            log.warning("disk: %s (%s); moved to %s, begun anew", path, error, aside.name)
            return _connect(path, thorough=False)


def says_damaged(error: sqlite3.Error) -> bool:
    """Whether SQLite found that the file itself is damaged."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time decides over the file."""
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _connect(path: Path, *, thorough: bool) -> sqlite3.Connection:
    # Made here so that nobody but the owner may read it; SQLite gives -wal and -shm its mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        _prepare(connection, thorough=thorough)
    except sqlite3.DatabaseError as error:
        connection.close()
        if says_damaged(error):
            raise NotOurFile(str(error)) from error
        raise
    except BaseException:  # nothing may leave a connection open that nobody has
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, *, thorough: bool) -> None:
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables:
        # Before anything is set: another program's file is left as it was.
        _check_ours(connection)
    else:
        # Both take effect only before there is a table.
        connection.execute("PRAGMA page_size = 4096")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    if not tables:
        connection.executescript(_SCHEMA)
    elif thorough:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise NotOurFile(f"damaged: {' '.join(found.split())}")


def _check_ours(connection: sqlite3.Connection) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION_ID:
        raise NotOurFile("another program's database")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise NotOurFile(f"schema version {version}, known is {SCHEMA_VERSION}")
