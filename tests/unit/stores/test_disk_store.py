"""The disk store as a file: bounds, crashes, damage, other workers, places that can't be used."""

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put
from proxy.stores.disk import DiskStore
from tests.fakes import FakeClock, RoundTrips
from tests.waiting import until

pytestmark = pytest.mark.anyio

MAX_BYTES = 4 * 1024 * 1024


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "magic" / "store.sqlite3"


@pytest.fixture
async def make(path: Path, clock: FakeClock) -> AsyncIterator[Callable[[], DiskStore]]:
    made: list[DiskStore] = []

    def new() -> DiskStore:
        # Nothing is swept but where a test says so, and a busy machine has its time.
        store = DiskStore(
            path,
            clock=clock,
            max_bytes=MAX_BYTES,
            sweep_interval_seconds=1_000_000.0,
            read_timeout_seconds=60.0,
            write_timeout_seconds=60.0,
        )
        made.append(store)
        return store

    yield new
    for each in made:
        await each.close()


@pytest.fixture
async def store(make: Callable[[], DiskStore]) -> DiskStore:
    store = make()
    await store.open()
    return store


def size_of(path: Path) -> int:
    return path.stat().st_size


def there(path: Path) -> bool:
    return path.exists()


async def get(store: DiskStore, key: str) -> bytes | None:
    (value,) = await store.get_many([key])
    return value


def put(clock: FakeClock, key: str, value: bytes, ttl: float = 3600.0) -> Put:
    return Put(key, value, clock.wall() + ttl)


async def test_the_directory_and_the_file_are_for_the_owner_only(
    store: DiskStore, path: Path
) -> None:
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


async def test_entries_survive_a_restart(
    store: DiskStore, make: Callable[[], DiskStore], clock: FakeClock
) -> None:
    await store.put_many([put(clock, "a", b"1")])
    await store.close()
    again = make()
    await again.open()
    assert await get(again, "a") == b"1"


async def test_two_workers_share_their_entries(
    store: DiskStore, make: Callable[[], DiskStore], clock: FakeClock
) -> None:
    other = make()
    await other.open()
    await store.put_many([put(clock, "a", b"1")])
    assert await get(other, "a") == b"1"
    await other.delete_many(["a"])
    assert await get(store, "a") is None


async def test_two_workers_write_at_once(
    store: DiskStore, make: Callable[[], DiskStore], clock: FakeClock
) -> None:
    other = make()
    await other.open()
    await asyncio.gather(
        *(store.put_many([put(clock, f"a{i}", b"1")]) for i in range(200)),
        *(other.put_many([put(clock, f"b{i}", b"2")]) for i in range(200)),
    )
    assert (await store.stats()).entries == 400


async def test_B56_the_file_stays_within_the_bound(
    store: DiskStore, path: Path, clock: FakeClock
) -> None:
    for number in range(300):
        await store.put_many([put(clock, f"{number:03}", b"x" * 40_000)])
    stats = await store.stats()
    assert stats.bytes is not None
    assert stats.bytes <= MAX_BYTES
    assert size_of(path) <= MAX_BYTES * 1.05
    assert 60 <= (stats.entries or 0) <= 105


