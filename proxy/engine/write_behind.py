"""Writes happen after the answer: a bounded queue, read through until it is written."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from proxy.core.codec import COMPRESS_ABOVE_BYTES, encode
from proxy.core.entry import Entry
from proxy.engine.base import StorageObserver
from proxy.engine.dictionaries import Dictionaries
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put, Store
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.writes")

# One batch holds the store's writer for this much at most; larger entries go alone.
_BATCH_ENTRIES = 64
_BATCH_BYTES = 4 * 1024 * 1024
# Below this, encoding costs the loop less than a thread does.
_INLINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class WriteLimits:
    """Bounds of the queue; past either, a new entry is dropped and counted."""

    entries: int = 10_000
    bytes: int = 64 * 1024 * 1024
    compress_above_bytes: int = COMPRESS_ABOVE_BYTES


class WriteBehind:
    """Entries on their way into the store; a later entry for a key replaces an earlier one."""

    def __init__(
        self,
        store: Store,
        tasks: TaskGroup,
        limits: WriteLimits,
        observer: StorageObserver,
        dictionaries: Dictionaries,
    ) -> None:
        self._store = store
        self._tasks = tasks
        self._limits = limits
        self._observer = observer
        self._dictionaries = dictionaries
        self._queued: dict[str, Entry] = {}
        self._writing: dict[str, Entry] = {}
        self._bytes = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._batch_done = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queued) + len(self._writing)

    def start(self) -> None:
        """Begin to write; call once, inside the loop."""
        self._tasks.start(self._run(), name="write-behind")

    def put(self, entry: Entry) -> bool:
        """Queue an entry; False where the queue is full and the entry was dropped."""
        replaced = self._queued.pop(entry.key, None)
        if replaced is not None:
            self._bytes -= len(replaced.payload)
        full = len(self) >= self._limits.entries
        if full or self._bytes + len(entry.payload) > self._limits.bytes:
            self._observer.write_dropped()
            return False
        self._queued[entry.key] = entry
        self._bytes += len(entry.payload)
        self._idle.clear()
        self._work.set()
        return True

    def pending(self, key: str) -> Entry | None:
        """The entry if it is still on its way, so that a writer reads its own write."""
        return self._queued.get(key) or self._writing.get(key)

    async def drain(self, grace_seconds: float) -> bool:
        """Wait until everything is written; False if that took longer than `grace_seconds`."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def settled(self, keys: Sequence[str]) -> None:
        """Return when none of these keys is on its way any more: written, or lost."""
        while any(self.pending(key) is not None for key in keys):
            await self._batch_done.wait()

    async def _run(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queued:
                self._take_batch()
                await self._write()
            self._idle.set()

    def _take_batch(self) -> None:
        taken = 0
        while self._queued and len(self._writing) < _BATCH_ENTRIES:
            key = next(iter(self._queued))
            size = len(self._queued[key].payload)
            if self._writing and taken + size > _BATCH_BYTES:
                return
            taken += size
            self._writing[key] = self._queued.pop(key)

    async def _write(self) -> None:
        try:
            puts = await self._encoded(list(self._writing.values()))
            await self._dictionaries.secure()
            await self._store.put_many(puts)
            self._dictionaries.learn(self._writing.values())
        except StoreUnavailable:
            # The entries are lost: that costs a miss later, where holding on would cost memory now.
            self._observer.store_failed("put")
        except Exception:  # boundary: whatever one batch stumbles over, the next is written
            log.exception("a batch of entries could not be written")
            self._observer.store_failed("put")
        finally:
            self._bytes -= sum(len(entry.payload) for entry in self._writing.values())
            self._writing = {}
            self._batch_done.set()
            self._batch_done = asyncio.Event()

    async def _encoded(self, entries: Sequence[Entry]) -> list[Put]:
        work = [
            partial(
                encode,
                entry,
                compress_above_bytes=self._limits.compress_above_bytes,
                dictionary=self._dictionaries.choose(entry),
            )
            for entry in entries
        ]
        if sum(len(entry.payload) for entry in entries) <= _INLINE_BYTES:
            values = [encoded() for encoded in work]
        else:
            values = await asyncio.to_thread(lambda: [encoded() for encoded in work])
        return [
            Put(entry.key, value, entry.expires_at)
            for entry, value in zip(entries, values, strict=True)
        ]
