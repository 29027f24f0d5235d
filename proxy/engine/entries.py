"""Entries in and out of the store: decoding, own writes, purges, and failures as misses."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias, assert_never

from proxy.clock import Clock
from proxy.core.codec import decode, peek_stored_at
from proxy.core.dictionaries import Dictionary
from proxy.core.entry import Entry
from proxy.core.freshness import is_fresh
from proxy.core.marks import Verdict
from proxy.core.outcome import MissReason
from proxy.core.selectors import Tagged
from proxy.engine.base import StorageObserver
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.generations import Generations
from proxy.engine.ready import ReadyEntries
from proxy.engine.write_behind import WriteBehind
from proxy.errors import DictionaryMissing, EntryUnreadable, StoreUnavailable
from proxy.stores.base import Store
from proxy.tasks import TaskGroup

Fetch: TypeAlias = Callable[[Sequence[str]], Awaitable[list[bytes | None]]]

# How many keys have a version of their own; with more, all begin anew.
_MOST_VERSIONS: Final = 10_000
# Above this, decoding is done in a thread: it may have to decompress.
_INLINE_BYTES = 64 * 1024


class Entries:
    """The engine's view of the store: an `Entry`, or the reason why there is none."""

    def __init__(
        self,
        store: Store,
        writes: WriteBehind,
        generations: Generations,
        clock: Clock,
        tasks: TaskGroup,
        observer: StorageObserver,
        dictionaries: Dictionaries,
        *,
        ready_bytes: int = 0,
    ) -> None:
        self.ready = ReadyEntries(ready_bytes)
        """What entries at hand were decoded to; nothing where `ready_bytes` is 0."""
        self._store = store
        self._generations = generations
        self._clock = clock
        self._writes = writes
        self._tasks = tasks
        self._observer = observer
        self._dictionaries = dictionaries
        self._versions: dict[str, int] = {}
        self._version = 0
        self._base = 0

    def version(self, key: str) -> int:
        """Another number when what was found under `key` may be out of date before its time.

        That is when an entry was stored where a fresh one may have been, and with every purge. What
        repeats an answer without asking for its entry has to ask again then.
        """
        return self._generations.changes + self._versions.get(key, self._base)

    def _replaced(self, key: str) -> None:
        # Each is above all that were given before, so that sums of two never meet again.
        self._version += 1
        if len(self._versions) >= _MOST_VERSIONS:
            self._versions.clear()
            self._base = self._version
            self._version += 1
        self._versions[key] = self._version

    def get_now(self, key: str) -> Entry | None:
        """The entry if it can be had without waiting; None where `get` has to be asked."""
        entry = self._writes.pending(key)
        if entry is None:
            entry = self._stored_now(key)
        valid = None if entry is None else self._unless_purged(entry)
        return valid if isinstance(valid, Entry) else None

    def _stored_now(self, key: str) -> Entry | None:
        value = self._store.get_now(key)
        if value is None:
            return None
        entry = self.ready.entry(key, value)
        if entry is not None:
            return entry
        if len(value) > _INLINE_BYTES:
            return None
        try:
            entry = decode(value, key, self._dictionaries.loaded)
        except EntryUnreadable:
            # `get` meets it too: it fetches a dictionary, or deletes and counts the entry, once
            return None
        self.ready.keep(key, value, entry)
        return entry

    def is_at_hand(self, key: str, stored_at: float) -> bool:
        """Whether the store has the entry of that time, and no other, where it needs no waiting.

        It counts as read.
        """
        value = self._store.get_now(key)
        return value is not None and peek_stored_at(value) == stored_at

    def is_stored(self, key: str) -> bool:
        """False while an entry is only on its way: the store may lose it, or keep it elsewhere."""
        return self._writes.pending(key) is None or self._store.get_now(key) is not None

    async def get(self, key: str) -> Entry | MissReason:
        """The entry under `key`, or why it can't be had; never raises for a failing store.

        Where a copy at hand is out of date, others may have stored a new one: that is looked for.
        """
        found = await self._get(key)
        if not self._is_outdated(found):
            return found
        return _better(found, await self.get_latest(key))

    async def get_latest(self, key: str) -> Entry | MissReason:
        """The same, past copies of this worker: what all who share the store see."""
        found = await self._fetched(key, self._store.get_latest)
        if not self._is_outdated(found):
            self._replaced(key)
        return found

    async def _get(self, key: str) -> Entry | MissReason:
        if (entry := self._writes.pending(key)) is not None:
            return self._unless_purged(entry)
        return await self._fetched(key, self._store.get_many)

    def _is_outdated(self, found: Entry | MissReason) -> bool:
        if isinstance(found, Entry):
            return not is_fresh(found, self._clock.wall())
        return found is MissReason.PURGED

    async def _fetched(self, key: str, fetch: Fetch) -> Entry | MissReason:
        try:
            (value,) = await fetch([key])
        except StoreUnavailable:
            self._observer.store_failed("get")
            return MissReason.STORE_DOWN
        if value is None:
            return MissReason.ABSENT
        return self._judged(key, await self._read(value, key))

    async def _read(self, value: bytes, key: str) -> Entry | MissReason:
        ready = self.ready.entry(key, value)
        if ready is not None:
            return ready
        try:
            entry = await self._decoded(value, key)
        except EntryUnreadable:
            return MissReason.UNREADABLE
        except StoreUnavailable:
            self._observer.store_failed("dictionary")
            return MissReason.STORE_DOWN
        if len(value) > _INLINE_BYTES and self._store.get_now(key) is value:
            # The next one need not wait for a thread.
            self.ready.keep(key, value, entry)
        return entry

    async def _decoded(self, value: bytes, key: str) -> Entry:
        loaded = self._dictionaries.loaded
        try:
            return await _decoded_somewhere(value, key, loaded)
        except DictionaryMissing as missing:
            if not await self._dictionaries.load(key, missing.dictionary_id):
                raise
        return await _decoded_somewhere(value, key, loaded)

    async def get_batch(self, keys: Sequence[str]) -> list[Entry | MissReason]:
        """The same for many keys, which are distinct, in one look-up."""
        found: dict[str, Entry | MissReason] = {
            key: entry for key in keys if (entry := self._writes.pending(key)) is not None
        }
        asked = [key for key in keys if key not in found]
        found |= await self._fetched_all(asked, self._store.get_many)
        found = {key: self._judged(key, found[key]) for key in keys}
        outdated = [key for key in keys if self._is_outdated(found[key])]
        for key, latest in (await self._fetched_all(outdated, self._store.get_latest)).items():
            found[key] = _better(found[key], self._judged(key, latest))
        return [found[key] for key in keys]

    async def _fetched_all(
        self, asked: Sequence[str], fetch: Fetch
    ) -> dict[str, Entry | MissReason]:
        try:
            values = await fetch(asked) if asked else []
        except StoreUnavailable:
            self._observer.store_failed("get")
            return dict.fromkeys(asked, MissReason.STORE_DOWN)
        held = {key: value for key, value in zip(asked, values, strict=False) if value is not None}
        loaded = self._dictionaries.loaded
        if sum(map(len, held.values())) > _INLINE_BYTES:
            decoded, lacking = await asyncio.to_thread(_all_decoded, held, loaded)
        else:
            decoded, lacking = _all_decoded(held, loaded)
        for key in lacking:  # the first one fetches the dictionary for all
            decoded[key] = await self._read(held[key], key)
        return {key: decoded.get(key, MissReason.ABSENT) for key in asked}

    def _judged(self, key: str, found: Entry | MissReason) -> Entry | MissReason:
        if isinstance(found, Entry):
            return self._unless_purged(found)
        return self._unreadable(key) if found is MissReason.UNREADABLE else found

    def put(self, entry: Entry, *, replaces: bool) -> bool:
        """Queue the entry; False where it was dropped. `replaces`: a fresh one may be there."""
        queued = self._writes.put(entry)
        if queued and replaces:
            self._replaced(entry.key)
        return queued

    async def settled(self, keys: Sequence[str]) -> None:
        """Return when none of these keys is on its way to the store any more."""
        await self._writes.settled(keys)

    def is_live(self, tagged: Tagged) -> bool:
        """Whether no purge is about an entry, or about a call under way."""
        return self._generations.verdict(tagged) is Verdict.LIVE

    def _unless_purged(self, entry: Entry) -> Entry | MissReason:
        """The entry, stale from now on where a soft purge named it."""
        match self._generations.verdict(entry):
            case Verdict.LIVE:
                return entry
            case Verdict.STALE:
                return replace(entry, fresh_until=min(entry.fresh_until, self._clock.wall()))
            case Verdict.GONE:
                return MissReason.PURGED
            case verdict:
                assert_never(verdict)

    def _unreadable(self, key: str) -> MissReason:
        self._observer.entry_unreadable()
        self._tasks.start(self._delete(key), name="delete-unreadable")
        return MissReason.UNREADABLE

    async def _delete(self, key: str) -> None:
        try:
            await self._store.delete_many([key])
        except StoreUnavailable:
            self._observer.store_failed("delete")


def _better(copy: Entry | MissReason, latest: Entry | MissReason) -> Entry | MissReason:
    """What is known of a key whose copy here is out of date: a store that is down knows nothing."""
    return copy if latest is MissReason.STORE_DOWN else latest


async def _decoded_somewhere(
    value: bytes, key: str, dictionaries: Mapping[int, Dictionary]
) -> Entry:
    if len(value) > _INLINE_BYTES:
        return await asyncio.to_thread(decode, value, key, dictionaries)
    return decode(value, key, dictionaries)


def _all_decoded(
    values: Mapping[str, bytes], dictionaries: Mapping[int, Dictionary]
) -> tuple[dict[str, Entry | MissReason], list[str]]:
    """What can be read now, and the keys of what needs a dictionary that is not at hand."""
    found: dict[str, Entry | MissReason] = {}
    lacking: list[str] = []
    for key, value in values.items():
        try:
            found[key] = decode(value, key, dictionaries)
        except DictionaryMissing:
            lacking.append(key)
        except EntryUnreadable:
            found[key] = MissReason.UNREADABLE
    return found, lacking
