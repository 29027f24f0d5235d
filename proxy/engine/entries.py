"""Entries in and out of the store: decoding, own writes, and a store's failures as misses."""

import asyncio

from proxy.core.codec import decode
from proxy.core.entry import Entry
from proxy.core.outcome import MissReason
from proxy.engine.base import StorageObserver
from proxy.engine.write_behind import WriteBehind
from proxy.errors import EntryUnreadable, StoreUnavailable
from proxy.stores.base import Store
from proxy.tasks import TaskGroup

# Above this, decoding is done in a thread: it may have to decompress.
_INLINE_BYTES = 64 * 1024


class Entries:
    """The engine's view of the store: an `Entry`, or the reason why there is none."""

    def __init__(
        self, store: Store, writes: WriteBehind, tasks: TaskGroup, observer: StorageObserver
    ) -> None:
        self._store = store
        self._writes = writes
        self._tasks = tasks
        self._observer = observer
        self.replacements = 0
        """How often an entry was stored where a fresh one may have been: what repeats an answer
        without asking for its entry has to ask again when this changes."""

    def get_now(self, key: str) -> Entry | None:
        """The entry if it can be had without waiting; None where `get` has to be asked."""
        if (entry := self._writes.pending(key)) is not None:
            return entry
        value = self._store.get_now(key)
        if value is None or len(value) > _INLINE_BYTES:
            return None
        try:
            return decode(value, key)
        except EntryUnreadable:
            return None  # `get` meets it too: it deletes and counts it, once

    def is_stored(self, key: str) -> bool:
        """False while an entry is only on its way: the store may lose it, or keep it elsewhere."""
        return self._writes.pending(key) is None or self._store.get_now(key) is not None

    async def get(self, key: str) -> Entry | MissReason:
        """The entry under `key`, or why it can't be had; never raises for a failing store."""
        if (entry := self._writes.pending(key)) is not None:
            return entry
        try:
            (value,) = await self._store.get_many([key])
        except StoreUnavailable:
            self._observer.store_failed("get")
            return MissReason.STORE_DOWN
        if value is None:
            return MissReason.ABSENT
        try:
            if len(value) > _INLINE_BYTES:
                return await asyncio.to_thread(decode, value, key)
            return decode(value, key)
        except EntryUnreadable:
            return self._unreadable(key)

    def put(self, entry: Entry, *, replaces: bool) -> bool:
        """Queue the entry; False where it was dropped. `replaces`: a fresh one may be there."""
        queued = self._writes.put(entry)
        if queued and replaces:
            self.replacements += 1
        return queued

    def _unreadable(self, key: str) -> MissReason:
        self._observer.entry_unreadable()
        self._tasks.start(self._delete(key), name="delete-unreadable")
        return MissReason.UNREADABLE

    async def _delete(self, key: str) -> None:
        try:
            await self._store.delete_many([key])
        except StoreUnavailable:
            self._observer.store_failed("delete")
