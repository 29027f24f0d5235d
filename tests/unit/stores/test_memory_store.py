"""What the memory store keeps and what it lets go."""

import subprocess
import sys

import pytest

from proxy.stores.base import Put
from proxy.stores.memory import ENTRY_OVERHEAD_BYTES, MemoryStore
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

SIZE = 10_000 + ENTRY_OVERHEAD_BYTES + 3  # of an entry that `put` writes


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> MemoryStore:
    """Room for a hundred entries."""
    return MemoryStore(max_bytes=100 * SIZE, clock=clock)


async def put(store: MemoryStore, clock: FakeClock, number: int, ttl: float = 3600.0) -> None:
    await store.put_many([Put(f"{number:03}", b"x" * 10_000, clock.wall() + ttl)])


async def test_a_hit_is_had_without_waiting(store: MemoryStore, clock: FakeClock) -> None:
    await put(store, clock, 1)
    assert store.get_now("001") == b"x" * 10_000


async def test_B56_the_bound_holds_at_every_step(store: MemoryStore, clock: FakeClock) -> None:
    for number in range(500):
        await put(store, clock, number)
        assert ((await store.stats()).bytes or 0) <= 100 * SIZE
    assert (await store.stats()).entries == 100


async def test_B56_small_entries_count_with_their_overhead(clock: FakeClock) -> None:
    store = MemoryStore(max_bytes=100 * ENTRY_OVERHEAD_BYTES, clock=clock)
    await store.put_many([Put(f"{i}", b"", clock.wall() + 60.0) for i in range(1_000)])
    assert ((await store.stats()).entries or 0) < 100


async def test_what_is_read_survives_a_burst_of_what_is_not(
    store: MemoryStore, clock: FakeClock
) -> None:
    for number in range(10):
        await put(store, clock, number)
        assert store.get_now(f"{number:03}")
    for number in range(10, 900):
        await put(store, clock, number)
    assert all(store.get_now(f"{number:03}") for number in range(10))


async def test_what_was_read_once_leaves_when_it_is_not_read_again(
    store: MemoryStore, clock: FakeClock
) -> None:
    await put(store, clock, 0)
    assert store.get_now("000")
    for number in range(1, 600):
        await put(store, clock, number)
        store.get_now(f"{number:03}")
    assert store.get_now("000") is None


async def test_a_look_at_its_head_does_not_keep_an_entry(
    store: MemoryStore, clock: FakeClock
) -> None:
    await put(store, clock, 0)
    for number in range(1, 200):
        await put(store, clock, number)
        await store.heads(["000"], 10)
    assert store.get_now("000") is None


async def test_what_comes_back_soon_after_its_eviction_stays(
    store: MemoryStore, clock: FakeClock
) -> None:
    for number in range(101):
        await put(store, clock, number)
    assert store.get_now("000") is None
    await put(store, clock, 0)
    for number in range(200, 280):
        await put(store, clock, number)
    assert store.get_now("000") is not None
    assert store.get_now("200") is not None


async def test_an_entry_above_an_eighth_of_the_bound_is_not_kept(
    store: MemoryStore, clock: FakeClock
) -> None:
    later = clock.wall() + 60.0
    await store.put_many([Put("a", b"old", later)])
    await store.put_many([Put("a", b"x" * (100 * SIZE // 8), later)])
    assert store.get_now("a") is None
    assert (await store.stats()).entries == 0


async def test_writes_sweep_what_has_expired_before_they_evict_what_lives(
    store: MemoryStore, clock: FakeClock
) -> None:
    for number in range(50):
        await put(store, clock, number, ttl=10_000.0)
    for number in range(50, 100):
        await put(store, clock, number, ttl=10.0)
    clock.advance(100.0)
    for number in range(100, 150):
        await put(store, clock, number)
    assert all(store.get_now(f"{number:03}") for number in range(50))
    assert (await store.stats()).entries == 100


async def test_expired_entries_leave_memory_without_being_asked_for(
    store: MemoryStore, clock: FakeClock
) -> None:
    for number in range(60):
        await put(store, clock, number, ttl=float(number))
    clock.advance(100.0)
    await put(store, clock, 200)
    assert (await store.stats()).entries == 1


async def test_the_sweep_does_a_bounded_amount_of_work_per_write(clock: FakeClock) -> None:
    store = MemoryStore(max_bytes=100_000_000, clock=clock)
    await store.put_many([Put(f"{i}", b"", clock.wall() + 1.0) for i in range(10_000)])
    clock.advance(100.0)
    await put(store, clock, 1)
    assert ((await store.stats()).entries or 0) > 9_000


async def test_a_key_that_is_written_for_ever_leaves_nothing_behind(clock: FakeClock) -> None:
    store = MemoryStore(max_bytes=1_000_000, clock=clock)
    for _ in range(5_000):
        await put(store, clock, 1, ttl=86_400.0)
        await store.delete_many(["001"])
        await put(store, clock, 1, ttl=86_400.0)
        clock.advance(20.0)
    assert (await store.stats()).bytes == SIZE
    assert len(store._buckets) == 1
    assert len(store._bucket_order) < 200
    assert not store._ghosts


async def test_the_ghosts_are_no_more_than_the_entries(
    store: MemoryStore, clock: FakeClock
) -> None:
    for number in range(900):
        await put(store, clock, number)
    assert len(store._ghosts) <= 100


async def test_scan_goes_on_while_entries_come_and_go(clock: FakeClock) -> None:
    store = MemoryStore(max_bytes=10_000_000, clock=clock)
    await store.put_many([Put(f"k{i}", b"", clock.wall() + 60.0) for i in range(3_000)])
    seen = []
    async for key in store.scan("k"):
        seen.append(key)
        if len(seen) == 10:
            await store.delete_many([f"k{i}" for i in range(2_000, 3_000)])
            await store.put_many([Put("k-new", b"", clock.wall() + 60.0)])
    assert len(seen) == 2_000


RSS = """
import asyncio, os, random, sys
from proxy.clock import SystemClock
from proxy.stores.base import Put
from proxy.stores.memory import MemoryStore

def rss():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

BOUND, low, high = 32 * 1024 * 1024, int(sys.argv[1]), int(sys.argv[2])

async def main():
    clock, chance = SystemClock(), random.Random(1)
    store = MemoryStore(max_bytes=BOUND, clock=clock)
    before, written, number = rss(), 0, 0
    while written < 5 * BOUND:
        key = "magic_proxy:cache:1:chat:-:%064x" % number
        value = chance.randbytes(chance.randint(low, high))
        await store.put_many([Put(key, value, clock.wall() + chance.randint(60, 90_000))])
        if chance.random() < 0.5:
            store.get_now("magic_proxy:cache:1:chat:-:%064x" % chance.randint(0, number))
        written += len(value) + 600
        number += 1
    print(rss() - before)

asyncio.run(main())
"""


@pytest.mark.parametrize(("low", "high"), [(150, 600), (500, 200_000)])
def test_B56_resident_memory_stays_within_1_3_of_the_bound(low: int, high: int) -> None:
    """Five times the bound is written, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", RSS, str(low), str(high)], capture_output=True, check=True
    )
    assert int(run.stdout) <= 1.3 * 32 * 1024 * 1024
