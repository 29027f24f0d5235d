"""The log of purges as a table in the disk store's file: other versions, locks, damage, bad places."""

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.backends.sqlite_file import SCHEMA_VERSION, open_file
from proxy.core.selectors import Mark, Selector
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put
from proxy.stores.disk import DiskStore
from proxy.stores.marks_disk import DiskMarkLog
from tests.fakes import FakeClock
from tests.waiting import until

pytestmark = pytest.mark.anyio

A = Selector(tag="a")
Make = Callable[..., DiskMarkLog]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "store.sqlite3"


@pytest.fixture
async def make(path: Path, clock: FakeClock) -> AsyncIterator[Make]:
    made: list[DiskMarkLog] = []

    def new(at: Path = path, timeout_seconds: float = 60.0) -> DiskMarkLog:
        made.append(DiskMarkLog(at, clock=clock, timeout_seconds=timeout_seconds))
        return made[-1]

    yield new
    for log in made:
        await log.close()


def nobody() -> None:
    """Nobody tells this log of others."""


async def opened(log: DiskMarkLog) -> DiskMarkLog:
    await log.open(nobody)
    return log


async def add(log: DiskMarkLog, selector: Selector = A) -> Mark:
    return await log.add(selector, soft=False, stored_before=None, known=0)


def tables(path: Path) -> set[str]:
    file = sqlite3.connect(path)
    try:
        return {name for (name,) in file.execute("SELECT name FROM sqlite_schema")}
    finally:
        file.close()


async def test_a_file_of_before_is_read_without_a_change_to_it(
    path: Path, make: Make, clock: FakeClock
) -> None:
    open_file(path, now=0.0).close()
    before = tables(path)
    reading = await (await opened(make())).read(0)
    assert reading is not None
    assert reading.new == []
    assert tables(path) == before


async def test_the_store_goes_on_in_a_file_with_marks(
    path: Path, make: Make, clock: FakeClock
) -> None:
    mark = await add(log := await opened(make()))
    store = DiskStore(path, clock=clock, max_bytes=1024 * 1024, read_timeout_seconds=60.0)
    await store.open()
    await store.put_many([Put("p:v1:chat:-:x", b"1", clock.wall() + 60.0)])
    assert await store.get_many(["p:v1:chat:-:x"]) == [b"1"]
    assert [key async for key in store.scan("")] == ["p:v1:chat:-:x"]
    await store.close()
    reading = await log.read(0)
    assert reading is not None
    assert reading.new == [mark]
    file = sqlite3.connect(path)
    assert file.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    file.close()


async def test_B50_a_reading_does_not_wait_for_who_writes(path: Path, make: Make) -> None:
    mark = await add(await opened(make()))
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    reading = await (await opened(make(timeout_seconds=1.0))).read(0)
    writer.close()
    assert reading is not None
    assert reading.new == [mark]


async def test_B50_a_purge_that_has_to_wait_too_long_fails_in_time(path: Path, make: Make) -> None:
    await add(await opened(make()))
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    log = await opened(make(timeout_seconds=0.05))
    with pytest.raises(StoreUnavailable, match=r"disk purges: not done within 0\.05 s"):
        await add(log)
    writer.close()


async def test_B50_a_place_that_takes_no_writes_is_read_and_takes_no_purge(
    path: Path, make: Make, clock: FakeClock
) -> None:
    mark = await add(await opened(make()))
    log = await opened(make())
    await takes_writes(log, False)
    for refused in ("readonly", "readonly", "readonly", "circuit is open"):
        with pytest.raises(StoreUnavailable, match=refused):
            await add(log)
    with pytest.raises(StoreUnavailable, match="circuit"):
        await log.keep([Mark(1, A)])
    reading = await log.read(0)
    assert reading is not None
    assert reading.new == [mark]
    await takes_writes(log, True)
    clock.advance(3.0)
    assert (await add(log)).number > mark.number


async def takes_writes(log: DiskMarkLog, does: bool) -> None:
    """SQLite's own switch gives the same error as a file system that is read-only."""
    thread = log._thread
    assert thread is not None
    await thread.ask(lambda file: file.execute(f"PRAGMA query_only = {int(not does)}").fetchall())


async def test_B50_a_place_that_cannot_be_used_is_said_once_and_heals(
    tmp_path: Path, make: Make, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="magic_proxy")
    place = tmp_path / "place"
    place.write_text("a file where a directory should be")
    log = await opened(make(place / "store.sqlite3"))
    for _ in range(20):
        with pytest.raises(StoreUnavailable, match="disk"):
            await log.read(0)
    said = [record.getMessage().split(" (")[0] for record in caplog.records]
    assert said == ["disk purges: does not work, and is left alone for a while"]
    place.unlink()

    async def works() -> bool:
        clock.advance(3.0)
        try:
            return await log.read(0) is not None
        except StoreUnavailable:
            return False

    await until(works)
    assert (await add(log)).number > 0
    assert [record.getMessage() for record in caplog.records][1:] == ["disk purges: works again"]


async def test_B54_marks_do_not_stay_in_a_file_that_was_moved_aside(
    path: Path, make: Make, clock: FakeClock
) -> None:
    one, other = await opened(make()), await opened(make())
    mark = await add(one)
    await other.read(0)
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    late = await add(one, Selector(tag="late"))  # may still go to the old file

    async def lost() -> bool:
        clock.advance(1.5)
        reading = await one.read(late.number)
        return reading is not None and reading.held is not None and late not in reading.held

    await until(lost)
    await one.keep([mark, late])

    async def arrived() -> bool:
        clock.advance(1.5)
        reading = await other.read(mark.number)
        return reading is not None and {mark, late} <= set(reading.new)

    await until(arrived)


async def test_many_purges_at_once_each_get_a_number(make: Make) -> None:
    logs = [await opened(make()) for _ in range(2)]
    work = (add(logs[i % 2], Selector(tag=str(i))) for i in range(300))
    marks = await asyncio.gather(*work)
    assert len({mark.number for mark in marks}) == 300


async def test_closed_it_says_so(make: Make) -> None:
    log = await opened(make())
    await log.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await log.read(0)
