"""Dictionaries in use: trained by one, found by others, kept as long as entries need them."""

import asyncio
import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.codec import decode, encode, meta_bytes
from proxy.core.dictionaries import (
    decode_pointer,
    dictionary_key,
    encode_dictionary,
    encode_pointer,
    family_of,
    peek_dictionary_expiry,
    pointer_key,
)
from proxy.core.entry import Entry, Form
from proxy.core.training import FEWEST_SAMPLES, Trained, train
from proxy.engine import dictionaries
from proxy.engine.dictionaries import (
    LOOK_SECONDS,
    OLDEST_SECONDS,
    RETRAIN_SECONDS,
    Dictionaries,
)
from proxy.engine.shelf import MOST_HELD, SLACK_SECONDS
from proxy.errors import DictionaryMissing, EntryUnreadable, StoreUnavailable
from proxy.standin.text import token_texts
from proxy.stores.base import Put
from proxy.tasks import TaskGroup
from tests.dictionaries import PREFIX, STORED_AT, chat_entry, trained_on
from tests.fakes import FakeClock
from tests.unit.engine.kit import FaultyStore, Witness
from tests.waiting import until

pytestmark = pytest.mark.anyio

FAMILY = f"{PREFIX}dict:chat"
DAY = 86_400.0


class Worker:
    """One worker's dictionaries, and what write-behind and look-ups do with them."""

    def __init__(self, store: FaultyStore, clock: FakeClock, *, writing: bool = True) -> None:
        self.store = store
        self.tasks = TaskGroup()
        self.witness = Witness()
        self.dictionaries = Dictionaries(store, clock, self.tasks, self.witness, writing=writing)

    async def write(self, entries: Iterable[Entry]) -> list[int | None]:
        """Store them, and what follows; the ids of the dictionaries that they were written with."""
        chosen = []
        for entry in entries:
            dictionary = self.dictionaries.choose(entry)
            chosen.append(dictionary.id if dictionary else None)
            value = encode(entry, dictionary=dictionary)
            await self.dictionaries.secure()
            try:
                await self.store.put_many([Put(entry.key, value, entry.expires_at)])
            except StoreUnavailable:
                continue
            self.dictionaries.learn([entry])
        await self.settled()
        return chosen

    async def settled(self) -> None:
        """All that was begun in the background has come to its end."""
        while len(self.tasks):
            await self.tasks.drain(10)

    async def read(self, entry: Entry) -> Entry | None:
        """What a look-up finds; None where it can't be read."""
        value = self.store.values[entry.key]
        try:
            return decode(value, entry.key, self.dictionaries.loaded)
        except DictionaryMissing as missing:
            if not await self.dictionaries.load(entry.key, missing.dictionary_id):
                return None
        return decode(value, entry.key, self.dictionaries.loaded)


def some(begin: int, count: int = FEWEST_SAMPLES, **members: Any) -> list[Entry]:
    """So many different entries."""
    return [
        chat_entry(number, form=list(Form)[number % 2], **members)
        for number in range(begin, begin + count)
    ]


def expiry(store: FaultyStore, dictionary_id: int) -> float:
    """Until when the stored copy is kept."""
    found = peek_dictionary_expiry(store.values[dictionary_key(FAMILY, dictionary_id)])
    assert found is not None
    return found


def named(store: FaultyStore) -> int | None:
    """What the pointer names."""
    return decode_pointer(store.values.get(pointer_key(FAMILY)))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(wall=STORED_AT)


@pytest.fixture
def store() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
def worker(store: FaultyStore, clock: FakeClock) -> Worker:
    return Worker(store, clock)


async def trained(worker: Worker) -> int:
    """Let the worker write until it has a dictionary; its id."""
    assert set(await worker.write(some(0))) == {None}
    (dictionary_id,) = await worker.write(some(500, 1))
    assert dictionary_id is not None
    return dictionary_id


# ---- training ----


