"""Batches at the same time: each item is asked for once, and no client's end is another's loss."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from proxy.core.outcome import MissReason
from proxy.core.rules import Coalescing, OnDisconnect
from proxy.core.selectors import Selector
from proxy.engine.base import Answer
from proxy.engine.batch import Batch
from proxy.engine.item_asking import Asking
from proxy.engine.write_behind import WriteLimits
from proxy.errors import ClientDeadline, UpstreamUnreachable
from tests.unit.engine.batch_kit import JSON, RULE, Embedder, Worker, floats, packed, parsed
from tests.unit.engine.kit import FaultyStore, Said, told

pytestmark = pytest.mark.anyio

NO_CACHE = (b"cache-control", b"no-cache")
NO_STORE = (b"cache-control", b"no-store")
FAILED = Said((b"{}",), status=500, headers=JSON)


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    worker.upstream.gate = asyncio.Event()
    yield worker
    await worker.stop()


def vectors(answer: Answer) -> list[Any]:
    return [row["embedding"] for row in parsed(answer)["data"]]


def expected(*items: Any) -> list[list[float]]:
    return [floats(packed(item)) for item in items]


async def turns(count: int = 20) -> None:
    """Let everything go as far as it can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def under_way(
    worker: Worker, *asked: list[str], headers: tuple[tuple[bytes, bytes], ...] = ()
) -> list[asyncio.Task[Answer]]:
    """Requests that have each come to where they wait, one after another."""
    tasks = []
    for items in asked:
        tasks.append(asyncio.create_task(worker.ask(items, *headers)))
        await turns()
    return tasks


def go_on(worker: Worker) -> None:
    assert worker.upstream.gate is not None
    worker.upstream.gate.set()


async def test_B30_B40_items_of_concurrent_batches_are_asked_for_once(worker: Worker) -> None:
    asking = await under_way(worker, ["a", "b"], ["b", "c", "a"], ["c", "b"])
    go_on(worker)
    answers = await asyncio.gather(*asking)
    assert worker.upstream.sent == [["a", "b"], ["c"]]
    assert [vectors(answer) for answer in answers] == [
        expected("a", "b"),
        expected("b", "c", "a"),
        expected("c", "b"),
    ]
    assert told(answers[2], b"cache-status") == 'magic-proxy; fwd=miss; collapsed; detail="absent"'
    second, third = worker.witness.outcomes[1:]
    assert (second.collapsed, second.items_collapsed) == (False, 2)
    assert (third.collapsed, third.items_collapsed, third.item_hits) == (True, 2, 0)
    assert third.billed is not None
    assert third.billed.total_tokens == 0
    assert len(worker.fetches) == 0


async def test_B40_two_batches_that_want_each_others_items_both_finish(worker: Worker) -> None:
    asking = await under_way(worker, ["a", "b"], ["c", "a"], ["b", "d", "c"])
    go_on(worker)
    await asyncio.wait_for(asyncio.gather(*asking), 5)
    assert sorted(worker.upstream.items) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("failure", [FAILED, UpstreamUnreachable("refused")], ids=["500", "down"])
async def test_B41_whoever_waited_for_items_that_did_not_come_asks_itself_once(
    failure: Any, worker: Worker
) -> None:
    asking = await under_way(worker, ["a", "b"], ["b", "c"], ["b", "d"])
    worker.upstream.says = lambda items: failure if items == ["a", "b"] else None
    go_on(worker)
    first, second, third = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, UpstreamUnreachable) or (
        isinstance(first, Answer) and first.status == 500
    )
    assert isinstance(second, Answer)
    assert isinstance(third, Answer)
    assert (vectors(second), vectors(third)) == (expected("b", "c"), expected("b", "d"))
    assert worker.upstream.sent == [["a", "b"], ["c"], ["d"], ["b"], ["b"]]
    assert worker.witness.outcomes[-1].items_collapsed == 0


async def test_B41_what_could_not_be_stored_for_all_is_asked_for_by_each(worker: Worker) -> None:
    await worker.stop()
    worker = Worker(rule=replace(RULE, honor_upstream=True))
    worker.upstream.gate = asyncio.Event()
    worker.upstream.headers = (*JSON, (b"cache-control", b"no-store"))
    asking = await under_way(worker, ["a", "b"], ["b", "a"])
    go_on(worker)
    first, second = await asyncio.gather(*asking)
    assert (vectors(first), vectors(second)) == (expected("a", "b"), expected("b", "a"))
    assert worker.upstream.sent == [["a", "b"], ["b", "a"]]
    await worker.stop()


