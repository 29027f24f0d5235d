"""What every store does, over all of them: the contract of `proxy.stores.base.Store`."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.backends.redis_config import RedisConfig
from proxy.clock import Clock, SystemClock
from proxy.core.codec import peek_expiry
from proxy.stores.base import Put, Store
from proxy.stores.disk import DiskStore
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.tiered import TieredStore
from tests.fakes import FakeClock
from tests.integration.redis_server import RedisServer, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio

MAX_BYTES = 64 * 1024 * 1024
KINDS = ("memory", "disk", "redis", "memory+disk", "memory+redis")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    options = ("--maxmemory", str(MAX_BYTES), "--maxmemory-policy", "allkeys-lru")
    with redis_server(options=options) as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(kind: str) -> Clock:
    return SystemClock() if "redis" in kind else FakeClock()


@pytest.fixture
def make(kind: str, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    def one(name: str) -> Store:
        if name == "memory":
            return MemoryStore(max_bytes=MAX_BYTES, clock=clock)
        if name == "disk":
            path = tmp_path / "cache.sqlite3"
            return DiskStore(path, clock=clock, max_bytes=MAX_BYTES, read_timeout_seconds=60.0)
        server: RedisServer = request.getfixturevalue("server")
        server.command("FLUSHALL")
        return RedisStore(
            RedisConfig(server.url),
            clock=clock,
            timeout_seconds=60.0,
            write_timeout_seconds=60.0,
            max_value_bytes=16 * 1024 * 1024,
        )

    tiers = [one(name) for name in kind.split("+")]
    return tiers[0] if len(tiers) == 1 else TieredStore(tiers, expires_at_of=peek_expiry)


@pytest.fixture
async def store(make: Store) -> AsyncIterator[Store]:
    await make.open()
    yield make
    await make.close()


@pytest.fixture
def soon(clock: Clock) -> float:
    return clock.wall() + 3600.0


async def get(store: Store, key: str) -> bytes | None:
    (value,) = await store.get_many([key])
    return value


async def keys_of(store: Store, prefix: str) -> list[str]:
    return sorted([key async for key in store.scan(prefix)])


async def test_nothing_is_there_at_first(store: Store) -> None:
    assert store.available
    assert await store.get_many(["a", "b"]) == [None, None]
    assert store.get_now("a") is None
    assert await keys_of(store, "") == []


async def test_what_was_put_is_got(store: Store, soon: float) -> None:
    await store.put_many([Put("a", b"1", soon), Put("b", b"2", soon)])
    assert await get(store, "a") == b"1"
    assert await get(store, "b") == b"2"


async def test_get_many_keeps_the_order_of_the_keys(store: Store, soon: float) -> None:
    await store.put_many([Put("a", b"1", soon), Put("b", b"2", soon)])
    assert await store.get_many(["b", "none", "a", "b"]) == [b"2", None, b"1", b"2"]


async def test_no_keys_and_no_puts_are_no_work(store: Store) -> None:
    assert await store.get_many([]) == []
    await store.put_many([])
    assert await store.delete_many([]) == 0


async def test_the_last_put_of_a_key_wins(store: Store, soon: float) -> None:
    await store.put_many([Put("a", b"1", soon), Put("a", b"2", soon)])
    assert await get(store, "a") == b"2"
    await store.put_many([Put("a", b"3", soon)])
    assert await get(store, "a") == b"3"


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", bytes(range(256)), b"\r\n$-1\r\n", "é😀".encode(), b"x" * 5_000_000],
    ids=["empty", "nul", "all-bytes", "redis-like", "utf-8", "5-MB"],
)
async def test_values_of_any_bytes(store: Store, soon: float, value: bytes) -> None:
    await store.put_many([Put("a", value, soon)])
    assert await get(store, "a") == value


async def test_keys_of_any_text(store: Store, soon: float) -> None:
    keys = ["a b", "é", "😀", "k*", "k?", "k[x]", "k\\", "x" * 500, "'; --", "%"]
    await store.put_many([Put(key, key.encode(), soon) for key in keys])
    assert await store.get_many(keys) == [key.encode() for key in keys]
    assert await keys_of(store, "") == sorted(keys)


async def test_deleted_is_gone_and_counted_once(store: Store, soon: float) -> None:
    await store.put_many([Put("a", b"1", soon), Put("b", b"2", soon)])
    assert await store.delete_many(["a", "none"]) == 1
    assert await store.get_many(["a", "b"]) == [None, b"2"]
    assert store.get_now("a") is None
    assert await store.delete_many(["a"]) == 0


async def test_scan_finds_the_prefix_and_nothing_else(store: Store, soon: float) -> None:
    keys = ["p:1", "p:2", "p", "q:1", "*:1", "p*:1", "P:1"]
    await store.put_many([Put(key, b"v", soon) for key in keys])
    assert await keys_of(store, "p:") == ["p:1", "p:2"]
    assert await keys_of(store, "p*") == ["p*:1"]
    assert await keys_of(store, "*") == ["*:1"]
    assert await keys_of(store, "none") == []


async def test_heads_are_the_first_bytes(store: Store, soon: float) -> None:
    values = {"short": b"1", "long": bytes(range(256)) * 20_000, "empty": b""}
    await store.put_many([Put(key, value, soon) for key, value in values.items()])
    asked = ["long", "none", "short", "long", "empty"]
    long = values["long"]
    assert await store.heads(asked, 300) == [long[:300], None, b"1", long[:300], None]
    assert await store.heads(["short"], 1) == [b"1"]
    assert await store.heads([], 300) == []
    assert await get(store, "long") == long


async def test_heads_of_many_keys_keep_their_order(store: Store, soon: float) -> None:
    await store.put_many([Put(f"k{i}", b"%04d and more" % i, soon) for i in range(0, 1000, 2)])
    heads = await store.heads([f"k{i}" for i in range(1000)], 4)
    assert heads == [None if i % 2 else b"%04d" % i for i in range(1000)]


async def test_an_expired_value_is_never_returned(store: Store, clock: Clock, soon: float) -> None:
    await store.put_many([Put("short", b"1", clock.wall() + 0.2), Put("long", b"2", soon)])

    async def gone() -> bool:
        return await get(store, "short") is None

    if isinstance(clock, FakeClock):
        assert not await gone()
        clock.advance(0.2)
        assert await store.heads(["short"], 1) == [None]
        assert await gone()
    else:
        await until(gone)
    assert store.get_now("short") is None
    assert await store.heads(["short", "long"], 1) == [None, b"2"]
    assert await get(store, "long") == b"2"
    assert await keys_of(store, "") == ["long"]
    assert await store.delete_many(["short"]) == 0


async def test_a_put_that_is_already_expired_removes_what_was_there(
    store: Store, clock: Clock, soon: float
) -> None:
    await store.put_many([Put("a", b"1", soon)])
    await store.put_many([Put("a", b"2", clock.wall() - 1.0)])
    assert await get(store, "a") is None


async def test_a_later_put_moves_the_expiry(store: Store, clock: Clock, soon: float) -> None:
    await store.put_many([Put("a", b"1", clock.wall() + 0.1), Put("b", b"1", clock.wall() + 0.1)])
    await store.put_many([Put("a", b"2", soon)])

    async def gone() -> bool:
        return await get(store, "b") is None

    if isinstance(clock, FakeClock):
        clock.advance(0.2)
    await until(gone)
    assert await get(store, "a") == b"2"


async def test_ten_thousand_entries(store: Store, soon: float) -> None:
    puts = [Put(f"k:{i}", b"v%d" % i, soon) for i in range(10_000)]
    await store.put_many(puts)
    assert await store.get_many([put.key for put in puts]) == [put.value for put in puts]
    assert len(await keys_of(store, "k:")) == 10_000
    stats = await store.stats()
    assert stats.entries == 10_000
    assert await store.delete_many([put.key for put in puts]) == 10_000
    assert (await store.stats()).entries == 0


async def test_two_hundred_gets_at_once_each_get_their_own(store: Store, soon: float) -> None:
    await store.put_many([Put(f"k{i}", b"v%d" % i, soon) for i in range(200)])
    values = await asyncio.gather(*(get(store, f"k{i}") for i in range(250)))
    assert values == [b"v%d" % i if i < 200 else None for i in range(250)]


async def test_a_caller_that_goes_away_takes_nothing_from_the_others(
    store: Store, soon: float
) -> None:
    await store.put_many([Put(f"k{i}", b"v%d" % i, soon) for i in range(50)])
    gets = [asyncio.ensure_future(get(store, f"k{i}")) for i in range(50)]
    await asyncio.sleep(0)
    for each in gets[::2]:
        each.cancel()
    values = await asyncio.gather(*gets, return_exceptions=True)
    assert values[1::2] == [b"v%d" % i for i in range(1, 50, 2)]
    assert await get(store, "k0") == b"v0"


async def test_B52_a_reader_sees_whole_values_only(store: Store, soon: float) -> None:
    """While one key is written over and over, every look-up gives one of the values, whole."""
    whole = {bytes([i]) * 200_000 for i in range(20)}

    async def write() -> None:
        for value in sorted(whole):
            await store.put_many([Put("a", value, soon)])

    writing = asyncio.ensure_future(write())
    seen = []
    while not writing.done():
        seen.append(await get(store, "a"))
        await asyncio.sleep(0)
    await writing
    assert {value for value in seen if value is not None} <= whole
    assert await get(store, "a") in whole


async def test_B56_what_is_held_stays_within_the_bound(
    store: Store, kind: str, soon: float
) -> None:
    value = b"\xa7" * 1_000_000
    for i in range(100):  # 100 MB into 64 MiB
        await store.put_many([Put(f"k{i}", value, soon)])
    stats = await store.stats()
    assert stats.max_bytes == MAX_BYTES
    assert stats.bytes is not None
    assert stats.bytes <= MAX_BYTES * 1.05
    values = await store.get_many([f"k{i}" for i in range(100)])
    held = [value for value in values if value is not None]
    assert 20 <= len(held) <= 67 * len(kind.split("+"))
    assert all(each == value for each in held)


async def test_closing_twice_is_fine(store: Store, soon: float) -> None:
    await store.put_many([Put("a", b"1", soon)])
    await store.close()
    await store.close()