async def test_a_worker_that_has_stored_enough_trains_and_writes_with_what_it_trained(
    worker: Worker, store: FaultyStore
) -> None:
    entries = some(0)
    assert set(await worker.write(entries[:-1])) == {None}
    assert named(store) is None, "one is missing"
    assert await worker.write(entries[-1:]) == [None]

    (dictionary_id,) = await worker.write(some(500, 1))

    assert dictionary_id == named(store)
    (entry,) = some(500, 1)
    assert len(store.values[entry.key]) < 0.6 * len(encode(entry))
    assert await worker.read(entry) == entry
    assert await worker.read(entries[0]) == entries[0], "what was written before stays readable"
    assert worker.witness.failed == []


async def test_training_happens_in_a_thread(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        threads.append(threading.get_ident())
        return train(*args, **kwargs)

    monkeypatch.setattr(dictionaries, "train", watched)
    await trained(worker)
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_what_is_logged_is_no_part_of_an_answer(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await trained(worker)
    (record,) = [each for each in caplog.records if each.name == "magic_proxy.dictionaries"]
    assert record.getMessage().startswith(f"{FAMILY}: a new dictionary leaves ")


async def test_entries_that_have_nothing_in_common_get_none_and_the_next_try_is_far_off(
    worker: Worker, store: FaultyStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def in_vain(*args: Any, **kwargs: Any) -> Trained:
        calls.append(args)
        return Trained(None, 0.9)

    monkeypatch.setattr(dictionaries, "train", in_vain)
    await worker.write(some(0, 400))
    assert named(store) is None
    clock.advance(RETRAIN_SECONDS - 1)
    await worker.write(some(1_000, 400))
    assert len(calls) == 1
    clock.advance(1)
    await worker.write(some(2_000, 1))
    assert len(calls) == 2
    clock.advance(RETRAIN_SECONDS)
    await worker.write(some(3_000, FEWEST_SAMPLES - 1))
    assert len(calls) == 2, "it learns of what is stored now"
    await worker.write(some(4_000, 1))
    assert len(calls) == 3


async def test_later_on_it_is_replaced_if_answers_have_changed_and_not_before(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    notice = "".join(token_texts(b"a notice under every answer from some day on", 150)).encode()
    before = some(600, 1)
    changed = [
        replace(entry, payload=notice + entry.payload) for entry in some(1_000, FEWEST_SAMPLES)
    ]

    assert set(await worker.write([*before, *changed])) == {first}
    assert named(store) == first
    clock.advance(RETRAIN_SECONDS)
    await worker.write(changed[:1])
    (second,) = await worker.write(changed[1:2])

    assert second not in {None, first}
    assert named(store) == second
    for entry in (*before, *changed):
        assert await worker.read(entry) == entry


async def test_it_stays_where_a_new_one_would_be_no_better(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    await worker.write(some(0))
    clock.advance(RETRAIN_SECONDS)
    await worker.write(some(200, 2))
    assert named(store) == first
    assert await worker.write(some(300, 1)) == [first]


async def test_an_old_one_is_not_written_with_any_more(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    await worker.write(some(0, lifetime_seconds=30 * DAY))
    clock.advance(OLDEST_SECONDS)
    now = clock.wall()
    (late,) = await worker.write(some(200, 1, stored_at=now))
    assert late is None, "it holds pieces of answers that are as old"
    (second,) = await worker.write(some(300, 1, stored_at=now))
    assert second not in {None, first}
    (old,) = some(1, 1, lifetime_seconds=30 * DAY)
    assert await worker.read(old) == old


# ---- several workers ----


async def test_another_worker_writes_with_it_without_training(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    other = Worker(store, clock)
    assert await other.write(some(600, 1)) == [None], "it has to look first"
    assert set(await other.write(some(700, 2 * FEWEST_SAMPLES))) == {first}


async def test_one_that_is_about_to_train_takes_what_was_trained_meanwhile(
    worker: Worker, store: FaultyStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Worker(store, clock)
    await other.write(some(600, FEWEST_SAMPLES - 1))
    first = await trained(worker)

    def in_vain(*args: Any, **kwargs: Any) -> Trained:
        raise AssertionError("it need not train")

    monkeypatch.setattr(dictionaries, "train", in_vain)
    await other.write(some(900, 1))
    assert await other.write(some(950, 1)) == [first]
    assert named(store) == first


async def test_what_was_trained_by_another_meanwhile_is_taken_and_the_own_one_thrown_away(
    worker: Worker, store: FaultyStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, others = Worker(store, clock), trained_on(range(100))
    await other.write(some(600, FEWEST_SAMPLES - 1))

    def too_late(*args: Any, **kwargs: Any) -> Trained:
        store.values[dictionary_key(FAMILY, others.id)] = encode_dictionary(others, 2e9)
        store.values[pointer_key(FAMILY)] = encode_pointer(others.id)
        return train(*args, **kwargs)

    monkeypatch.setattr(dictionaries, "train", too_late)
    await other.write(some(900, 1))
    assert await other.write(some(950, 1)) == [others.id]
    assert named(store) == others.id
    assert sum("dict:chat:" in key for key in store.values) == 2


async def test_two_that_train_at_once_go_on_with_one_and_both_stay_readable(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    other = Worker(store, clock)
    await asyncio.gather(worker.write(some(0, 100)), other.write(some(1_000, 100)))
    mine, others = some(100, 28), some(1_100, 28)
    for entry in mine:
        worker.dictionaries.learn([entry])
    for entry in others:
        other.dictionaries.learn([entry])
    store.stalled.add("put")
    # Each has looked twice and found nothing when it comes to put what it trained.
    await until(lambda: store.log.count("put") == 202)
    store.stalled.clear()
    store.gate.set()
    await asyncio.gather(worker.settled(), other.settled())

    one, two = await worker.write(some(200, 1)), await other.write(some(1_200, 1))
    assert one != two
    for each in (worker, other):
        await each.dictionaries.look()
    last = [*await worker.write(some(300, 1)), *await other.write(some(1_300, 1))]
    assert last == [named(store)] * 2
    for each in (worker, other):
        for entry in (*some(200, 1), *some(1_200, 1), *some(300, 1), *some(1_300, 1)):
            assert await each.read(entry) == entry


async def test_a_reader_asks_once_for_all_who_wait(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    await trained(worker)
    entries = some(600, 20)
    await worker.write(entries)
    reader = Worker(store, clock)
    store.log.clear()
    store.stalled.add("get")
    reading = asyncio.gather(*(reader.read(entry) for entry in entries))
    await store.reached["get"].wait()
    store.stalled.clear()
    store.gate.set()
    assert await reading == entries
    assert store.log.count("get") == 1


async def test_a_reader_that_goes_away_takes_nothing_from_the_others(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    await trained(worker)
    (entry,) = some(500, 1)
    reader = Worker(store, clock)
    store.stalled.add("get")
    going = reader.tasks.start(reader.read(entry), name="going", awaited=True)
    staying = reader.tasks.start(reader.read(entry), name="staying", awaited=True)
    await asyncio.sleep(0)
    going.cancel()
    store.gate.set()
    assert await staying == entry


# ---- how long it is kept ----


async def test_it_is_kept_for_longer_than_any_entry_that_needs_it(
    worker: Worker, store: FaultyStore
) -> None:
    first = await trained(worker)
    assert STORED_AT + SLACK_SECONDS <= expiry(store, first) < STORED_AT + DAY
    store.log.clear()
    await worker.write(some(600, 5, lifetime_seconds=30 * DAY))
    assert expiry(store, first) >= STORED_AT + 30 * DAY
    assert store.log.count("put") == 5 + 1, "not every write prolongs it"


async def test_it_is_in_the_store_before_the_entry_that_needs_it(
    worker: Worker, store: FaultyStore
) -> None:
    first = await trained(worker)
    (entry,) = some(600, 1, lifetime_seconds=30 * DAY)
    assert worker.dictionaries.choose(entry) is not None
    assert expiry(store, first) < entry.expires_at
    await worker.dictionaries.secure()
    assert expiry(store, first) >= entry.expires_at


async def test_one_who_needs_it_for_less_does_not_shorten_it(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    other = Worker(store, clock)
    await other.write(some(600, 2))
    await worker.write(some(700, 1, lifetime_seconds=30 * DAY))
    clock.advance(SLACK_SECONDS - 60)
    await other.write(some(800, 1, stored_at=clock.wall()))
    await other.dictionaries.look()
    assert expiry(store, first) >= STORED_AT + 30 * DAY


async def test_one_that_was_evicted_is_put_back(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    await worker.write(some(600, 1, lifetime_seconds=30 * DAY))
    store.values.pop(dictionary_key(FAMILY, first))
    store.values.pop(pointer_key(FAMILY))
    await worker.dictionaries.look()
    assert expiry(store, first) >= STORED_AT + 30 * DAY
    assert named(store) == first


async def test_one_who_only_read_it_puts_it_back_too(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    await worker.write(some(600, 1, lifetime_seconds=30 * DAY))
    kept = expiry(store, first)
    reader = Worker(store, clock)
    await reader.write(some(0, 1))
    store.values.pop(dictionary_key(FAMILY, first))
    await reader.dictionaries.look()
    assert expiry(store, first) == kept


async def test_one_that_nothing_can_need_any_more_is_let_go(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    clock.advance(OLDEST_SECONDS)
    store.values.clear()
    await worker.dictionaries.look()
    assert first not in worker.dictionaries.loaded
    assert store.values == {}


async def test_looking_writes_nothing_while_all_is_there(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    await trained(worker)
    store.log.clear()
    for _ in range(12):
        clock.advance(LOOK_SECONDS)
        await worker.dictionaries.look()
    assert store.log == ["get"] * 12


async def test_a_pointer_to_nothing_is_set_right(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    store.values[pointer_key(FAMILY)] = encode_pointer(99_999)
    await worker.dictionaries.look()
    assert named(store) == first
    store.values[pointer_key(FAMILY)] = b"no pointer"
    await worker.dictionaries.look()
    assert named(store) == first


async def test_more_than_can_be_held_are_all_readable(store: FaultyStore, clock: FakeClock) -> None:
    entries = some(0, MOST_HELD + 5)
    for place, entry in enumerate(entries):
        dictionary = trained_on(range(place, place + 20))
        store.values[entry.key] = encode(entry, dictionary=dictionary)
        key = dictionary_key(FAMILY, dictionary.id)
        store.values[key] = encode_dictionary(dictionary, clock.wall() + DAY)
    reader = Worker(store, clock)
    for _ in range(2):
        for entry in entries:
            assert await reader.read(entry) == entry
    assert len(reader.dictionaries.loaded) == MOST_HELD


# ---- faults ----


async def test_an_entry_whose_dictionary_is_gone_cannot_be_read(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    (entry,) = some(500, 1)
    reader = Worker(store, clock)
    for damaged in (None, b"", b"MPXD\x01 damaged", encode_dictionary(trained_on(range(20)), 2e9)):
        store.values.pop(dictionary_key(FAMILY, first), None)
        if damaged is not None:
            store.values[dictionary_key(FAMILY, first)] = damaged
        assert await reader.read(entry) is None


async def test_B50_a_store_that_is_down_costs_nothing_but_the_dictionary(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    store.down |= {"get", "put"}
    await worker.write(some(0, 10))
    worker.dictionaries.learn(some(0, FEWEST_SAMPLES))
    await worker.settled()
    assert set(worker.witness.failed) == {"dictionary"}
    assert worker.dictionaries.choose(chat_entry(1)) is None

    store.down.clear()
    await worker.write(some(200, 1))
    assert named(store) is None, "not at once"
    clock.advance(LOOK_SECONDS)
    await worker.write(some(300, 1))
    (dictionary_id,) = await worker.write(some(400, 1))
    assert dictionary_id is not None
    assert dictionary_id == named(store)


async def test_B50_a_store_that_takes_no_writes_gets_none_and_nothing_is_written_with_one(
    worker: Worker, store: FaultyStore
) -> None:
    await worker.write(some(0, FEWEST_SAMPLES - 1))
    store.down.add("put")
    worker.dictionaries.learn(some(500, 1))
    await worker.settled()
    assert worker.dictionaries.choose(chat_entry(1)) is None
    assert worker.witness.failed == ["dictionary"]


async def test_B50_what_could_not_be_prolonged_is_with_the_next_write(
    worker: Worker, store: FaultyStore
) -> None:
    first = await trained(worker)
    store.down.add("put")
    long = some(600, 1, lifetime_seconds=30 * DAY)
    assert await worker.write(long) == [first]
    store.down.clear()
    await worker.write(some(700, 1))
    assert expiry(store, first) >= long[0].expires_at


async def test_B50_a_reader_whose_store_is_down_is_told_so(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    await trained(worker)
    reader = Worker(store, clock)
    store.down.add("get")
    with pytest.raises(StoreUnavailable):
        await reader.read(chat_entry(500))
    store.down.clear()
    assert await reader.read(chat_entry(500)) == chat_entry(500)


# ---- switched off, and what gets none ----


async def test_switched_off_none_is_made_and_those_that_are_there_are_read(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    off = Worker(store, clock, writing=False)
    store.log.clear()
    assert set(await off.write(some(600, 2 * FEWEST_SAMPLES))) == {None}
    assert set(store.log) == {"put"}, "it does not even look"
    assert await off.read(chat_entry(500)) == chat_entry(500)
    store.values.pop(dictionary_key(FAMILY, first))
    off.dictionaries.start()
    await off.dictionaries.look()
    assert dictionary_key(FAMILY, first) not in store.values, "what was deleted stays deleted"
    assert len(off.tasks) == 0


async def test_each_prefix_has_its_own(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    assert set(await worker.write(some(0, prefix="other:"))) == {None}
    (second,) = await worker.write(some(500, 1, prefix="other:"))
    assert second not in {None, first}
    assert dictionary_key("other:dict:chat", second or 0) in store.values


@pytest.mark.parametrize("key", [f"{PREFIX}v1:embeddings:shared:{'a' * 64}", "no store key"])
async def test_other_entries_get_none(worker: Worker, store: FaultyStore, key: str) -> None:
    assert family_of(key) is None
    other = [replace(entry, key=key) for entry in some(0)]
    assert set(await worker.write(other)) == {None}
    assert list(store.values) == [key]
    assert not await worker.dictionaries.load(key, 99_999)


# ---- what a purge asks ----


async def test_B54_the_first_bytes_of_an_entry_are_read_with_its_dictionary(
    worker: Worker, store: FaultyStore, clock: FakeClock
) -> None:
    first = await trained(worker)
    (entry,), (plain,) = some(500, 1), some(0, 1)
    reader = Worker(store, clock)
    value = store.values[entry.key]
    head = value[: meta_bytes(value) or 0]
    meta = await reader.dictionaries.meta(head, entry.key)
    assert meta is not None
    assert (meta.key, meta.model, meta.tags) == (entry.key, entry.model, entry.tags)
    assert await reader.dictionaries.meta(store.values[plain.key], plain.key) is not None
    assert await reader.dictionaries.meta(b"anything", plain.key) is None
    store.values.pop(dictionary_key(FAMILY, first))
    late = Worker(store, clock)
    assert await late.dictionaries.meta(head, entry.key) is None
    with pytest.raises(EntryUnreadable):
        decode(value, entry.key, late.dictionaries.loaded)
