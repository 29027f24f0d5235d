"""Which dictionary an entry is written with, reading those that have one, and training new ones.

Dictionaries are values of the store. Whoever has one first for a family of entries names it in a
pointer; others take it from there. Two who train at once do no harm: what either wrote stays
readable, and all go on with the one that is named in the end.
"""

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from proxy.clock import Clock
from proxy.core.codec import COMPRESS_ABOVE_BYTES, decode_meta
from proxy.core.dictionaries import Dictionary, family_of, takes_dictionary
from proxy.core.entry import Entry, EntryMeta
from proxy.core.training import Reservoir, Trained, train
from proxy.engine.base import StorageObserver
from proxy.engine.shelf import Shelf
from proxy.errors import DictionaryMissing, StoreUnavailable
from proxy.stores.base import Store
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.dictionaries")

LOOK_SECONDS: Final = 300.0
# How often a worker tries whether it can do better by now.
RETRAIN_SECONDS: Final = 6 * 3600.0
# A dictionary holds pieces of the answers of its time: so long it is written with at most.
OLDEST_SECONDS: Final = 7 * 86_400.0


@dataclass(slots=True)
class _Family:
    """Entries that share dictionaries; `train_at` is monotonic seconds."""

    name: str
    current: Dictionary | None = None
    reservoir: Reservoir = field(default_factory=Reservoir)
    train_at: float = 0.0
    training: bool = False