async def test_B40_what_the_queue_had_no_room_for_still_serves_those_who_wait() -> None:
    worker = Worker(limits=WriteLimits(entries=0))
    worker.upstream.gate = asyncio.Event()
    asking = await under_way(worker, ["a", "b"], ["b", "a"])
    go_on(worker)
    await asyncio.gather(*asking)
    assert worker.upstream.sent == [["a", "b"]]
    await worker.stop()


async def test_B40_no_cache_requests_neither_join_nor_are_joined(worker: Worker) -> None:
    asking = await under_way(worker, ["a", "b"])
    asking += await under_way(worker, ["a", "b"], headers=(NO_CACHE,))
    asking += await under_way(worker, ["b", "a"])
    go_on(worker)
    await asyncio.gather(*asking)
    assert worker.upstream.sent == [["a", "b"], ["a", "b"]]


async def test_B13_no_store_requests_join_and_are_not_joined(worker: Worker) -> None:
    asking = await under_way(worker, ["a", "b"], headers=(NO_STORE,))
    asking += await under_way(worker, ["a", "b"])
    asking += await under_way(worker, ["b", "a"], headers=(NO_STORE,))
    go_on(worker)
    await asyncio.gather(*asking)
    assert worker.upstream.sent == [["a", "b"], ["a", "b"]]


async def test_B40_a_rule_can_switch_it_off() -> None:
    worker = Worker(rule=replace(RULE, coalesce=Coalescing.OFF))
    worker.upstream.gate = asyncio.Event()
    asking = await under_way(worker, ["a", "b"], ["a", "b"])
    go_on(worker)
    await asyncio.gather(*asking)
    assert worker.upstream.sent == [["a", "b"], ["a", "b"]]
    await worker.stop()


@pytest.fixture
async def keeping_nothing() -> AsyncIterator[Worker]:
    worker = Worker(rule=replace(RULE, ttl_seconds=0.0))
    worker.upstream.gate = asyncio.Event()
    yield worker
    await worker.stop()


async def test_B40_items_that_are_kept_for_no_time_are_waited_for_by_nobody(
    keeping_nothing: Worker,
) -> None:
    asking = await under_way(keeping_nothing, ["a", "b"], ["b", "a"])
    assert keeping_nothing.upstream.sent == [["a", "b"], ["b", "a"]]
    go_on(keeping_nothing)
    await asyncio.gather(*asking)


async def test_B42_nor_are_they_fetched_for_nobody(keeping_nothing: Worker) -> None:
    (only,) = await under_way(keeping_nothing, ["a", "b"])
    only.cancel()
    await turns()
    assert keeping_nothing.upstream.under_way == 0
    assert len(keeping_nothing.fetching) == 0


async def test_B54_a_batch_does_not_join_what_began_before_a_purge(worker: Worker) -> None:
    asking = await under_way(worker, ["a", "b"])
    await worker.generations.add(Selector())
    asking += await under_way(worker, ["b", "a"], ["a", "b"])
    go_on(worker)
    await asyncio.gather(*asking)
    assert worker.upstream.sent == [["a", "b"], ["b", "a"]]
    await worker.ask(["a", "b"])
    assert len(worker.upstream.sent) == 2
    assert len(worker.fetches) == 0


async def test_B30_a_look_up_that_missed_what_landed_meanwhile_does_not_ask_again() -> None:
    store = FaultyStore()
    worker = Worker(store=store)
    worker.upstream.gate = asyncio.Event()
    asking = await under_way(worker, ["a", "b"])
    store.stalled = {"get", "put"}
    asking += await under_way(worker, ["b", "c"])  # its look-up is on its way
    go_on(worker)
    await asking[0]
    store.gate.set()
    assert vectors(await asking[1]) == expected("b", "c")
    assert worker.upstream.sent == [["a", "b"], ["c"]]
    await worker.stop()


