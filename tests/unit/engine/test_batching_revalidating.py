"""Batches whose items have grown stale serve at once, and are fetched anew beside (B15)."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.outcome import XCache
from proxy.core.selectors import Selector
from proxy.engine.base import Answer
from proxy.errors import NotCached, UpstreamUnreachable
from tests.unit.engine.batch_kit import RULE, Embedder, Worker, floats, packed, parsed
from tests.unit.engine.kit import told
from tests.unit.engine.upstreams import turns

pytestmark = pytest.mark.anyio

SWR = replace(RULE, stale_while_revalidate_seconds=300.0)
ITEMS = ["a", "bb", "a", "ccc"]
NO_STORE = (b"cache-control", b"no-store")


def vectors(answer: Answer) -> list[Any]:
    return [row["embedding"] for row in parsed(answer)["data"]]


async def aged(worker: Worker, seconds: float = 100.0) -> Worker:
    """With stored items that are stale by now, and an upstream that waits to be let go."""
    await worker.ask(ITEMS)
    await worker.settled()
    worker.clock.advance(seconds)
    worker.upstream.sent.clear()
    worker.upstream.gate = asyncio.Event()
    return worker


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = await aged(Worker(rule=SWR))
    yield worker
    await worker.stop()


async def refreshed(worker: Worker) -> None:
    """Let the upstream answer, and what it answers be stored."""
    assert worker.upstream.gate is not None
    worker.upstream.gate.set()
    await turns()
    await worker.settled()
    assert len(worker.refreshes) == 0


async def test_B15_stale_items_serve_at_once_and_are_fetched_once(worker: Worker) -> None:
    answers = [await worker.ask(ITEMS), await worker.ask(["ccc", "a"]), await worker.ask(ITEMS)]

    assert [vectors(answer) for answer in answers] == [
        [floats(packed(item)) for item in items] for items in (ITEMS, ["ccc", "a"], ITEMS)
    ]
    for answer in answers:
        assert (told(answer, b"x-cache"), told(answer, b"age")) == ("STALE", "100")
        assert told(answer, b"cache-status") == 'magic-proxy; hit; ttl=-40; detail="revalidating"'
        assert answer.repeatable is None
    outcome = worker.witness.outcomes[-1]
    assert outcome.x_cache is XCache.STALE
    assert (outcome.items, outcome.item_hits, outcome.billed) == (4, 4, None)
    await turns()
    assert (worker.upstream.sent, len(worker.refreshes)) == ([["a", "bb", "ccc"]], 1)

    await refreshed(worker)
    answer = await worker.ask(ITEMS)
    assert (told(answer, b"x-cache"), told(answer, b"age")) == ("HIT", "0")
    assert len(worker.upstream.sent) == 1


async def test_B15_the_refresh_is_told_as_such(worker: Worker) -> None:
    await worker.ask(ITEMS)
    await refreshed(worker)
    assert worker.witness.unattended == [("refresh", "stored")]


async def test_B15_only_what_nobody_fetches_yet_is_fetched(worker: Worker) -> None:
    await worker.ask(["a", "bb"])
    await worker.ask(ITEMS)
    await turns()
    assert worker.upstream.sent == [["a", "bb"], ["ccc"]]


async def test_B15_B30_with_one_new_item_the_batch_waits_and_gets_fresh_ones(
    worker: Worker,
) -> None:
    asked = asyncio.get_running_loop().create_task(worker.ask(["new", "a"]))
    await worker.upstream.reached.wait()
    await turns()
    assert not asked.done()
    assert worker.upstream.gate is not None
    worker.upstream.gate.set()
    answer = await asked
    assert worker.upstream.sent == [["new", "a"]]
    assert told(answer, b"x-cache") == "MISS"


async def test_B40_a_batch_that_needs_a_refreshed_item_waits_for_that_refresh(
    worker: Worker,
) -> None:
    await worker.ask(["a", "bb"])
    await turns()
    asked = asyncio.get_running_loop().create_task(worker.ask(["a", "new"]))
    await turns()
    assert worker.upstream.sent == [["a", "bb"], ["new"]]
    assert worker.upstream.gate is not None
    worker.upstream.gate.set()
    answer = await asked
    assert vectors(answer) == [floats(packed("a")), floats(packed("new"))]


async def test_B15_a_refresh_that_fails_leaves_the_old_ones_and_pauses(worker: Worker) -> None:
    worker.upstream.says = lambda _: UpstreamUnreachable("refused")
    await worker.ask(ITEMS)
    await refreshed(worker)
    assert worker.witness.unattended == [("refresh", "failed")]

    answer = await worker.ask(ITEMS)
    assert told(answer, b"x-cache") == "STALE"
    assert told(answer, b"cache-status") == "magic-proxy; hit; ttl=-40"
    assert len(worker.upstream.sent) == 1

    worker.clock.advance(1.5)
    worker.upstream.says = lambda _: None
    await worker.ask(ITEMS)
    await refreshed(worker)
    assert told(await worker.ask(ITEMS), b"x-cache") == "HIT"


async def test_B15_refreshes_of_batches_are_capped_and_counted() -> None:
    worker = await aged(Worker(rule=SWR, max_refreshes=1))
    await worker.ask(["a"] * 2)
    answer = await worker.ask(["bb"] * 2)
    assert told(answer, b"cache-status") == "magic-proxy; hit; ttl=-40"
    assert worker.refreshes.skipped == 1
    await turns()
    assert worker.upstream.sent == [["a"]]
    await worker.stop()


@pytest.mark.parametrize("said", [b"no-cache", b"max-age=1000"])
async def test_B13_who_takes_no_stale_items_waits_for_fresh_ones(
    said: bytes, worker: Worker
) -> None:
    assert worker.upstream.gate is not None
    worker.upstream.gate.set()
    answer = await worker.ask(ITEMS, (b"cache-control", said))
    assert told(answer, b"x-cache") == "MISS"


@pytest.mark.parametrize("said", [b"no-store", b"only-if-cached"])
async def test_B13_who_wants_nothing_stored_or_asked_gets_them_without_a_refresh(
    said: bytes, worker: Worker
) -> None:
    answer = await worker.ask(ITEMS, (b"cache-control", said))
    assert told(answer, b"cache-status") == "magic-proxy; hit; ttl=-40"
    await turns()
    assert worker.upstream.sent == []


async def test_B13_only_if_cached_is_refused_where_one_item_is_not_there(worker: Worker) -> None:
    with pytest.raises(NotCached):
        await worker.ask(["a", "new"], (b"cache-control", b"only-if-cached"))


async def test_B54_items_of_a_soft_purge_serve_while_they_are_renewed() -> None:
    worker = await aged(Worker(rule=SWR), 10.0)
    await worker.generations.add(Selector(), soft=True)
    assert told(await worker.ask(ITEMS), b"x-cache") == "STALE"
    await refreshed(worker)
    assert told(await worker.ask(ITEMS), b"x-cache") == "HIT"
    await worker.stop()


async def test_B54_a_purge_while_they_are_renewed_wins(worker: Worker) -> None:
    await worker.ask(ITEMS)
    await turns()
    await worker.generations.add(Selector())
    await refreshed(worker)
    assert told(await worker.ask(ITEMS), b"x-cache") == "MISS"


async def test_B15_popular_items_of_batches_are_refreshed_ahead() -> None:
    """At the end of their time and with an upstream that takes as long, it is certain."""
    worker = Worker(Embedder(), rule=replace(RULE, refresh_ahead=1.0))
    worker.upstream.gate = asyncio.Event()
    first = asyncio.get_running_loop().create_task(worker.ask(ITEMS))
    await worker.upstream.reached.wait()
    worker.clock.advance(5.0)  # so long it takes
    worker.upstream.gate.set()
    await first
    await worker.settled()
    worker.clock.advance(56.0)
    answer = await worker.ask(ITEMS)
    assert (told(answer, b"x-cache"), told(answer, b"age")) == ("HIT", "56")
    await turns()
    await worker.settled()
    assert worker.upstream.sent[1:] == [["a", "bb", "ccc"]]
    assert told(await worker.ask(ITEMS), b"age") == "0"
    await worker.stop()


async def test_B15_who_stores_nothing_refreshes_nothing_ahead() -> None:
    worker = Worker(rule=replace(RULE, refresh_ahead=1.0))
    await worker.ask(ITEMS)
    await worker.settled()
    worker.clock.advance(59.99)
    await worker.ask(ITEMS, NO_STORE)
    await turns()
    assert len(worker.upstream.sent) == 1
    await worker.stop()
