"""Many look-ups in one: each key as if it had been asked for alone."""

import pytest

from proxy.core.codec import encode
from proxy.core.entry import Entry
from proxy.core.outcome import MissReason
from proxy.core.selectors import Selector
from tests.dictionaries import STORED_AT, a_dictionary, chat_entry
from tests.unit.engine.kit import Engine
from tests.unit.engine.test_entries_dictionaries import Worker

pytestmark = pytest.mark.anyio

KEYS = [chat_entry(number).key for number in range(5)]


async def test_each_key_is_found_or_says_why_not() -> None:
    engine = Engine()
    engine.clock.set_wall(STORED_AT)
    engine.store.stalled = {"put"}
    written, rubbish, absent, queued, _ = KEYS
    engine.store.values = {written: encode(chat_entry(0)), rubbish: b"MPXE"}
    engine.entries.put(chat_entry(3), replaces=False)

    found = await engine.entries.get_batch([queued, absent, rubbish, written])

    unreadable = MissReason.UNREADABLE
    assert found == [chat_entry(3), MissReason.ABSENT, unreadable, chat_entry(0)]
    assert engine.witness.unreadable == 1
    await engine.tasks.cancel()


async def test_B50_a_store_that_is_down_leaves_what_is_on_its_way() -> None:
    engine = Engine()
    engine.clock.set_wall(STORED_AT)
    engine.store.down = {"get"}
    engine.store.stalled = {"put"}
    engine.entries.put(chat_entry(3), replaces=False)
    found = await engine.entries.get_batch([KEYS[0], KEYS[3]])
    assert found == [MissReason.STORE_DOWN, chat_entry(3)]
    assert engine.witness.failed == ["get"]
    await engine.stop()


async def test_B54_what_was_purged_is_not_found() -> None:
    engine = Engine()
    engine.clock.set_wall(STORED_AT)
    engine.store.values = {key: encode(chat_entry(at)) for at, key in enumerate(KEYS)}
    await engine.generations.add(Selector())
    assert await engine.entries.get_batch(KEYS) == [MissReason.PURGED] * 5
    await engine.stop()


async def test_a_dictionary_is_fetched_once_for_all_who_need_it() -> None:
    worker = Worker()
    for at, key in enumerate(KEYS):
        worker.store.values[key] = encode(chat_entry(at), dictionary=a_dictionary())
    found = await worker.entries.get_batch(KEYS)
    assert found == [chat_entry(at) for at in range(5)]
    assert worker.store.log.count("get") == 2
    assert all(isinstance(entry, Entry) for entry in await worker.entries.get_batch(KEYS))
    await worker.tasks.drain(5)


async def test_B51_without_their_dictionary_they_can_not_be_read() -> None:
    worker = Worker(with_dictionary=False)
    for at, key in enumerate(KEYS):
        worker.store.values[key] = encode(chat_entry(at), dictionary=a_dictionary())
    assert await worker.entries.get_batch(KEYS) == [MissReason.UNREADABLE] * 5
    await worker.tasks.drain(5)
    assert not worker.store.values.keys() & set(KEYS)
