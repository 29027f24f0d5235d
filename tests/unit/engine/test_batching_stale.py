"""Batches whose items have grown stale: they serve where the upstream fails, and say so (B15)."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.outcome import XCache
from proxy.core.selectors import Selector
from proxy.engine.base import Answer
from proxy.errors import KeysExhausted, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tests.unit.engine.batch_kit import JSON, RULE, Embedder, Worker, floats, packed, parsed
from tests.unit.engine.kit import Said, told
from tests.unit.engine.upstreams import turns

pytestmark = pytest.mark.anyio

SIE = replace(RULE, stale_if_error_seconds=300.0)
ITEMS = ["a", "bb", "a", "ccc"]
FAILURES = [
    (UpstreamUnreachable("refused"), "upstream_unreachable"),
    (UpstreamTimeout("late"), "upstream_timeout"),
    (KeysExhausted("all rest", retry_after_seconds=9), "upstream_keys_exhausted"),
    (Said((b"{}",), status=503, headers=JSON), "upstream_failing"),
    (Said((b"{}",), status=429, headers=JSON), "upstream_failing"),
]


def vectors(answer: Answer) -> list[Any]:
    return [row["embedding"] for row in parsed(answer)["data"]]


def expected(items: list[str]) -> list[list[float]]:
    return [floats(packed(item)) for item in items]


async def aged(worker: Worker, seconds: float = 100.0) -> Worker:
    """With stored items that are stale by now."""
    await worker.ask(ITEMS)
    await worker.settled()
    worker.clock.advance(seconds)
    return worker


def failing(worker: Worker, failure: Said | UpstreamError) -> None:
    worker.upstream.says = lambda _: failure


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = await aged(Worker(rule=SIE))
    yield worker
    await worker.stop()


@pytest.mark.parametrize(("failure", "reason"), FAILURES, ids=str)
async def test_B15_B30_a_failing_upstream_is_told_with_the_stale_items(
    failure: Said | UpstreamError, reason: str, worker: Worker
) -> None:
    failing(worker, failure)
    answer = await worker.ask(ITEMS)
    assert answer.status == 200
    assert vectors(answer) == expected(ITEMS)
    assert parsed(answer)["usage"]["total_tokens"] == 7
    assert (told(answer, b"x-cache"), told(answer, b"age")) == ("STALE", "100")
    status = f"; fwd-status={failure.status}" if isinstance(failure, Said) else ""
    detail = f'detail="stale-if-error:{reason}"'
    assert told(answer, b"cache-status") == f"magic-proxy; fwd=stale{status}; ttl=-40; {detail}"
    outcome = worker.witness.outcomes[-1]
    assert outcome.x_cache is XCache.STALE
    assert (outcome.items, outcome.item_hits, outcome.items_collapsed) == (4, 0, 0)
    assert outcome.billed is not None
    assert outcome.billed.total_tokens == 0
    assert worker.witness.unattended == []
    assert (len(worker.fetches), answer.repeatable) == (0, None)


async def test_B15_fresh_and_stale_items_serve_together(worker: Worker) -> None:
    await worker.ask(["fresh", "ones"])
    failing(worker, UpstreamUnreachable("refused"))
    answer = await worker.ask(["fresh", "a"])
    assert vectors(answer) == expected(["fresh", "a"])
    assert told(answer, b"x-cache") == "STALE"
    assert worker.witness.outcomes[-1].item_hits == 1


async def test_B15_B33_stale_items_serve_in_the_other_encoding(worker: Worker) -> None:
    failing(worker, UpstreamUnreachable("refused"))
    answer = await worker.ask(ITEMS, encoding_format="base64")
    assert told(answer, b"x-cache") == "STALE"
    assert isinstance(vectors(answer)[0], str)


async def test_B15_with_one_item_that_has_no_stale_entry_the_failure_is_told(
    worker: Worker,
) -> None:
    failing(worker, Said((b'{"error":{}}',), status=503, headers=JSON))
    answer = await worker.ask(["a", "new"])
    assert (answer.status, answer.body) == (503, b'{"error":{}}')
    failing(worker, UpstreamUnreachable("refused"))
    with pytest.raises(UpstreamUnreachable):
        await worker.ask(["a", "new"])


async def test_B15_the_requests_own_fault_passes(worker: Worker) -> None:
    failing(worker, Said((b'{"error":{}}',), status=400, headers=JSON))
    assert (await worker.ask(ITEMS)).status == 400


@pytest.mark.parametrize("said", [b"no-cache", b"max-age=1000"])
async def test_B13_who_does_not_take_stale_items_gets_the_error(
    said: bytes, worker: Worker
) -> None:
    failing(worker, UpstreamUnreachable("refused"))
    with pytest.raises(UpstreamUnreachable):
        await worker.ask(ITEMS, (b"cache-control", said))


async def test_B54_what_was_purged_serves_no_more_and_what_became_stale_does(
    worker: Worker,
) -> None:
    failing(worker, UpstreamUnreachable("refused"))
    await worker.generations.add(Selector(), soft=True)
    assert told(await worker.ask(ITEMS), b"x-cache") == "STALE"
    await worker.generations.add(Selector())
    with pytest.raises(UpstreamUnreachable):
        await worker.ask(ITEMS)


async def test_B15_an_overlong_error_that_is_replaced_is_let_go(worker: Worker) -> None:
    said = Said((b"x" * 600_000,) * 4, status=500, headers=JSON)
    failing(worker, said)
    answer = await worker.ask(ITEMS)
    assert told(answer, b"x-cache") == "STALE"
    assert said.closed


async def test_B15_all_parts_of_a_split_batch_are_served_stale_where_one_fails() -> None:
    worker = await aged(Worker(Embedder(max_batch=1), rule=SIE))
    worker.upstream.says = lambda items: (
        Said((b"{}",), status=500, headers=JSON) if items == ["bb"] else None
    )
    answer = await worker.ask(ITEMS)
    assert vectors(answer) == expected(ITEMS)
    assert told(answer, b"x-cache") == "STALE"
    await turns()
    await worker.stop()
