"""Look-ups of entries that need a dictionary: at hand, in the store, gone, or out of reach."""

import pytest

from proxy.core.codec import decode, encode
from proxy.core.dictionaries import (
    dictionary_key,
    encode_dictionary,
    encode_pointer,
    peek_dictionary_expiry,
    pointer_key,
)
from proxy.core.entry import Entry
from proxy.core.outcome import MissReason
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.entries import Entries
from proxy.engine.generations import Generations
from proxy.engine.write_behind import WriteBehind, WriteLimits
from proxy.errors import DictionaryMissing
from proxy.stores.marks_local import LocalMarkLog
from proxy.tasks import TaskGroup
from tests.dictionaries import PREFIX, STORED_AT, a_dictionary, chat_entry
from tests.fakes import FakeClock
from tests.unit.engine.kit import FaultyStore, Witness
from tests.waiting import until

pytestmark = pytest.mark.anyio

DICTIONARY = a_dictionary()
FAMILY = f"{PREFIX}dict:chat"
KEY = dictionary_key(FAMILY, DICTIONARY.id)
ENTRY = chat_entry(1)


class Worker:
    """Look-ups over a store that has the entry, and its dictionary in it or not."""

    def __init__(self, *, with_dictionary: bool = True) -> None:
        self.store = FaultyStore(instant=True)
        self.store.values[ENTRY.key] = encode(ENTRY, dictionary=DICTIONARY)
        if with_dictionary:
            self.store.values[KEY] = encode_dictionary(DICTIONARY, STORED_AT + 900)
        clock, self.tasks, self.witness = FakeClock(wall=STORED_AT), TaskGroup(), Witness()
        self.dictionaries = Dictionaries(self.store, clock, self.tasks, self.witness)
        self.writes = WriteBehind(
            self.store, self.tasks, WriteLimits(), self.witness, self.dictionaries
        )
        self.entries = Entries(
            self.store,
            self.writes,
            Generations(LocalMarkLog(clock), clock, self.tasks, self.witness),
            clock,
            self.tasks,
            self.witness,
            self.dictionaries,
        )

    async def get(self) -> Entry | MissReason:
        """What a look-up finds, when all that it began is done."""
        found = await self.entries.get(ENTRY.key)
        await self.tasks.drain(5)
        return found


async def test_what_can_be_had_without_waiting_includes_no_dictionary() -> None:
    worker = Worker()
    assert worker.entries.get_now(ENTRY.key) is None
    assert worker.store.log == ["get_now"], "it is not even asked for"
    assert await worker.get() == ENTRY
    assert worker.entries.get_now(ENTRY.key) == ENTRY
    assert worker.witness.unreadable == 0


async def test_B51_an_entry_whose_dictionary_is_gone_is_a_miss_and_is_deleted() -> None:
    worker = Worker(with_dictionary=False)
    assert worker.entries.get_now(ENTRY.key) is None
    assert ENTRY.key in worker.store.values
    assert await worker.get() is MissReason.UNREADABLE
    assert ENTRY.key not in worker.store.values
    assert worker.witness.unreadable == 1


async def test_B50_an_entry_whose_dictionary_is_out_of_reach_is_a_miss_and_stays() -> None:
    worker = Worker()

    class DownForDictionaries(FaultyStore):
        async def _met(self, operation: str) -> None:
            self.down = {"get"} if operation in self.log else set()
            await super()._met(operation)

    store = DownForDictionaries()
    store.values = worker.store.values
    for part in (worker.entries, worker.dictionaries._shelf):
        part._store = store
    assert await worker.get() is MissReason.STORE_DOWN
    assert ENTRY.key in store.values
    assert worker.witness.failed == ["dictionary"]
    assert worker.witness.unreadable == 0


async def test_what_is_written_is_written_with_the_dictionary_that_is_named() -> None:
    worker = Worker()
    worker.store.values[pointer_key(FAMILY)] = encode_pointer(DICTIONARY.id)
    worker.writes.start()
    worker.writes.put(chat_entry(2))
    assert await worker.writes.drain(5)
    assert decode(worker.store.values[chat_entry(2).key], chat_entry(2).key) == chat_entry(2)
    await until(lambda: DICTIONARY.id in worker.dictionaries.loaded)

    lasting = chat_entry(3, lifetime_seconds=86_400)
    worker.writes.put(lasting)
    assert await worker.writes.drain(5)

    value = worker.store.values[lasting.key]
    with pytest.raises(DictionaryMissing):
        decode(value, lasting.key)
    assert decode(value, lasting.key, {DICTIONARY.id: DICTIONARY}) == lasting
    kept_until = peek_dictionary_expiry(worker.store.values[KEY])
    assert kept_until is not None
    assert kept_until >= lasting.expires_at
    await worker.tasks.cancel()
