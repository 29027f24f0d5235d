"""Purges: one mark whatever it covers, dry runs that count, and a log that is down (B54)."""

import asyncio
import gc
import logging
import time
import tracemalloc
from typing import Any

import pytest

from proxy.core.marks import Verdict
from proxy.errors import PurgeIncomplete
from proxy.stores.base import Put
from tests.fakes import FakeClock
from tests.unit.engine.purges import PREFIX, DownLog, Parts, key_of

pytestmark = pytest.mark.anyio


async def some(parts: Parts) -> None:
    await parts.put(1, tags=("project:a",), tenant="search")
    await parts.put(2, tags=("project:b", "project:a"), model="gpt-4o-mini")
    await parts.put(3, rule="other", tags=("project:b",))
    await parts.put(4, tenant="search")


@pytest.mark.parametrize(
    ("members", "left"),
    [
        ({"tag": "project:a"}, {3, 4}),
        ({"tag": "project:none"}, {1, 2, 3, 4}),
        ({"model": "gpt-4o"}, {2}),
        ({"model": "gpt-4*"}, {1, 2, 3, 4}),
        ({"rule": "other"}, {1, 2, 4}),
        ({"tenant": "search"}, {2, 3}),
        ({"tenant": "search", "tag": "project:a"}, {2, 3, 4}),
        ({"endpoint": "chat"}, set()),
        ({"endpoint": "embeddings"}, {1, 2, 3, 4}),
        ({"key": f"{1:064x}"}, {2, 3, 4}),
        ({"key": key_of(4)}, {1, 2, 3}),
        ({"all": True}, set()),
    ],
)
async def test_B54_a_purge_takes_what_it_selects_and_a_dry_run_counts_just_that(
    members: dict[str, Any], left: set[int]
) -> None:
    parts = Parts()
    await some(parts)
    assert await parts.count(**members) == 4 - len(left)
    assert await parts.served() == {1, 2, 3, 4}
    report = await parts.purge(**members)
    assert report.number is not None
    assert await parts.served() == left
    assert await parts.count(**members) == 0


async def test_B54_age_spares_what_is_younger() -> None:
    parts = Parts()
    await parts.put(1, tags=("t",))
    parts.clock.advance(100)
    await parts.put(2, tags=("t",))
    parts.clock.advance(100)
    assert await parts.count(older_than_seconds=150) == 1
    assert await parts.count(older_than_seconds=100) == 1
    assert await parts.count(tag="t", older_than_seconds=0) == 2
    await parts.purge(older_than_seconds=150)
    assert await parts.served() == {2}
    await parts.put(3)
    assert await parts.served() == {2, 3}


async def test_B54_a_soft_purge_makes_stale_and_a_hard_one_still_counts_that() -> None:
    parts = Parts()
    entry = await parts.put(1, tags=("t",))
    assert await parts.count(tag="t", soft=True) == 1
    await parts.purge(tag="t", soft=True)
    assert parts.generations.verdict(entry) is Verdict.STALE
    assert await parts.count(tag="t", soft=True) == 0
    assert await parts.count(tag="t") == 1
    await parts.swept()
    assert await parts.held() == {1}


async def test_B54_what_expired_or_is_no_entry_does_not_count() -> None:
    parts = Parts()
    soon = parts.clock.wall() + 3600
    await parts.put(1)
    await parts.put(2, expires_at=parts.clock.wall() + 10)
    await parts.store.put_many(
        [
            Put(key_of(3), b"rubbish", soon),
            Put(key_of(4), b"MPXE\x01" + b"\xff" * 100, soon),
            Put(f"{PREFIX}lease:chat", b"1", soon),
            Put("other:v1:chat:shared:" + "0" * 64, b"1", soon),
        ]
    )
    parts.clock.advance(10)
    assert await parts.count(all=True) == 1
    assert len(parts.store.head_lengths) == 3, "other keys are not even looked at"


async def test_B54_a_dry_run_reads_the_heads_of_entries_alone() -> None:
    parts = Parts()
    await parts.put(1, payload=b"x" * 1_000_000, tags=("t",))
    await parts.put(2, tags=tuple(f"{number:03}" + "é" * 120 for number in range(64)))
    assert await parts.count(tag="t") == 1
    assert parts.store.head_lengths[:2] == [2048, 2048]
    assert len(parts.store.head_lengths) == 3
    assert await parts.count(tag="063" + "é" * 120) == 1


async def test_B54_a_dry_run_by_key_reads_no_other_entry() -> None:
    parts = Parts()
    for number in range(50):
        await parts.put(number)
    await parts.put(60, endpoint="embeddings")
    assert await parts.count(key=key_of(7)) == 1
    assert await parts.count(endpoint="embeddings") == 1
    assert len(parts.store.head_lengths) == 2


