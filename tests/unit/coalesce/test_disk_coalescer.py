"""Leases in the disk store's file: clocks that step, rows that go, a file that is busy."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from proxy.backends.sqlite_file import open_file
from proxy.clock import Clock, SystemClock
from proxy.coalesce.base import FlightEnd, Followed
from proxy.coalesce.disk import DiskCoalescer
from proxy.coalesce.disk_leases import Row
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put
from proxy.stores.disk import DiskStore
from tests.contract.coalescers import follow, lead, story
from tests.waiting import until

pytestmark = pytest.mark.anyio

PATIENT_SECONDS = 5.0
HOUR = 3600.0

Make = Callable[..., Awaitable[DiskCoalescer]]


class SteppedClock(SystemClock):
    """The machine's clock, whose wall time a test may step."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.sqlite3"


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
async def make(path: Path, clock: Clock) -> AsyncIterator[Make]:
    made: list[DiskCoalescer] = []

    async def new(
        *, lease_seconds: float = 60.0, timeout_seconds: float = PATIENT_SECONDS
    ) -> DiskCoalescer:
        coalescer = DiskCoalescer(
            path,
            clock=clock,
            lease_seconds=lease_seconds,
            timeout_seconds=timeout_seconds,
            retry_seconds=0.05,
        )
        made.append(coalescer)
        await coalescer.open()
        return coalescer

    yield new
    for coalescer in made:
        await coalescer.close()


def rows(path: Path) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(path)) as file:
        query = "SELECT key, ended FROM leases WHERE key <> '' ORDER BY key, token"
        return list(file.execute(query))


async def test_B41_a_clock_that_steps_back_by_an_hour_blocks_nobody(
    make: Make, clock: SteppedClock
) -> None:
    one, other = await make(), await make()
    old = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=False))
    clock.ahead -= HOUR
    assert await following == ([], FlightEnd.ABANDONED)
    new = await lead(other)
    assert new.token > old.token
    await old.release(FlightEnd.STORED)  # void by now
    assert (await follow(one)).token == new.token


async def test_B41_a_clock_that_steps_on_by_an_hour_hands_the_key_to_another(
    make: Make, clock: SteppedClock
) -> None:
    one, other = await make(lease_seconds=0.6), await make(lease_seconds=0.6)
    old = await lead(one)
    clock.ahead += HOUR
    new = await lead(other)
    assert new.token > old.token
    await until(lambda: old.lost)
    assert not new.lost


async def test_a_small_correction_of_the_clock_takes_no_lease_away(
    make: Make, clock: SteppedClock
) -> None:
    one, other = await make(), await make()
    lease = await lead(one)
    clock.ahead -= 0.5
    assert (await follow(other)).token == lease.token


async def test_the_token_grows_although_rows_go_and_the_clock_steps_back(
    make: Make, clock: SteppedClock, path: Path
) -> None:
    one = await make()
    first = await lead(one)
    await first.release(FlightEnd.UNCACHEABLE)
    assert rows(path) == []
    clock.ahead -= HOUR
    second = await lead(one)
    assert second.token > first.token


async def test_what_nobody_follows_is_forgotten_at_once(make: Make, path: Path) -> None:
    one = await make()
    lease = await lead(one)
    assert rows(path) == [("k", None)]
    await lease.release(FlightEnd.UNCACHEABLE)
    assert rows(path) == []


async def test_that_an_entry_was_stored_is_known_for_a_while(make: Make, path: Path) -> None:
    one = await make(lease_seconds=0.3)
    await (await lead(one)).release(FlightEnd.STORED)
    assert rows(path) == [("k", "stored")]
    await until(lambda: rows(path) == [])


async def test_an_end_that_others_wait_for_is_kept_for_a_lease_time(make: Make, path: Path) -> None:
    one, other = await make(lease_seconds=0.3), await make(lease_seconds=60.0)
    lease = await lead(one)
    followed = await follow(other)
    await lease.release(FlightEnd.UNCACHEABLE)
    assert rows(path) == [("k", "uncacheable")]
    assert await story(followed, live=False) == ([], FlightEnd.UNCACHEABLE)
    await until(lambda: rows(path) == [])


