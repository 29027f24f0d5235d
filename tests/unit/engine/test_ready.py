"""What an entry was decoded to is used as long as the store gives the very object, and bounded."""

import random
from dataclasses import replace

import pytest

from proxy.core.entry import Entry, Form
from proxy.core.replay import Rendered
from proxy.core.selectors import Selector
from proxy.engine.ready import ReadyEntries
from tests.unit.engine.kit import COMPLETION, Engine, FaultyStore, Said, ScriptedForwarder, told

pytestmark = pytest.mark.anyio

ENTRY = Entry(
    key="k",
    model="m",
    rule="r",
    stored_at=0.0,
    fresh_until=1.0,
    expires_at=1.0,
    form=Form.JSON,
    status=200,
    headers=(),
    usage=None,
    payload=b"p" * 100,
)
JSON = Rendered(b"application/json", ENTRY.payload)


def test_B57_only_the_very_object_that_was_decoded_counts() -> None:
    ready = ReadyEntries(10_000)
    value = bytes(bytearray(b"stored"))
    ready.keep("k", value, ENTRY)

    assert ready.entry("k", value) is ENTRY
    assert ready.entry("k", bytes(bytearray(value))) is None, "as long, and another one"
    assert ready.entry("other", value) is None


def test_B57_a_form_is_that_of_the_very_entry() -> None:
    ready = ReadyEntries(10_000)
    ready.keep("k", b"stored", ENTRY)
    ready.keep_form(ENTRY, "json", JSON)
    stale = replace(ENTRY, fresh_until=0.5)

    assert ready.form(ENTRY, "json") is JSON
    assert ready.form(ENTRY, "sse") is None
    assert ready.form(stale, "json") is None
    ready.keep_form(stale, "sse", JSON)
    assert ready.form(ENTRY, "sse") is None

    ready.keep("k", b"anew", stale)
    assert ready.form(stale, "json") is None, "the form was made of the one before"


def test_B56_the_oldest_go_and_forms_count() -> None:
    ready = ReadyEntries(10_000)
    entries = [replace(ENTRY, key=str(number)) for number in range(6)]
    for entry in entries:
        ready.keep(entry.key, b"stored", entry)
    held = [ready.entry(entry.key, b"stored") is not None for entry in entries]
    assert held == sorted(held)
    assert 1 < sum(held) < 6

    ready.keep_form(entries[-1], "sse", Rendered(b"text/event-stream", b"x" * 7_000))

    assert [ready.entry(entry.key, b"stored") for entry in entries] == [None] * 5 + [entries[-1]]
    assert ready.form(entries[-1], "sse") is not None
    ready.keep_form(entries[-1], "gzip", Rendered(b"text/event-stream", b"x" * 7_000))
    assert ready.form(entries[-1], "gzip") is None, "together they would be too long"
    assert ready.form(entries[-1], "sse") is not None


def test_B56_nothing_is_held_where_nothing_may_be() -> None:
    ready = ReadyEntries(0)
    ready.keep("k", b"stored", ENTRY)
    ready.keep_form(ENTRY, "json", JSON)

    assert ready.entry("k", b"stored") is None
    assert ready.form(ENTRY, "json") is None


async def test_B51_an_entry_that_was_replaced_under_its_key_is_decoded_anew() -> None:
    engine = Engine(FaultyStore(instant=True), ready_bytes=1_000_000)
    await engine.ask()
    await engine.settled()
    (key,) = engine.store.values
    first = await engine.ask()
    assert told(first, b"x-cache") == "HIT"
    assert (await engine.ask()).body is first.body, "one object for all"

    engine.store.values[key] = b"rubbish"
    assert told(await engine.ask(), b"x-cache") == "MISS"
    del engine.store.values[key]
    await engine.settled()
    await engine.stop()


async def test_B54_a_purge_counts_for_what_was_decoded_before() -> None:
    engine = Engine(FaultyStore(instant=True), ready_bytes=1_000_000)
    await engine.generations.open()
    await engine.ask()
    await engine.settled()
    assert told(await engine.ask(), b"x-cache") == "HIT"

    await engine.generations.add(Selector())

    assert told(await engine.ask(), b"x-cache") == "MISS"
    await engine.generations.close()
    await engine.stop()


async def test_a_long_entry_is_decoded_in_a_thread_once() -> None:
    text = random.Random(1).randbytes(200_000).hex().encode()  # it hardly gets shorter
    long = COMPLETION.replace(b"hi", text)
    engine = Engine(FaultyStore(instant=True), ScriptedForwarder(Said((long,))), ready_bytes=10**6)
    await engine.ask()
    await engine.settled()
    (key,) = engine.store.values
    assert engine.entries.get_now(key) is None, "that is for a thread"

    assert told(await engine.ask(), b"x-cache") == "HIT"

    found = engine.entries.get_now(key)
    assert found is not None
    assert found.payload == long
    assert (await engine.ask()).body is found.payload
    await engine.stop()