async def test_an_entry_above_an_eighth_of_the_bound_is_not_kept(
    store: DiskStore, clock: FakeClock
) -> None:
    await store.put_many([put(clock, "a", b"old")])
    await store.put_many([put(clock, "a", b"x" * (MAX_BYTES // 8 + 1))])
    assert await get(store, "a") is None


async def test_the_expired_leave_before_the_living(store: DiskStore, clock: FakeClock) -> None:
    for number in range(40):
        await store.put_many([put(clock, f"old{number}", b"x" * 40_000)])
    for number in range(40):
        await store.put_many([put(clock, f"short{number}", b"x" * 40_000, ttl=10.0)])
    clock.advance(20.0)
    for number in range(40):
        await store.put_many([put(clock, f"new{number}", b"x" * 40_000)])
    values = await store.get_many([f"{age}{i}" for age in ("old", "new") for i in range(40)])
    assert all(values)


async def test_what_was_used_lately_leaves_last(store: DiskStore, clock: FakeClock) -> None:
    for number in range(50):
        await store.put_many([put(clock, f"old{number}", b"x" * 40_000, ttl=90_000.0)])
        clock.advance(1.0)
    clock.advance(1_000.0)
    assert await get(store, "old0")
    await sweep_at_rest(store)
    for number in range(80):
        clock.advance(1.0)
        await store.put_many([put(clock, f"new{number}", b"x" * 40_000)])
    assert await get(store, "old0")
    assert await get(store, "old1") is None


async def sweep_at_rest(store: DiskStore) -> None:
    """What the writing thread does between its jobs."""
    assert store._writer is not None

    def rest(connection: sqlite3.Connection) -> None:
        connection.execute("COMMIT")
        store._sweep(connection)
        connection.execute("BEGIN IMMEDIATE")

    await store._writer.ask(rest)


async def test_a_hit_writes_nothing(store: DiskStore, path: Path, clock: FakeClock) -> None:
    await store.put_many([put(clock, "a", b"1", ttl=90_000.0)])
    clock.advance(1_000.0)
    before = path.with_name(f"{path.name}-wal").stat()
    for _ in range(20):
        assert await get(store, "a")
    after = path.with_name(f"{path.name}-wal").stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


async def test_look_ups_of_one_turn_are_one_round_trip_and_each_gets_its_own(
    path: Path, clock: FakeClock
) -> None:
    trips = RoundTrips()
    store = DiskStore(
        path, clock=clock, max_bytes=MAX_BYTES, read_timeout_seconds=60.0, observer=trips
    )
    await store.open()
    await store.put_many([put(clock, f"k{i}", b"v%d" % i) for i in range(0, 60, 2)])
    await store.put_many([put(clock, "k1", b"gone", ttl=1.0)])
    clock.advance(2.0)

    found = await asyncio.gather(*(get(store, f"k{i}") for i in range(60)))

    assert found == [None if i % 2 else b"v%d" % i for i in range(60)]
    assert trips.taken == [("disk", 60)]
    await store.close()


async def test_B50_a_file_system_that_hangs_costs_misses_and_is_left_alone(
    path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(path, clock=clock, max_bytes=MAX_BYTES, read_timeout_seconds=0.01)
    await store.open()
    assert store._reader is not None
    hangs = threading.Event()
    stuck = store._reader.ask(lambda _: hangs.wait())
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await get(store, "a")
    assert len(caplog.records) == 1
    hangs.set()
    await stuck
    await store.close()


async def test_a_sweep_removes_what_has_expired(store: DiskStore, clock: FakeClock) -> None:
    await store.put_many([put(clock, f"short{i}", b"1", ttl=10.0) for i in range(1_200)])
    await store.put_many([put(clock, "long", b"1")])
    clock.advance(11.0)
    assert (await store.stats()).entries == 1_201
    await sweep_at_rest(store)
    assert (await store.stats()).entries == 1


async def test_the_sweep_happens_by_itself(path: Path, clock: FakeClock) -> None:
    store = DiskStore(path, clock=clock, max_bytes=MAX_BYTES, sweep_interval_seconds=0.02)
    await store.open()
    await store.put_many([put(clock, "short", b"1", ttl=10.0)])
    clock.advance(11.0)

    async def swept() -> bool:
        return (await store.stats()).entries == 0

    await until(swept)
    await store.close()


async def test_a_lowered_bound_shrinks_the_file(
    store: DiskStore, path: Path, clock: FakeClock
) -> None:
    for number in range(80):
        await store.put_many([put(clock, f"{number}", b"x" * 40_000)])
    await store.close()
    smaller = DiskStore(path, clock=clock, max_bytes=MAX_BYTES // 4)
    await smaller.open()
    await sweep_at_rest(smaller)
    await smaller.close()
    assert size_of(path) <= MAX_BYTES // 4


KILLED = """
import asyncio, sys
from pathlib import Path
from proxy.clock import SystemClock
from proxy.stores.base import Put
from proxy.stores.disk import DiskStore

async def main():
    clock = SystemClock()
    store = DiskStore(Path(sys.argv[1]), clock=clock, max_bytes=1 << 30)
    await store.open()
    number = int(sys.argv[2])
    print("open", flush=True)
    while True:
        puts = [
            Put(f"k{number}", bytes([number % 256]) * 100_000, clock.wall() + 1e6),
            Put("rewritten", bytes([number % 256]) * 100_000, clock.wall() + 1e6),
        ]
        await store.put_many(puts)
        print(number, flush=True)
        number += 1

asyncio.run(main())
"""


def worker_on(path: Path, first: int) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-c", KILLED, str(path), str(first)]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


async def test_B52_a_worker_that_is_killed_leaves_whole_entries_only(path: Path) -> None:
    told = 0
    for start in range(5):
        with worker_on(path, told) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == b"open\n"
            for _ in range(5 + start):
                told = int(worker.stdout.readline())
            worker.send_signal(signal.SIGKILL)
            rest = worker.stdout.read().split()
            told = int(rest[-1]) if rest else told
        store = DiskStore(path, clock=SystemClock(), max_bytes=1 << 30)
        await store.open()
        keys = [key async for key in store.scan("")]
        assert {f"k{i}" for i in range(told + 1)} <= set(keys), "what was told is there"
        for key, value in zip(keys, await store.get_many(keys), strict=True):
            assert value is not None
            assert len(value) == 100_000, key
            assert len(set(value)) == 1, key
        await store.close()
    assert not list(path.parent.glob("*unusable*"))


def garbage(path: Path) -> bytes:
    path.write_bytes(os.urandom(20_000))
    return path.read_bytes()


def torn(path: Path) -> bytes:
    """A good head, and nonsense in the pages after it."""
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (key TEXT)")
    connection.close()
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8_000)
    return path.read_bytes()


def anothers(path: Path) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    return path.read_bytes()


def later_version(path: Path) -> bytes:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (key TEXT)")
        connection.execute(f"PRAGMA application_id = {0x4D505843}")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize("spoil", [garbage, torn, anothers, later_version])
async def test_B50_a_file_that_is_not_ours_is_moved_aside_once(
    path: Path,
    make: Callable[[], DiskStore],
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], bytes],
) -> None:
    path.parent.mkdir(parents=True)
    before = spoil(path)
    stores = [make() for _ in range(3)]
    with caplog.at_level(logging.INFO):
        await asyncio.gather(*(store.open() for store in stores))
    await stores[0].put_many([put(clock, "a", b"1")])
    assert [await get(store, "a") for store in stores] == [b"1"] * 3
    (aside,) = path.parent.glob("*unusable*[0-9]")
    assert aside.read_bytes() == before
    assert len(caplog.records) == 1


async def test_B50_damage_that_shows_later_costs_misses_and_heals(
    make: Callable[[], DiskStore], path: Path, clock: FakeClock
) -> None:
    before, store = make(), make()
    await before.put_many([put(clock, f"k{i}", b"x" * 10_000) for i in range(100)])
    await before.close()
    size = size_of(path)
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * (size - 4_096))
    await store.open()
    for i in range(100):
        try:
            value = await get(store, f"k{i}")
        except StoreUnavailable:
            clock.advance(60.0)
        else:
            assert value in (None, b"x" * 10_000)
    clock.advance(60.0)
    await store.put_many([put(clock, "new", b"1")])
    assert await get(store, "new") == b"1"
    assert store.available


async def test_B50_a_file_that_somebody_removed_is_made_anew(path: Path, clock: FakeClock) -> None:
    store = DiskStore(path, clock=clock, max_bytes=MAX_BYTES, sweep_interval_seconds=0.02)
    await store.open()
    await store.put_many([put(clock, "a", b"1")])
    for file in path.parent.iterdir():
        file.unlink()

    def made_anew() -> bool:
        clock.advance(1.0)
        return there(path)

    await until(made_anew)
    await store.put_many([put(clock, "b", b"2")])
    await store.close()
    assert size_of(path) > 0


async def test_B50_a_place_that_cant_be_used_costs_misses_and_one_line(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    store = DiskStore(in_the_way / "cache.sqlite3", clock=clock, max_bytes=MAX_BYTES)
    with caplog.at_level(logging.INFO):
        await store.open()
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await store.get_many(["a"])
    broken = store.available
    assert not broken
    assert len(caplog.records) == 1
    in_the_way.unlink()
    clock.advance(60.0)
    assert await store.get_many(["a"]) == [None]
    healed = store.available
    assert healed
    await store.close()


async def test_B50_a_full_disk_fails_the_writes_and_spares_the_reads(
    store: DiskStore, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await store.put_many([put(clock, "a", b"1")])
    await limit_pages(store, 40)
    with caplog.at_level(logging.INFO):
        for _ in range(20):
            with pytest.raises(StoreUnavailable):
                await store.put_many([put(clock, "b", b"x" * 400_000)])
            assert await get(store, "a") == b"1"
    assert store.available
    assert len(caplog.records) == 1
    await limit_pages(store, 100_000)
    clock.advance(60.0)
    await store.put_many([put(clock, "b", b"2")])
    assert await store.get_many(["a", "b"]) == [b"1", b"2"]


async def limit_pages(store: DiskStore, pages: int) -> None:
    """SQLite's own bound of the file gives the same error as a full disk."""
    assert store._writer is not None
    await store._writer.ask(
        lambda connection: connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    )


async def test_a_mistake_in_the_code_reaches_the_caller_and_spares_the_thread(
    store: DiskStore, clock: FakeClock
) -> None:
    with pytest.raises(UnicodeEncodeError):
        await store.put_many([put(clock, "\ud800", b"1")])
    await store.put_many([put(clock, "a", b"1")])
    assert await get(store, "a") == b"1"


async def test_what_was_asked_before_the_close_is_done(
    store: DiskStore, make: Callable[[], DiskStore], clock: FakeClock
) -> None:
    writes = [
        asyncio.ensure_future(store.put_many([put(clock, f"k{i}", b"1")])) for i in range(100)
    ]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)
    again = make()
    await again.open()
    assert (await again.stats()).entries == 100


async def test_a_closed_store_says_so(store: DiskStore) -> None:
    await store.close()
    assert not store.available
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get_many(["a"])