class Dictionaries:
    """The dictionaries of a `store`: the one that outlives the process, where there is one.

    With `writing` off, none is trained or written with, and none is put back where the store has
    lost it; entries that were written with one are still read.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        tasks: TaskGroup,
        observer: StorageObserver,
        *,
        writing: bool = True,
        compress_above_bytes: int = COMPRESS_ABOVE_BYTES,
    ) -> None:
        self._clock = clock
        self._tasks = tasks
        self._observer = observer
        self._writing = writing
        self._compress_above_bytes = compress_above_bytes
        self._shelf = Shelf(store, clock, tasks)
        self._families: dict[str, _Family] = {}

    @property
    def loaded(self) -> Mapping[int, Dictionary]:
        """Those to decode with, by their ids; may be read in any thread."""
        return self._shelf.loaded

    def start(self) -> None:
        """Begin to look at the store now and then; call once, inside the loop."""
        if self._writing:
            self._tasks.start(self._keep_looking(), name="dictionaries")

    # Writing.

    def choose(self, entry: Entry) -> Dictionary | None:
        """The one to write this entry with, if any; from then on it is kept for the entry."""
        name = family_of(entry.key) if self._writing else None
        if name is None:
            return None
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(name)
            self._tasks.start(self._look(family), name="find-dictionary")
        current = self._young(family)
        if family.current is not current:
            family.current = None
            family.train_at = self._clock.monotonic()
        if current is None or not takes_dictionary(entry):
            return None
        self._shelf.need(name, current, entry.expires_at)
        return current

    async def secure(self) -> None:
        """Let the store keep dictionaries longer than the entries that are stored next."""
        try:
            await self._shelf.secure()
        except StoreUnavailable:  # the entries will hardly fare better; else the next time mends it
            self._observer.store_failed("dictionary")

    def learn(self, entries: Iterable[Entry]) -> None:
        """Take samples of entries that were stored, and train when there are enough."""
        for entry in entries:
            name = family_of(entry.key)
            family = self._families.get(name) if name is not None else None
            if family is None:
                continue
            family.reservoir.offer(entry, random.randrange)
            due = family.reservoir.is_enough and self._clock.monotonic() >= family.train_at
            if due and not family.training:
                family.training = True
                self._tasks.start(self._train(family), name="train-dictionary")

    # Reading.

    async def load(self, store_key: str, dictionary_id: int) -> bool:
        """Whether the dictionary that the entry under `store_key` needs is at hand now.

        Raises StoreUnavailable.
        """
        name = family_of(store_key)
        return name is not None and await self._shelf.load(name, dictionary_id)

    async def meta(self, head: bytes, store_key: str) -> EntryMeta | None:
        """What `decode_meta` tells, with the dictionary that it takes. Raises StoreUnavailable."""
        try:
            return decode_meta(head, store_key, self.loaded)
        except DictionaryMissing as missing:
            if not await self.load(store_key, missing.dictionary_id):
                return None
        try:
            return decode_meta(head, store_key, self.loaded)
        except DictionaryMissing:  # so many are in use that it had to go again
            return None

    # In the background.

    async def look(self) -> None:
        """Take over what others trained, and put back what the store has lost."""
        for family in list(self._families.values()):
            await self._look(family)

    async def _keep_looking(self) -> None:
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except Exception:  # boundary: whatever one look stumbles over, the next is made
                log.exception("the dictionaries could not be looked at")

    async def _look(self, family: _Family) -> bool:
        """The same for one family; False where the store did not answer."""
        try:
            if (current := self._young(family)) is not None:
                self._need(family, current)
            pointed = await self._shelf.look(family.name)
            if pointed is None or not await self._follow(family, pointed):
                await self._point(family)
        except StoreUnavailable:
            self._observer.store_failed("dictionary")
            return False
        return True

    async def _follow(self, family: _Family, pointed: int) -> bool:
        """Write with the dictionary that the pointer names; False where it is not to be had."""
        if family.current is not None and family.current.id == pointed:
            return True
        if not await self._shelf.load(family.name, pointed):
            return False
        dictionary = self.loaded.get(pointed)
        if dictionary is None or self._is_old(dictionary):
            return False
        family.current = dictionary
        family.train_at = self._clock.monotonic() + RETRAIN_SECONDS
        return True

    async def _train(self, family: _Family) -> None:
        done = False
        try:
            done = await self._trained_or_found(family)
        except StoreUnavailable:
            self._observer.store_failed("dictionary")
        finally:
            wait_seconds = RETRAIN_SECONDS if done else LOOK_SECONDS
            family.train_at = self._clock.monotonic() + wait_seconds
            family.training = False

    async def _trained_or_found(self, family: _Family) -> bool:
        """Train, unless another was faster; False where that has to be tried again soon."""
        before = family.current
        if not await self._look(family):
            return False
        if family.current is before:
            trained = await asyncio.to_thread(
                train,
                family.reservoir.samples,
                trained_at=self._clock.wall(),
                compress_above_bytes=self._compress_above_bytes,
                present=before,
            )
            if not await self._look(family):
                return False
            if family.current is before:
                await self._publish(family, trained)
        family.reservoir.empty()
        return True

    async def _publish(self, family: _Family, trained: Trained) -> None:
        dictionary = trained.dictionary
        if dictionary is None:
            log.info("%s: no new dictionary, it would leave %s", family.name, _shown(trained))
            return
        self._need(family, dictionary)
        await self._shelf.secure()
        family.current = dictionary
        await self._point(family)
        log.info("%s: a new dictionary leaves %s", family.name, _shown(trained))

    def _need(self, family: _Family, dictionary: Dictionary) -> None:
        """Keep it until the next look, at the least."""
        self._shelf.need(family.name, dictionary, self._clock.wall() + 2 * LOOK_SECONDS)

    async def _point(self, family: _Family) -> None:
        if (current := self._young(family)) is not None:
            expires_at = current.trained_at + OLDEST_SECONDS
            await self._shelf.point(family.name, current, expires_at)

    def _young(self, family: _Family) -> Dictionary | None:
        """The family's dictionary, if it may still be written with."""
        current = family.current
        return None if current is None or self._is_old(current) else current

    def _is_old(self, dictionary: Dictionary) -> bool:
        return self._clock.wall() >= dictionary.trained_at + OLDEST_SECONDS


def _shown(trained: Trained) -> str:
    return "everything" if trained.share is None else f"{trained.share:.0%} of the bytes"
