"""The memory store: a byte-bounded, expiring map inside one worker.

Eviction is S3-FIFO (Yang et al., SOSP 2023). An LRU lets a burst of prompts that are asked once
flush what is asked all day; here a new entry has to be read once before it leaves the small
queue for the main one, and an entry that comes back soon after its eviction goes to the main one
at once. A hit sets one flag and moves nothing, so it costs less than the re-linking of an LRU.

Everything happens on the event loop's thread; nothing waits.
"""

import asyncio
import heapq
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.stores.base import Put, StoreStats

# What an entry costs beside the bytes of key and value: headers of the objects, places in queue,
# ghost list and expiry bucket, rounding of the allocator. Measured by bench/bench_stores.py.
ENTRY_OVERHEAD_BYTES: Final = 640

_LARGEST_SHARE: Final = 8  # an entry above 1/8 of the bound would push out too many others
_SMALL_SHARE: Final = 10  # the small queue holds 1/10 of the bytes, as in the paper
_BUCKET_SECONDS: Final = 16.0
_LAST_BUCKET_AT: Final = 1e12
_SWEEP_ENTRIES: Final = 64
_SCAN_TURN: Final = 1_000


class _Node:
    """One held value; `read` is set by a hit and cleared by a pass of the evicting hand."""

    __slots__ = ("expires_at", "key", "read", "value")

    def __init__(self, key: str, value: bytes, expires_at: float) -> None:
        self.key = key
        self.value = value
        self.expires_at = expires_at
        self.read = False


class MemoryStore:
    """Holds up to `max_bytes`, counted with the measured overhead of each entry.

    An entry larger than an eighth of the bound is not kept, silently. Never unavailable.
    """

    name = "memory"
    available = True

    def __init__(self, *, max_bytes: int, clock: Clock) -> None:
        self._max_bytes = max_bytes
        self._small_bytes_bound = max_bytes // _SMALL_SHARE
        self._largest = max_bytes // _LARGEST_SHARE
        self._now = clock.wall
        self._main: OrderedDict[str, _Node] = OrderedDict()
        self._small: OrderedDict[str, _Node] = OrderedDict()
        self._ghosts: OrderedDict[int, None] = OrderedDict()
        self._bytes = 0
        self._small_bytes = 0
        self._buckets: dict[int, set[_Node]] = {}
        self._bucket_order: list[int] = []

    async def open(self) -> None:
        """Nothing to get ready."""

    def get_now(self, key: str) -> bytes | None:
        node = self._main.get(key) or self._small.get(key)
        if node is None:
            return None
        if node.expires_at <= self._now():
            self._drop(node)
            return None
        node.read = True
        return node.value

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return [self.get_now(key) for key in keys]

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.get_many(keys)

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        now = self._now()
        nodes = [self._main.get(key) or self._small.get(key) for key in keys]
        return [
            node.value[:length] or None if node is not None and node.expires_at > now else None
            for node in nodes
        ]

    async def put_many(self, puts: Sequence[Put]) -> None:
        for put in puts:
            self._put(put)

    async def delete_many(self, keys: Sequence[str]) -> int:
        now = self._now()
        removed = 0
        for key in keys:
            node = self._main.get(key) or self._small.get(key)
            if node is not None:
                removed += node.expires_at > now
                self._drop(node)
        return removed

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        keys = [*self._main, *self._small]
        for place, key in enumerate(keys, 1):
            node = self._main.get(key) or self._small.get(key)
            if node is not None and key.startswith(prefix) and node.expires_at > self._now():
                yield key
            if place % _SCAN_TURN == 0:
                await asyncio.sleep(0)

    async def stats(self) -> StoreStats:
        return StoreStats(
            entries=len(self._main) + len(self._small),
            bytes=self._bytes,
            max_bytes=self._max_bytes,
        )

    async def close(self) -> None:
        for held in (self._main, self._small, self._ghosts, self._buckets, self._bucket_order):
            held.clear()
        self._bytes = self._small_bytes = 0

    def _put(self, put: Put) -> None:
        node = self._main.get(put.key) or self._small.get(put.key)
        was_main = node is not None and put.key in self._main
        if node is not None:
            self._drop(node)
        size = _size(put.key, put.value)
        now = self._now()
        if put.expires_at <= now or size > self._largest:
            return
        self._sweep(now)
        self._make_room(size)
        node = _Node(put.key, put.value, put.expires_at)
        if was_main or self._ghosts.pop(hash(put.key), self) is None:
            self._main[put.key] = node
        else:
            self._small[put.key] = node
            self._small_bytes += size
        self._bytes += size
        self._await_expiry(node)

    def _drop(self, node: _Node) -> None:
        size = _size(node.key, node.value)
        if self._main.pop(node.key, None) is None:
            del self._small[node.key]
            self._small_bytes -= size
        self._bytes -= size
        bucket = _bucket(node.expires_at)
        waiting = self._buckets[bucket]
        waiting.discard(node)
        if not waiting:
            del self._buckets[bucket]

    def _make_room(self, size: int) -> None:
        while self._bytes + size > self._max_bytes:
            if self._small_bytes > self._small_bytes_bound or not self._main:
                self._evict_from_small()
            else:
                self._evict_from_main()

    def _evict_from_small(self) -> None:
        key, node = next(iter(self._small.items()))
        if node.read:
            node.read = False
            del self._small[key]
            self._small_bytes -= _size(key, node.value)
            self._main[key] = node
            return
        self._drop(node)
        self._ghosts[hash(key)] = None
        while len(self._ghosts) > len(self._main) + len(self._small):
            self._ghosts.popitem(last=False)

    def _evict_from_main(self) -> None:
        key, node = next(iter(self._main.items()))
        if node.read:
            node.read = False
            self._main.move_to_end(key)
        else:
            self._drop(node)

    def _await_expiry(self, node: _Node) -> None:
        bucket = _bucket(node.expires_at)
        waiting = self._buckets.get(bucket)
        if waiting is None:
            self._buckets[bucket] = {node}
            heapq.heappush(self._bucket_order, bucket)
            if len(self._bucket_order) > 2 * len(self._buckets) + _SWEEP_ENTRIES:
                # Buckets that were emptied and filled again stand in the heap more than once.
                self._bucket_order = sorted(self._buckets)
        else:
            waiting.add(node)

    def _sweep(self, now: float) -> None:
        """Remove some of what has expired, so that it does not crowd out what lives."""
        budget = _SWEEP_ENTRIES
        while budget and self._bucket_order and self._bucket_order[0] < _bucket(now):
            waiting = self._buckets.get(self._bucket_order[0])
            if waiting is None:
                heapq.heappop(self._bucket_order)
                continue
            self._drop(waiting.pop())
            budget -= 1


def _size(key: str, value: bytes) -> int:
    return len(key) + len(value) + ENTRY_OVERHEAD_BYTES


def _bucket(expires_at: float) -> int:
    return int(min(expires_at, _LAST_BUCKET_AT) // _BUCKET_SECONDS)
