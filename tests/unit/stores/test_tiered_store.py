"""How tiers work together: promotion, isolation of failures, and races between the two."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from proxy.errors import StoreUnavailable
from proxy.stores.base import Put, StoreStats
from proxy.stores.memory import MemoryStore
from proxy.stores.tiered import TieredStore
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio


class SharedStore:
    """Stands in for a shared store: it can be down, and its reads can be held up."""

    name = "shared"

    def __init__(self) -> None:
        self.held: dict[str, Put] = {}
        self.down = False
        self.asked: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.reading = asyncio.Event()

    @property
    def available(self) -> bool:
        return not self.down

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("shared: down")

    async def open(self) -> None:
        return

    def get_now(self, key: str) -> bytes | None:
        raise AssertionError("only the first tier is at hand")

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        self._check()
        self.asked.append(list(keys))
        values = [self.held[key].value if key in self.held else None for key in keys]
        self.reading.set()
        await self.gate.wait()
        return values

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.get_many(keys)

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        self._check()
        self.asked.append(list(keys))
        return [self.held[key].value[:length] if key in self.held else None for key in keys]

    async def put_many(self, puts: Sequence[Put]) -> None:
        self._check()
        self.held |= {put.key: put for put in puts}

    async def delete_many(self, keys: Sequence[str]) -> int:
        self._check()
        return sum(self.held.pop(key, None) is not None for key in keys)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        self._check()
        for key in list(self.held):
            if key.startswith(prefix):
                yield key

    async def stats(self) -> StoreStats:
        self._check()
        return StoreStats(entries=len(self.held))

    async def close(self) -> None:
        return


def expires_at_of(value: bytes) -> float | None:
    """In these tests a value is its own expiry, before the colon."""
    head, _, _ = value.partition(b":")
    return float(head) if head else None


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def memory(clock: FakeClock) -> MemoryStore:
    return MemoryStore(max_bytes=1_000_000, clock=clock)


@pytest.fixture
def shared() -> SharedStore:
    return SharedStore()


@pytest.fixture
def store(memory: MemoryStore, shared: SharedStore) -> TieredStore:
    return TieredStore([memory, shared], expires_at_of=expires_at_of)


def put(clock: FakeClock, key: str, text: str, ttl: float = 60.0) -> Put:
    expires_at = clock.wall() + ttl
    return Put(key, f"{expires_at}:{text}".encode(), expires_at)


async def test_a_put_reaches_every_tier(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    one = put(clock, "a", "1")
    await store.put_many([one])
    assert memory.get_now("a") == one.value == shared.held["a"].value
    assert store.get_now("a") == one.value


async def test_only_what_the_first_tier_lacks_is_asked_below(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    above, below = put(clock, "a", "1"), put(clock, "b", "2")
    await memory.put_many([above])
    await shared.put_many([below])
    assert await store.get_many(["a", "b", "c"]) == [above.value, below.value, None]
    assert shared.asked == [["b", "c"]]
    await store.get_many(["a"])
    assert len(shared.asked) == 1


async def test_what_is_found_below_is_at_hand_afterwards(
    store: TieredStore, shared: SharedStore, clock: FakeClock
) -> None:
    one = put(clock, "a", "1")
    await shared.put_many([one])
    assert store.get_now("a") is None
    await store.get_many(["a"])
    assert store.get_now("a") == one.value


async def test_B57_a_memory_copy_ends_when_its_entry_does(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    await shared.put_many([put(clock, "a", "1", ttl=60.0)])
    clock.advance(50.0)
    await store.get_many(["a"])
    assert memory.get_now("a") is not None
    clock.advance(9.9)
    assert memory.get_now("a") is not None
    clock.advance(0.1)
    assert memory.get_now("a") is None


async def test_B57_a_value_that_tells_no_expiry_is_not_copied(
    store: TieredStore, shared: SharedStore, clock: FakeClock
) -> None:
    await shared.put_many([Put("a", b":1", clock.wall() + 60.0)])
    assert await store.get_many(["a"]) == [b":1"]
    assert store.get_now("a") is None


async def test_B50_a_tier_that_is_down_costs_nothing_that_another_one_has(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    shared.down = True
    one = put(clock, "a", "1")
    await store.put_many([one])
    assert await store.get_many(["a"]) == [one.value]
    assert await store.get_many(["a", "b"]) == [one.value, None]
    assert store.available


async def test_B50_a_failed_tier_is_told_when_nothing_was_found(
    store: TieredStore, shared: SharedStore
) -> None:
    shared.down = True
    with pytest.raises(StoreUnavailable):
        await store.get_many(["a", "b"])


async def test_B50_a_failed_tier_above_does_not_hide_the_one_below(
    shared: SharedStore, clock: FakeClock
) -> None:
    upper = SharedStore()
    upper.down = True
    store = TieredStore([upper, shared], expires_at_of=expires_at_of)
    one = put(clock, "a", "1")
    await shared.put_many([one])
    assert await store.get_many(["a"]) == [one.value]


async def test_B50_a_put_fails_only_where_every_tier_fails(
    shared: SharedStore, clock: FakeClock
) -> None:
    upper = SharedStore()
    store = TieredStore([upper, shared], expires_at_of=expires_at_of)
    upper.down = True
    await store.put_many([put(clock, "a", "1")])
    assert "a" in shared.held
    shared.down = True
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.put_many([put(clock, "a", "1")])


async def test_a_delete_tries_every_tier_and_tells_of_one_that_failed(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    await store.put_many([put(clock, "a", "1")])
    shared.down = True
    with pytest.raises(StoreUnavailable):
        await store.delete_many(["a"])
    assert memory.get_now("a") is None


async def test_a_key_in_two_tiers_is_counted_and_listed_once(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    await store.put_many([put(clock, "a", "1")])
    await memory.put_many([put(clock, "b", "1")])
    await shared.put_many([put(clock, "c", "1")])
    assert sorted([key async for key in store.scan("")]) == ["a", "b", "c"]
    assert await store.delete_many(["a"]) == 1


async def test_heads_come_from_the_last_tier_that_has_one_and_promote_nothing(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    """Another replica may have stored a new value below, beside the copy in this memory."""
    above, newer, below = put(clock, "a", "1"), put(clock, "a", "newer"), put(clock, "b", "1")
    alone = put(clock, "c", "alone")
    await memory.put_many([above, alone])
    await shared.put_many([newer, below])
    heads = await store.heads(["b", "a", "c", "d"], 100)
    assert heads == [below.value, newer.value, alone.value, None]
    assert store.get_now("b") is None


async def test_B50_heads_of_a_failed_tier_are_absent_unless_nothing_was_found(
    store: TieredStore, memory: MemoryStore, shared: SharedStore, clock: FakeClock
) -> None:
    shared.down = True
    await memory.put_many([one := put(clock, "a", "1")])
    assert await store.heads(["a", "b"], 5) == [one.value[:5], None]
    with pytest.raises(StoreUnavailable):
        await store.heads(["b"], 5)


async def test_a_value_read_before_a_put_is_not_promoted_over_it(
    store: TieredStore, shared: SharedStore, clock: FakeClock
) -> None:
    old, new = put(clock, "a", "old"), put(clock, "a", "new")
    await shared.put_many([old])
    shared.gate.clear()
    reading = asyncio.ensure_future(store.get_many(["a"]))
    await shared.reading.wait()
    await store.put_many([new])
    shared.gate.set()
    assert await reading == [old.value]
    assert store.get_now("a") == new.value


async def test_a_value_read_before_a_delete_is_not_promoted_after_it(
    store: TieredStore, shared: SharedStore, clock: FakeClock
) -> None:
    await shared.put_many([put(clock, "a", "old")])
    shared.gate.clear()
    reading = asyncio.ensure_future(store.get_many(["a"]))
    await shared.reading.wait()
    await store.delete_many(["a"])
    shared.gate.set()
    await reading
    assert store.get_now("a") is None
    await shared.put_many([put(clock, "a", "1")])
    await store.get_many(["a"])
    assert store.get_now("a") is not None, "the mark ends with the reads that it was made for"


async def test_a_cancelled_look_up_leaves_no_mark(
    store: TieredStore, shared: SharedStore, clock: FakeClock
) -> None:
    shared.gate.clear()
    reading = asyncio.ensure_future(store.get_many(["a", "a"]))
    await shared.reading.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not store._reading
    assert not store._overtaken


async def test_promotion_into_a_tier_that_waits_does_not_hold_up_the_answer(
    memory: MemoryStore, clock: FakeClock
) -> None:
    middle, last = SharedStore(), SharedStore()
    store = TieredStore([memory, middle, last], expires_at_of=expires_at_of)
    one = put(clock, "a", "1")
    await last.put_many([one])
    assert await store.get_many(["a"]) == [one.value]
    assert "a" not in middle.held
    await asyncio.sleep(0)
    assert middle.held["a"] == one
    await store.close()


async def test_a_store_without_tiers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        TieredStore([], expires_at_of=expires_at_of)


async def test_B57_the_latest_is_what_the_shared_tier_has_and_takes_the_place_of_copies() -> None:
    clock = FakeClock()
    memory, shared = (
        MemoryStore(max_bytes=10_000, clock=clock),
        MemoryStore(max_bytes=10_000, clock=clock),
    )
    store = TieredStore([memory, shared], expires_at_of=lambda _: clock.wall() + 60)
    await memory.put_many([Put("k", b"old", clock.wall() + 60)])
    await shared.put_many([Put("k", b"new", clock.wall() + 60)])
    assert await store.get_many(["k"]) == [b"old"]

    assert await store.get_latest(["k", "other"]) == [b"new", None]

    assert store.get_now("k") == b"new"
