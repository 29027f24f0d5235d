"""B30: `explain` tells each item's state, by the same look-up as a request's."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.outcome import XCache
from proxy.engine.explaining import Explained, explained
from tests.unit.engine.batch_kit import Worker

pytestmark = pytest.mark.anyio


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    await worker.stop()


async def explain(worker: Worker, *given: Any) -> Explained:
    plan, items = worker.plan(list(given))
    return await explained(
        plan.derivation,
        worker.entries,
        enabled=True,
        deliverable=True,
        key_prefix="p:",
        now=worker.clock.wall(),
        items=items,
    )


def states(told: Explained) -> list[Any]:
    items: Any = told.as_dict()["items"]
    return [item["state"] for item in items]


async def test_B30_each_item_is_a_hit_or_says_why_not(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    worker.clock.advance(40)
    await worker.ask(["c", "d"])
    worker.clock.advance(30)
    told = await explain(worker, "c", "x", "a", "c")
    assert states(told) == ["hit", "absent", "expired", "hit"]
    assert (told.verdict, told.reason) == (XCache.MISS, "partial:2/4")
    items: Any = told.derivation["items"]
    assert [item["ttl_seconds"] for item in items] == [30.0, None, -10.0, 30.0]
    assert [item["store_key"] for item in items] == worker.plan(["c", "x", "a", "c"])[1].store_keys(
        "p:"
    )


async def test_B30_a_batch_as_a_whole_has_no_key(worker: Worker) -> None:
    told = (await explain(worker, "a", "b")).as_dict()
    assert [told[name] for name in ("canonical", "digest", "store_key", "stored")] == [None] * 4
    assert told["reason"] == "absent"


async def test_B30_a_batch_of_hits_would_be_a_hit(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    told = await explain(worker, "b", "a")
    assert (told.verdict, told.reason, states(told)) == (XCache.HIT, None, ["hit", "hit"])


async def test_one_item_is_explained_as_any_request(worker: Worker) -> None:
    told = (await explain(worker, "a")).as_dict()
    assert "items" not in told
    assert told["store_key"] is not None


async def test_what_bypasses_the_cache_has_no_items(worker: Worker) -> None:
    plan, items = worker.plan(["a", "b"])
    told = await explained(
        replace(plan.derivation, key=None),
        worker.entries,
        enabled=False,
        deliverable=True,
        key_prefix="p:",
        now=0.0,
        items=items,
    )
    assert told.verdict is XCache.BYPASS
    assert "items" not in told.as_dict()