async def test_leases_and_entries_share_the_file_and_older_programs_still_read_it(
    make: Make, path: Path
) -> None:
    store = DiskStore(path, clock=SystemClock(), max_bytes=10_000_000)
    await store.open()
    await store.put_many([Put("k", b"v", time.time() + 60.0)])
    one = await make()
    await lead(one)
    assert await store.get_many(["k"]) == [b"v"]
    assert [key async for key in store.scan("")] == ["k"]
    assert (await store.stats()).entries == 1
    await store.close()
    open_file(path, now=0.0).close()  # as a start of any version does
    assert not list(path.parent.glob("*.unusable-*"))


async def test_B50_a_file_that_is_busy_costs_each_miss_its_limit_until_the_circuit_opens(
    make: Make, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = await make(timeout_seconds=0.1)

    async def works() -> bool:
        try:
            (got,) = await one.acquire(["other"])
        except StoreUnavailable:
            return False
        if isinstance(got, Followed):  # what was got too late before is not given back yet
            return False
        await got.release(FlightEnd.UNCACHEABLE)
        return True

    await until(works)  # the file is made
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        with caplog.at_level(logging.INFO, logger="magic_proxy"):
            for _ in range(3):
                began = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await one.acquire(["k"])
                assert time.monotonic() - began < 1.5
            assert not one.available
            file.execute("ROLLBACK")
            await until(works)
    assert [record.levelname for record in caplog.records][:2] == ["WARNING", "INFO"]
    # What was got too late was given back; those who came after it know the end.
    await until(lambda: {end for _, end in rows(path)} == {"abandoned"})


async def test_B50_a_file_that_was_begun_anew_ends_what_was_followed(
    make: Make, path: Path
) -> None:
    one, other = await make(lease_seconds=0.3), await make(lease_seconds=0.3)
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=False))
    for part in path.parent.glob(f"{path.name}*"):
        part.unlink()
    assert (await following)[1] is FlightEnd.ABANDONED
    await until(lambda: lease.lost)

    async def leads() -> bool:
        (got,) = await other.acquire(["k"])
        return not isinstance(got, Followed)

    await until(leads)  # once it has noticed that the file is another


async def test_closing_leaves_no_task_and_no_thread(make: Make) -> None:
    before = asyncio.all_tasks()
    one, other = await make(), await make()
    await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=False))
    await until(lambda: bool(other._followed))
    await other.close()
    with pytest.raises(StoreUnavailable):
        await following
    await one.close()
    assert asyncio.all_tasks() == before
    with pytest.raises(StoreUnavailable):
        await one.acquire(["k"])


async def test_what_is_followed_is_looked_up_together_and_with_growing_pauses(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = await make(), await make()
    keys = [f"k{i}" for i in range(1000)]
    leases = await one.acquire(keys)
    followed = await other.acquire(keys)
    looked: list[int] = []
    look = other._leases.look

    def counted(file: sqlite3.Connection, rows: Sequence[Row]) -> list[FlightEnd | None]:
        looked.append(len(rows))
        return look(file, rows)

    monkeypatch.setattr(other._leases, "look", counted)
    stories = [asyncio.ensure_future(story(each, live=False)) for each in followed]  # type: ignore[arg-type]
    began = time.monotonic()
    await until(lambda: len(looked) >= 5)
    # Pauses as short as the first would come to 5 looks in less than half of that.
    assert time.monotonic() - began >= 0.1
    await asyncio.gather(*(lease.release(FlightEnd.STORED) for lease in leases))  # type: ignore[union-attr]
    assert await asyncio.gather(*stories) == [([], FlightEnd.STORED)] * 1000
    assert max(looked) == 1000
