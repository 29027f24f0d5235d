"""The engine over a store that fails: a miss at worst, never an error."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.core.codec import decode, encode
from proxy.core.outcome import XCache
from proxy.engine.write_behind import WriteLimits
from tests.unit.engine.kit import COMPLETION, RULE, Engine, FaultyStore, told

pytestmark = pytest.mark.anyio


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    running = Engine()
    yield running
    await running.stop()


async def stored(engine: Engine) -> str:
    """Ask once, wait for the write, and give the key it is under."""
    await engine.ask()
    await engine.settled()
    (key,) = engine.store.values
    return key


async def test_B53_the_write_happens_after_the_answer(engine: Engine) -> None:
    engine.store.stalled = {"put"}

    answer = await engine.ask()

    assert answer.body == COMPLETION
    assert engine.store.values == {}
    engine.store.gate.set()
    await engine.settled()
    assert engine.store.log[-1] == "put"
    assert told(await engine.ask(), b"x-cache") == "HIT"


async def test_B53_a_stalled_write_holds_no_answer_and_is_read_meanwhile(engine: Engine) -> None:
    engine.store.stalled = {"put"}

    await engine.ask()
    await engine.store.reached["put"].wait()
    again = await engine.ask()

    assert told(again, b"x-cache") == "HIT"
    assert engine.witness.failed == []
    engine.store.gate.set()
    await engine.settled()
    assert len(engine.store.values) == 1


async def test_B50_a_store_that_is_down_costs_misses(engine: Engine) -> None:
    engine.store.down = {"get", "put", "delete"}

    answers = []
    for _ in range(3):
        answers.append(await engine.ask())
        await engine.settled()

    assert [answer.status for answer in answers] == [200] * 3
    assert [told(answer, b"x-cache") for answer in answers] == ["MISS"] * 3
    assert all('detail="store-down"' in told(answer, b"cache-status") for answer in answers)
    assert engine.witness.failed == ["get", "put"] * 3
    engine.store.down = set()
    await engine.ask()
    await engine.settled()
    assert told(await engine.ask(), b"x-cache") == "HIT", "it heals"


async def test_B50_a_store_that_stalls_and_then_gives_up_costs_a_miss(engine: Engine) -> None:
    engine.store.stalled = engine.store.down = {"get"}

    asked = engine.tasks.start(engine.ask(), name="ask")
    await engine.store.reached["get"].wait()
    engine.store.gate.set()
    answer = await asked

    assert told(answer, b"x-cache") == "MISS"
    assert answer.body == COMPLETION


async def test_B50_writes_that_fail_are_counted_and_later_ones_succeed(engine: Engine) -> None:
    engine.store.put_error = ValueError("not even a store's own error")

    await engine.ask("one")
    await engine.settled()
    engine.store.put_error = None
    await engine.ask("two")
    await engine.settled()

    assert engine.witness.failed == ["put"]
    assert told(await engine.ask("two"), b"x-cache") == "HIT"
    assert told(await engine.ask("one"), b"x-cache") == "MISS"


@pytest.mark.parametrize("instant", [False, True], ids=["waiting", "instant"])
@pytest.mark.parametrize(
    "kind", ["rubbish", "empty", "cut", "changed", "other-key", "other-version"]
)
async def test_B51_what_is_no_entry_of_this_key_is_a_miss_and_deleted_once(
    kind: str, instant: bool
) -> None:
    engine = Engine(FaultyStore(instant=instant))
    key = await stored(engine)
    good = engine.store.values[key]
    # Nothing may be pending: it would be read before the store.
    entry = decode(good, key)
    engine.store.values[key] = {
        "rubbish": b"\x00\xff rubbish",
        "empty": b"",
        "cut": good[:-3],
        "changed": good[:-1] + bytes([good[-1] ^ 1]),
        "other-key": encode(replace(entry, key=key[:-1] + "0"), compress_above_bytes=10_000),
        "other-version": good[:4] + bytes([good[4] ^ 0x7F]) + good[5:],
    }[kind]
    engine.store.down = {"put"}  # so that only the deletion can change what is there

    answer = await engine.ask()
    await engine.settled()

    assert answer.status == 200
    assert told(answer, b"x-cache") == "MISS"
    assert 'detail="unreadable"' in told(answer, b"cache-status")
    assert engine.witness.unreadable == 1
    assert engine.store.log.count("delete") == 1
    assert engine.store.values == {}
    await engine.stop()


async def test_B51_an_unreadable_entry_that_cannot_be_deleted_is_still_only_a_miss(
    engine: Engine,
) -> None:
    key = await stored(engine)
    engine.store.values[key] = b"rubbish"
    engine.store.down = {"delete", "put"}

    for _ in range(2):
        assert told(await engine.ask(), b"x-cache") == "MISS"
        await engine.settled()

    assert engine.witness.failed.count("delete") == 2


async def test_B51_a_large_unreadable_entry_is_deleted_too(engine: Engine) -> None:
    key = await stored(engine)
    engine.store.values[key] = b"\0" * 200_000
    engine.store.down = {"put"}

    assert told(await engine.ask(), b"x-cache") == "MISS"
    await engine.settled()

    assert engine.store.values == {}


async def test_B53_past_its_bound_the_queue_drops_writes_and_counts_them() -> None:
    engine = Engine(limits=WriteLimits(entries=3))
    engine.store.stalled = {"put"}

    answers = [await engine.ask(f"question {number}") for number in range(5)]

    assert [answer.status for answer in answers] == [200] * 5
    assert engine.witness.dropped == 2
    statuses = [told(answer, b"cache-status") for answer in answers]
    assert ["; stored" in status for status in statuses] == [True] * 3 + [False] * 2
    assert "not-stored:queue-full" in statuses[-1]
    engine.store.gate.set()
    await engine.settled()
    assert len(engine.store.values) == 3
    await engine.ask("question 4")
    await engine.settled()
    assert len(engine.store.values) == 4, "there is room again"
    await engine.stop()


async def test_B53_the_queue_is_bounded_in_bytes_too() -> None:
    engine = Engine(limits=WriteLimits(bytes=len(COMPLETION) * 2))
    engine.store.stalled = {"put"}

    for number in range(4):
        await engine.ask(f"question {number}")

    assert engine.witness.dropped == 2
    engine.store.gate.set()
    await engine.settled()
    await engine.stop()


async def test_B53_a_later_answer_takes_the_place_of_one_that_waits() -> None:
    engine = Engine(limits=WriteLimits(entries=2))
    engine.store.stalled = {"put"}

    await engine.ask()
    await engine.store.reached["put"].wait()
    for _ in range(3):
        engine.clock.advance(61)  # the entry that waits is no longer fresh
        assert told(await engine.ask(), b"x-cache") == "MISS"

    assert len(engine.writes) == 2, "one under way, one that waits"
    assert engine.witness.dropped == 0
    engine.store.gate.set()
    await engine.settled()
    ((key, value),) = engine.store.values.items()
    assert decode(value, key).stored_at == engine.clock.wall()
    await engine.stop()


async def test_B53_a_stop_waits_for_the_queue_and_no_longer_than_its_grace(engine: Engine) -> None:
    engine.store.stalled = {"put"}
    for number in range(3):
        await engine.ask(f"question {number}")

    assert not await engine.writes.drain(0.01), "the store is stuck"
    engine.store.gate.set()

    assert await engine.writes.drain(5)
    assert len(engine.store.values) == 3


async def test_B53_writes_are_held_by_strong_references(engine: Engine) -> None:
    import gc  # noqa: PLC0415  # what this one test is about

    engine.store.stalled = {"put"}
    await engine.ask()
    gc.collect()
    engine.store.gate.set()
    await engine.settled()

    assert len(engine.store.values) == 1


async def test_B15_no_entry_outlives_its_lifetime_even_while_it_waits(engine: Engine) -> None:
    engine.store.stalled = {"put"}
    await engine.ask()
    assert told(await engine.ask(), b"x-cache") == "HIT"

    engine.clock.advance(RULE.ttl_seconds)

    assert told(await engine.ask(), b"x-cache") == "MISS"
    engine.store.gate.set()


async def test_B12_each_answer_is_told_once(engine: Engine) -> None:
    await engine.ask()
    await engine.ask()
    await engine.ask(temperature=0.1)

    assert [outcome.x_cache for outcome in engine.witness.outcomes] == [
        XCache.MISS,
        XCache.HIT,
        XCache.MISS,
    ]