async def test_B54_dry_runs_take_turns_and_give_way_to_the_loop() -> None:
    parts = Parts()
    for number in range(1000):
        await parts.put(number)
    turns = 0
    done = asyncio.Event()

    async def live() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    living = asyncio.ensure_future(live())
    counts = await asyncio.gather(*(parts.count(all=True) for _ in range(3)))
    done.set()
    await living
    assert counts == [1000] * 3
    assert parts.store.most_scanning == 1
    assert turns >= 30


async def test_B54_a_real_purge_does_not_wait_for_a_dry_run() -> None:
    parts = Parts()
    for number in range(1000):
        await parts.put(number, tags=("t",))
    counting = asyncio.ensure_future(parts.count(tag="t"))
    await asyncio.sleep(0)
    await parts.purge(tag="t")
    assert not counting.done()
    assert await counting < 1000


async def test_B54_a_purge_of_100_000_entries_is_one_mark() -> None:
    """Answered in less than 10 ms, memory flat."""
    parts = Parts()
    now = parts.clock.wall()
    entry = await parts.put(0, tags=("t",))
    (value,) = await parts.store.get_many([entry.key])
    assert value is not None
    await parts.store.put_many([Put(key_of(i), value, now + 3600) for i in range(100_000)])
    gc.collect()
    tracemalloc.start()
    began = time.perf_counter()
    await parts.purge(tag="t")
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await parts.tasks.cancel()
    assert seconds < 0.010
    assert peak < 100_000
    assert parts.store.head_lengths == []


async def test_B54_a_purge_by_a_whole_key_deletes_it_at_once() -> None:
    parts = Parts()
    await parts.put(1)
    await parts.put(2)
    variant = await parts.put(1)
    await parts.store.put_many([Put(f"{variant.key}:2", b"v", parts.clock.wall() + 60)])
    report = await parts.purge(key=f"{key_of(1)}:2")
    assert report.matched == 2
    assert await parts.held() == {2}
    assert (await parts.purge(key=key_of(9))).matched == 0


@pytest.mark.parametrize(
    "members", [{"soft": True}, {"older_than_seconds": 60}, {"model": "other"}]
)
async def test_B54_a_key_with_more_said_is_not_deleted_outright(members: dict[str, Any]) -> None:
    parts = Parts()
    await parts.put(1)
    assert (await parts.purge(key=key_of(1), **members)).matched is None
    await parts.swept()
    assert await parts.held() == {1}


async def test_B54_a_log_that_is_down_is_told_and_the_purge_is_in_force_here() -> None:
    clock = FakeClock()
    log = DownLog(clock)
    parts = Parts(marks=log)
    await parts.put(1, tags=("t",))
    log.down = True
    with pytest.raises(PurgeIncomplete, match=r"in force in this process.*circuit is open"):
        await parts.purge(tag="t")
    assert await parts.served() == set()
    assert parts.counted.kinds == ["tag"]
    await parts.swept()
    assert await parts.held() == {1}, "what is not agreed upon is not deleted"
    await parts.tasks.cancel()


async def test_B54_a_count_that_fails_says_that_nothing_was_purged() -> None:
    parts = Parts()
    for number in range(500):
        await parts.put(number)
    parts.store.down_after = 150
    with pytest.raises(PurgeIncomplete, match="Nothing was purged") as caught:
        await parts.count(all=True)
    assert caught.value.error_code == "store_unavailable"
    parts.store.down_after = None
    assert await parts.count(all=True) == 500


async def test_B54_each_purge_is_one_line_and_one_count(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "magic_proxy.purges")
    parts = Parts()
    await parts.count(tag="t")
    report = await parts.purge(model="a\nb", soft=True)
    await parts.purge(tag="t", tenant="x")
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f'purge {report.number}: {{"soft":true,"model":"a\\nb"}}'
    assert len(lines) == 2
    assert parts.counted.kinds == ["model", "several"]
    await parts.tasks.cancel()


async def test_B54_a_report_says_what_was_done() -> None:
    parts = Parts()
    await parts.put(1, tags=("t",))
    report = await parts.purge(tag="t", older_than_seconds=0, soft=True)
    assert report.as_dict() == {
        "purged": {"tag": "t", "older_than_seconds": 0.0},
        "number": report.number,
        "matched": None,
        "soft": True,
        "dry_run": False,
    }
    dry = await parts.purge(all=True, dry_run=True)
    assert dry.as_dict() == {
        "purged": {"all": True},
        "number": None,
        "matched": 1,
        "soft": False,
        "dry_run": True,
    }
