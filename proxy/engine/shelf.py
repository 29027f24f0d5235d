"""Dictionaries at hand, and their copies in the store that all share.

A copy is in the store before any entry that needs it, for longer than any, and is put back when it
was evicted.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.core.dictionaries import (
    Dictionary,
    decode_dictionary,
    decode_pointer,
    dictionary_key,
    encode_dictionary,
    encode_pointer,
    peek_dictionary_expiry,
    pointer_key,
)
from proxy.stores.base import Put, Store
from proxy.tasks import TaskGroup

# How much longer than any entry a copy is kept, so that not each write has to prolong it.
SLACK_SECONDS: Final = 6 * 3600.0
# One takes some 0.3 MB once it is in use.
MOST_HELD: Final = 16


@dataclass(slots=True)
class _Held:
    """A dictionary at hand: the store keeps it `until`, what is written here needs it `needed`."""

    dictionary: Dictionary
    until: float = 0.0
    needed: float = 0.0


class Shelf:
    """The dictionaries that this worker reads and writes with.

    Those that it writes with are said to be needed; of the others, it holds the latest.
    """

    def __init__(self, store: Store, clock: Clock, tasks: TaskGroup) -> None:
        self._store = store
        self._clock = clock
        self._tasks = tasks
        self._held: dict[str, _Held] = {}
        self._loaded: dict[int, Dictionary] = {}
        self._loading: dict[str, asyncio.Task[bool]] = {}

    @property
    def loaded(self) -> Mapping[int, Dictionary]:
        """Those at hand, by their ids; may be read in any thread."""
        return self._loaded

    def need(self, family: str, dictionary: Dictionary, until: float) -> None:
        """Entries will need it until then (wall-clock seconds); `secure` sees to it."""
        key = dictionary_key(family, dictionary.id)
        held = self._held.get(key) or self._hold(key, _Held(dictionary))
        held.needed = max(held.needed, until)

    async def secure(self) -> None:
        """Let the store keep all copies as long as they are needed. Raises StoreUnavailable."""
        late = [key for key, held in self._held.items() if held.needed > held.until]
        if late:
            await self._mend(late, await self._store.get_many(late))

    async def load(self, family: str, dictionary_id: int) -> bool:
        """Whether it is at hand now: the store is asked once for all who wait for it.

        Raises StoreUnavailable.
        """
        if dictionary_id in self._loaded:
            return True
        key = dictionary_key(family, dictionary_id)
        loading = self._loading.get(key)
        if loading is None:
            work = self._load(key, dictionary_id)
            loading = self._tasks.start(work, name="load-dictionary", awaited=True)
            self._loading[key] = loading
            loading.add_done_callback(lambda _: self._loading.pop(key, None))
        return await asyncio.shield(loading)

    async def look(self, family: str) -> int | None:
        """The id that the family's pointer names. Puts back what the store has lost of the family.

        Raises StoreUnavailable.
        """
        held = [key for key in self._held if key.startswith(f"{family}:")]
        pointer, *values = await self._store.get_many([pointer_key(family), *held])
        await self._mend(held, values)
        return decode_pointer(pointer)

    async def point(self, family: str, dictionary: Dictionary, expires_at: float) -> None:
        """Name the one to write with to all who share the store. Raises StoreUnavailable."""
        put = Put(pointer_key(family), encode_pointer(dictionary.id), expires_at)
        await self._store.put_many([put])

    async def _load(self, key: str, dictionary_id: int) -> bool:
        (value,) = await self._store.get_many([key])
        found = decode_dictionary(value, dictionary_id) if value is not None else None
        if found is None:
            return False
        dictionary, expires_at = found
        self._hold(key, _Held(dictionary, until=expires_at))
        return True

    async def _mend(self, keys: Sequence[str], values: Sequence[bytes | None]) -> None:
        """Put back what the store has lost or lets go too early; `values` is what it has."""
        puts: list[tuple[_Held, Put]] = []
        for key, value in zip(keys, values, strict=True):
            held = self._held.get(key)
            if held is None:
                continue
            until = peek_dictionary_expiry(value) if value is not None else None
            if max(held.until, held.needed) <= self._clock.wall():
                self._drop(key)
            elif until is not None and until >= max(held.until, held.needed):
                held.until = until
            else:
                # What another worker needs may be longer: never put it shorter than it is.
                until = max(held.until, held.needed + SLACK_SECONDS, until or 0.0)
                puts.append((held, Put(key, encode_dictionary(held.dictionary, until), until)))
        if puts:
            await self._store.put_many([put for _, put in puts])
        for held, put in puts:
            held.until = put.expires_at

    def _hold(self, key: str, held: _Held) -> _Held:
        now = self._clock.wall()
        for other in [key for key, each in self._held.items() if each.needed <= now]:
            if len(self._held) < MOST_HELD:
                break
            self._drop(other)
        self._held[key] = held
        self._loaded[held.dictionary.id] = held.dictionary
        return held

    def _drop(self, key: str) -> None:
        self._loaded.pop(self._held.pop(key).dictionary.id, None)