async def test_B13_a_look_up_does_not_get_what_may_not_be_stored() -> None:
    store = FaultyStore()
    worker = Worker(store=store)
    worker.upstream.gate = asyncio.Event()
    asking = await under_way(worker, ["a", "b", "a"], headers=(NO_STORE,))
    store.stalled = {"get"}
    asking += await under_way(worker, ["b", "a"])  # its look-up is on its way
    go_on(worker)
    await asking[0]
    store.gate.set()
    await asking[1]
    assert worker.upstream.sent == [["a", "b"], ["b", "a"]]
    await worker.stop()


# ---- clients that go away ----


async def test_B41_the_others_get_their_items_when_whoever_began_goes_away(worker: Worker) -> None:
    first, second = await under_way(worker, ["a", "b"], ["b", "a"])
    first.cancel()
    await turns()
    go_on(worker)
    assert vectors(await second) == expected("b", "a")
    assert worker.upstream.sent == [["a", "b"]]
    assert worker.witness.unattended == [("finish", "stored")]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_B42_with_nobody_waiting_it_is_finished_and_stored(worker: Worker) -> None:
    (only,) = await under_way(worker, ["a", "b"])
    only.cancel()
    await turns()
    go_on(worker)
    await worker.fetching.drain(5)
    assert worker.witness.unattended == [("finish", "stored")]
    assert vectors(await worker.ask(["b", "a"])) == expected("b", "a")
    assert len(worker.upstream.sent) == 1


async def test_B42_what_fails_with_nobody_waiting_is_told(worker: Worker) -> None:
    (only,) = await under_way(worker, ["a", "b"])
    only.cancel()
    worker.upstream.says = lambda _: UpstreamUnreachable("refused")
    go_on(worker)
    await worker.fetching.drain(5)
    assert worker.witness.unattended == [("finish", "failed")]


async def test_B42_parts_that_were_not_sent_yet_are_not_sent_for_nobody() -> None:
    worker = Worker(Embedder(max_batch=1))
    worker.upstream.gate = asyncio.Event()
    (only,) = await under_way(worker, list("abcdefgh"))
    assert len(worker.upstream.sent) == 4
    only.cancel()
    await turns()
    go_on(worker)
    await worker.fetching.drain(5)
    assert worker.upstream.items == list("abcd")
    assert len(worker.fetches) == 0
    await worker.stop()


@pytest.fixture
async def cancelling() -> AsyncIterator[Worker]:
    worker = Worker(rule=replace(RULE, on_disconnect=OnDisconnect.CANCEL))
    worker.upstream.gate = asyncio.Event()
    yield worker
    await worker.stop()


async def test_B42_a_rule_can_cancel_what_nobody_waits_for(cancelling: Worker) -> None:
    (only,) = await under_way(cancelling, ["a", "b"])
    only.cancel()
    await turns()
    assert cancelling.upstream.under_way == 0
    assert (len(cancelling.fetches), len(cancelling.fetching)) == (0, 0)


async def test_B41_but_not_what_somebody_else_waits_for(cancelling: Worker) -> None:
    first, second, third = await under_way(cancelling, ["a", "b"], ["b", "c"], ["b", "d"])
    first.cancel()
    third.cancel()
    await turns()
    assert cancelling.upstream.under_way == 2
    go_on(cancelling)
    assert vectors(await second) == expected("b", "c")
    assert cancelling.upstream.sent == [["a", "b"], ["c"], ["d"]]


async def test_B42_a_rule_that_cancels_still_stores_the_good_parts_of_a_failure() -> None:
    rule = replace(RULE, on_disconnect=OnDisconnect.CANCEL)
    worker = Worker(Embedder(max_batch=1), rule=rule)
    gate = asyncio.Event()

    async def later(chain: Any, outgoing: Any) -> Any:
        if b'"b"' in outgoing.body:
            await gate.wait()
        return await send(chain, outgoing)

    send = worker.upstream.send
    worker.upstream.send = later  # type: ignore[method-assign]
    worker.upstream.says = lambda items: FAILED if items == ["a"] else None
    assert (await worker.ask(["a", "b"])).status == 500
    gate.set()
    await worker.fetching.drain(5)
    worker.upstream.sent.clear()
    worker.upstream.says = lambda _: None
    await worker.ask(["a", "b"])
    assert worker.upstream.sent == [["a"]]
    await worker.stop()


@pytest.mark.parametrize("on_disconnect", OnDisconnect)
@pytest.mark.parametrize("max_batch", [None, 1])
async def test_B42_a_client_may_go_away_at_any_moment(
    on_disconnect: OnDisconnect, max_batch: int | None
) -> None:
    """After every single turn of the loop: nothing is left behind, and the next one is served."""
    for turn in range(40):
        worker = Worker(
            Embedder(max_batch=max_batch), rule=replace(RULE, on_disconnect=on_disconnect)
        )
        worker.upstream.order = lambda rows: rows[::-1]
        leaving = asyncio.create_task(worker.ask(["a", "b", "a", "c"]))
        staying = asyncio.create_task(worker.ask(["c", "d", "b"]))
        await turns(turn)
        leaving.cancel()
        assert vectors(await staying) == expected("c", "d", "b")
        await asyncio.gather(leaving, return_exceptions=True)
        await worker.fetching.drain(5)
        assert len(worker.fetches) == 0
        assert all(said.closed for said in worker.upstream.answers)
        assert vectors(await worker.ask(["a", "d"])) == expected("a", "d")
        assert worker.upstream.under_way == 0
        await worker.stop()


@pytest.mark.parametrize("max_batch", [None, 1])
async def test_B42_a_cancelled_request_is_closed_wherever_it_was(max_batch: int | None) -> None:
    rule = replace(RULE, on_disconnect=OnDisconnect.CANCEL)
    for turn in range(30):
        worker = Worker(Embedder(max_batch=max_batch), rule=rule)
        only = asyncio.create_task(worker.ask(["a", "b"]))
        await turns(turn)
        only.cancel()
        await asyncio.gather(only, return_exceptions=True)
        await turns()
        assert (len(worker.fetches), len(worker.fetching)) == (0, 0)
        assert all(said.closed for said in worker.upstream.answers)
        await worker.stop()


async def test_B42_an_answer_too_long_to_be_held_is_not_held_for_nobody(worker: Worker) -> None:
    long = Said((b" " * 2_000_000,), status=500, headers=JSON)
    worker.upstream.says = lambda _: long
    (only,) = await under_way(worker, ["a", "b"])
    only.cancel()
    await turns()
    go_on(worker)
    await worker.fetching.drain(5)
    assert long.closed


async def test_B42_of_two_such_answers_the_one_that_nobody_gets_is_closed() -> None:
    worker = Worker(Embedder(max_batch=1))
    first, second = (
        Said((b" " * 2_000_000,), status=500, headers=JSON),
        Said((b" " * 2_000_000,), status=500, headers=JSON),
    )
    worker.upstream.says = lambda items: first if items == ["a"] else second
    answer = await worker.ask(["a", "b"])
    await worker.fetching.drain(5)
    assert not isinstance(answer.body, bytes)
    assert (first.closed > 0, second.closed > 0) == (False, True)
    await answer.body.aclose()
    assert first.closed
    await worker.stop()


async def test_B44_a_fetch_that_never_took_its_first_step_leaves_nothing(worker: Worker) -> None:
    plan, items = worker.plan(["a", "b"])
    batch = Batch(plan, items, items.store_keys("p:"), with_key=False)
    batch.decide(batch.distinct, [MissReason.ABSENT] * 2, 0.0)
    wants = [batch.want(key) for key in batch.distinct]
    asking = Asking(worker.upstream, worker.clock)
    fetch = worker.fetches.start(asking, plan, wants, whole=True, joinable=True)
    assert len(worker.fetches) == 2
    await worker.fetching.cancel()
    assert len(worker.fetches) == 0
    assert await fetch.landed(batch.keys[0]) is None


async def test_B44_what_is_under_way_ends_with_the_worker(worker: Worker) -> None:
    asking = await under_way(worker, ["a", "b"], ["b", "c"])
    await worker.fetching.cancel()
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(result, Exception) for result in results)
    assert len(worker.fetches) == 0


async def test_B42_a_client_whose_own_deadline_is_over_has_gone() -> None:
    worker = Worker(rule=replace(RULE, on_disconnect=OnDisconnect.CANCEL))
    worker.upstream.gate = asyncio.Event()
    (asked,) = await under_way(worker, ["a", "bb"], headers=((b"x-request-timeout", b"20ms"),))
    with pytest.raises(ClientDeadline):
        await asked
    await turns()
    assert (worker.upstream.under_way, len(worker.fetches)) == (0, 0)
    await worker.stop()
