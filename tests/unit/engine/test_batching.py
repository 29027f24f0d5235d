"""What a batch sends upstream, and what its client gets."""

import base64
import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
import pytest

from proxy.core.outcome import XCache
from proxy.engine import item_asking
from proxy.engine.write_behind import WriteLimits
from proxy.errors import NotCached, UpstreamProtocolError, UpstreamUnreachable
from tests.unit.engine.batch_kit import (
    JSON,
    RULE,
    Embedder,
    Worker,
    floats,
    packed,
    parsed,
    told_usage,
)
from tests.unit.engine.kit import FaultyStore, Said, told

pytestmark = pytest.mark.anyio

NO_CACHE = (b"cache-control", b"no-cache")
NO_STORE = (b"cache-control", b"no-store")
ONLY_IF_CACHED = (b"cache-control", b"only-if-cached")


@pytest.fixture
async def worker() -> AsyncIterator[Worker]:
    worker = Worker()
    yield worker
    await worker.stop()


def vectors(answer: Any) -> list[Any]:
    return [row["embedding"] for row in parsed(answer)["data"]]


def expected(*items: Any) -> list[list[float]]:
    return [floats(packed(item)) for item in items]


# ---- what goes upstream ----


async def test_B30_only_what_is_missing_goes_upstream_each_once(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    answer = await worker.ask(["c", "a", "d", "c", "b"])
    assert worker.upstream.sent == [["a", "b"], ["c", "d"]]
    assert vectors(answer) == expected("c", "a", "d", "c", "b")


async def test_B30_B34_token_arrays_are_items_too(worker: Worker) -> None:
    await worker.ask([[1, 2], [3]])
    answer = await worker.ask([[3], [1], [1, 2], [3]])
    assert worker.upstream.sent == [[[1, 2], [3]], [[1]]]
    assert vectors(answer) == expected([3], [1], [1, 2], [3])


async def test_B61_a_batch_of_misses_passes_byte_for_byte_both_ways(worker: Worker) -> None:
    worker.upstream.changed = lambda answer: {**answer, "extra": [1.5], "usage": {"cost": 0.1}}
    answer = await worker.ask(["a", "b"], user="u")
    assert worker.upstream.bodies == [b'{"model":"m","input":["a","b"],"user":"u"}']
    assert answer.body == b"".join(chunk for chunk in worker.upstream.answers[0].chunks)  # type: ignore[misc]


async def test_B30_of_a_composed_request_only_the_input_differs(worker: Worker) -> None:
    await worker.ask(["a", "b"], user="u")
    await worker.ask(["b", "é", "é"], user="u")
    assert worker.upstream.bodies[1] == '{"model":"m","input":["é"],"user":"u"}'.encode()


async def test_B30_the_upstream_is_asked_in_the_encoding_of_the_client(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    await worker.ask(["b", "c"], encoding_format="base64")
    assert orjson.loads(worker.upstream.bodies[1])["encoding_format"] == "base64"


async def test_B30_a_batch_above_what_the_upstream_takes_is_split_and_joined() -> None:
    worker = Worker(Embedder(max_batch=2))
    items = [f"item {number}" for number in range(11)]
    answer = await worker.ask(items)
    assert [len(part) for part in worker.upstream.sent] == [2, 2, 2, 2, 2, 1]
    assert worker.upstream.items == items
    assert worker.upstream.most_at_once <= 4
    assert vectors(answer) == expected(*items)
    tokens = sum(map(len, items))
    assert parsed(answer)["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    await worker.stop()


# ---- what comes back ----


async def test_B31_rows_out_of_order_are_sorted_and_stored_right(worker: Worker) -> None:
    worker.upstream.order = lambda rows: rows[::-1]
    assert vectors(await worker.ask(["a", "b", "c"])) == expected("a", "b", "c")
    assert vectors(await worker.ask(["c", "b"])) == expected("c", "b")
    assert len(worker.upstream.sent) == 1


async def test_B32_usage_is_what_the_whole_input_costs(worker: Worker) -> None:
    worker.upstream.changed = lambda answer: {**answer, "usage": {"total_tokens": 10, "price": 0.5}}
    first = await worker.ask(["a", "bbb"])
    assert parsed(first)["usage"] == {"total_tokens": 10, "price": 0.5}
    assert parsed(await worker.ask(["a", "bbb"]))["usage"] == {"total_tokens": 10}
    assert parsed(await worker.ask(["a", "a", "bbb"]))["usage"] == {"total_tokens": 13}
    assert worker.witness.outcomes[0].billed == worker.witness.outcomes[0].usage
    assert worker.witness.outcomes[2].billed is None


async def test_B32_without_usage_from_upstream_there_is_none(worker: Worker) -> None:
    worker.upstream.changed = lambda answer: {k: v for k, v in answer.items() if k != "usage"}
    assert "usage" not in parsed(await worker.ask(["a", "b", "a"]))
    assert worker.witness.outcomes[0].usage is None


async def test_B33_one_entry_serves_both_encodings(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    answer = await worker.ask(["b", "a"], encoding_format="base64")
    assert vectors(answer) == [base64.b64encode(packed(item)).decode() for item in ("b", "a")]
    assert len(worker.upstream.sent) == 1


async def test_B33_what_the_upstream_gives_in_another_encoding_is_converted_where_composed(
    worker: Worker,
) -> None:
    worker.upstream.encoding = "float"
    passed = await worker.ask(["a", "b"], encoding_format="base64")
    assert vectors(passed) == expected("a", "b")
    composed = await worker.ask(["c", "a"], encoding_format="base64")
    assert vectors(composed) == [base64.b64encode(packed(item)).decode() for item in ("c", "a")]


async def test_B30_the_answer_to_one_missing_item_is_stored_as_it_came(worker: Worker) -> None:
    said = b' {"data": [{"index":0, "embedding":[1.50, 2e0]}], "x":1, "model":"m"}'
    await worker.ask(["a", "b"])
    worker.upstream.says = lambda _: Said((said,), headers=JSON)
    answer = await worker.ask(["a", "c"])
    entry = await worker.entries.get(worker.plan(["c", "d"])[1].store_keys("p:")[0])
    assert getattr(entry, "payload", None) == said
    assert b'{"index":1, "embedding":[1.50, 2e0]}' in bytes(answer.body)  # type: ignore[arg-type]


async def test_B31_unknown_members_of_rows_and_answers_are_kept(worker: Worker) -> None:
    worker.upstream.changed = lambda answer: {
        **answer,
        "data": [{**row, "flavour": row["index"]} for row in answer["data"]],
        "novel": {"a": None},
    }
    await worker.ask(["a", "b"])
    answer = parsed(await worker.ask(["b", "a"]))
    assert [row["flavour"] for row in answer["data"]] == [1, 0]
    assert answer["novel"] == {"a": None}


async def test_B19_a_coded_answer_is_stored_decoded_and_joined_plain(worker: Worker) -> None:
    def coded(items: list[Any]) -> Said:
        body = worker.upstream.answer({}, items)
        return Said((gzip.compress(body),), headers=(*JSON, (b"Content-Encoding", b"gzip")))

    worker.upstream.says = coded
    accepts = (b"accept-encoding", b"gzip")
    first = await worker.ask(["a", "b"], accepts)
    assert told(first, b"Content-Encoding") == "gzip"
    assert isinstance(first.body, bytes)
    assert orjson.loads(gzip.decompress(first.body))["data"][1]["embedding"] == expected("b")[0]
    composed = await worker.ask(["b", "c"], accepts)
    assert not any(name.lower() == b"content-encoding" for name, _ in composed.headers)
    assert vectors(composed) == expected("b", "c")


async def test_B19_who_takes_no_plain_bytes_gets_gzip(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    answer = await worker.ask(["b", "a"], (b"accept-encoding", b"gzip, identity;q=0"))
    assert told(answer, b"content-encoding") == "gzip"
    assert isinstance(answer.body, bytes)
    assert len(orjson.loads(gzip.decompress(answer.body))["data"]) == 2


async def test_B10_B12_a_batch_of_hits_says_so(worker: Worker) -> None:
    worker.upstream.headers = (*JSON, (b"OpenAI-Version", b"1"), (b"x-request-id", b"up"))
    await worker.ask(["a", "b"])
    worker.clock.advance(10)
    await worker.ask(["c", "d"])
    worker.clock.advance(5)
    answer = await worker.ask(["a", "d"])
    assert told(answer, b"x-cache") == "HIT"
    assert told(answer, b"cache-status") == "magic-proxy; hit; ttl=45"
    assert told(answer, b"age") == "15"
    assert told(answer, b"openai-version") == "1"
    assert told(answer, b"x-request-id") == "req_1"
    outcome = worker.witness.outcomes[-1]
    assert (outcome.items, outcome.item_hits, outcome.items_collapsed) == (2, 2, 0)


async def test_B12_a_partial_hit_says_how_much_was_one(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    answer = await worker.ask(["a", "c", "c", "d"])
    assert told(answer, b"x-cache") == "MISS"
    assert told(answer, b"cache-status") == (
        'magic-proxy; fwd=miss; fwd-status=200; ttl=60; stored; detail="partial:1/4"'
    )
    outcome = worker.witness.outcomes[-1]
    assert (outcome.items, outcome.item_hits, outcome.items_collapsed) == (4, 1, 1)


async def test_B12_the_key_of_a_batch_is_not_shown_for_it_has_none(worker: Worker) -> None:
    plan, items = worker.plan(["a", "b"])
    answer = await worker.batches.answer(plan, items, with_key=True)
    assert "key=" not in told(answer, b"cache-status")


# ---- errors ----

ERROR = Said(
    (b'{"error":{"message":"slow down"}}',),
    status=429,
    headers=(*JSON, (b"retry-after", b"7")),
)


@pytest.mark.parametrize("stored", [[], ["a", "b"]], ids=["own-body", "composed"])
async def test_B65_an_error_of_the_only_request_is_passed_on(
    stored: list[str], worker: Worker
) -> None:
    if stored:
        await worker.ask(stored)
    worker.upstream.says = lambda _: ERROR
    answer = await worker.ask(["a", "c"])
    assert (answer.status, answer.body) == (429, ERROR.chunks[0])
    assert told(answer, b"retry-after") == "7"
    outcome = worker.witness.outcomes[-1]
    assert (outcome.not_stored, outcome.stored, outcome.forward_status) == ("status", False, 429)


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda answer: {**answer, "data": answer["data"][1:]}, "item-count"),
        (lambda answer: {**answer, "data": [answer["data"][0]] * 2}, "item-count"),
        (lambda answer: {**answer, "data": [{**answer["data"][0], "index": 7}]}, "item-count"),
        (lambda _: {"error": {"message": "no"}}, "error-body"),
        (lambda _: [], "unparsable"),
    ],
)
async def test_B31_a_wrong_answer_is_an_error_for_a_composed_request_and_stores_nothing(
    bend: Any, reason: str, worker: Worker
) -> None:
    await worker.ask(["a", "b"])
    worker.upstream.changed = bend
    with pytest.raises(UpstreamProtocolError, match=reason):
        await worker.ask(["a", "c", "d"])
    passed = await worker.ask(["e", "f"])
    assert passed.status == 200
    assert worker.witness.outcomes[-1].not_stored == reason
    await worker.settled()
    assert len(worker.store.values) == 2


async def test_B31_mixed_encodings_are_no_answer(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    worker.upstream.changed = lambda answer: {
        **answer,
        "data": [answer["data"][0], {**answer["data"][1], "embedding": "AACAPw=="}],
    }
    with pytest.raises(UpstreamProtocolError, match="unparsable"):
        await worker.ask(["a", "c", "d"])


async def test_B33_what_has_no_form_in_the_encoding_is_an_error_where_composed(
    worker: Worker,
) -> None:
    worker.upstream.encoding = "float"
    await worker.ask(["a", "b"], encoding_format="base64")
    worker.upstream.changed = lambda answer: {
        **answer,
        "data": [{**row, "embedding": [1e39]} for row in answer["data"]],
    }
    with pytest.raises(UpstreamProtocolError, match="encoding"):
        await worker.ask(["a", "c"], encoding_format="base64")


async def test_an_upstream_that_can_not_be_reached_is_an_error(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    worker.upstream.says = lambda _: UpstreamUnreachable("refused")
    with pytest.raises(UpstreamUnreachable):
        await worker.ask(["a", "c"])
    assert len(worker.fetches) == 0


@pytest.mark.parametrize("failure", [ERROR, UpstreamUnreachable("refused")], ids=["429", "down"])
async def test_B31_of_split_requests_the_first_error_wins_and_good_parts_are_stored(
    failure: Any,
) -> None:
    worker = Worker(Embedder(max_batch=2))
    worker.upstream.says = lambda items: failure if "c" in items else None
    if isinstance(failure, Said):
        assert (await worker.ask(list("abcdef"))).status == 429
        assert told_usage(worker) == 4
    else:
        with pytest.raises(UpstreamUnreachable):
            await worker.ask(list("abcdef"))
        await worker.fetching.drain(5)
        assert worker.witness.unattended == [("finish", "stored")]
    worker.upstream.sent.clear()
    worker.upstream.says = lambda _: None
    assert vectors(await worker.ask(list("abcdef"))) == expected(*"abcdef")
    assert worker.upstream.sent == [["c", "d"]]
    await worker.stop()


async def test_an_answer_that_is_no_json_passes_as_it_comes(worker: Worker) -> None:
    lines = Said(
        (b"data: 1\n\n", b"data: 2\n\n"), headers=((b"Content-Type", b"text/event-stream"),)
    )
    worker.upstream.says = lambda _: lines
    answer = await worker.ask(["a", "b"])
    assert not isinstance(answer.body, bytes)
    assert worker.witness.outcomes == []
    assert [chunk async for chunk in answer.body] == list(lines.chunks)
    await answer.body.aclose()
    (outcome,) = worker.witness.outcomes
    assert (outcome.complete, outcome.not_stored) == (True, "content-type")
    assert lines.closed


async def test_B60_an_answer_too_long_to_be_held_passes_as_it_comes(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_asking, "_LONGEST_ANSWER_BYTES", 10)
    chunks = (b'{"data":', b" " * 10, b"[]}")
    said = Said(chunks, headers=JSON)
    worker.upstream.says = lambda _: said
    answer = await worker.ask(["a", "b"])
    assert not isinstance(answer.body, bytes)
    assert b"".join([chunk async for chunk in answer.body]) == b"".join(chunks)
    await answer.body.aclose()
    assert worker.witness.outcomes[-1].not_stored == "too-large"
    assert said.closed


async def test_B42_a_long_answer_is_let_go_with_its_client(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_asking, "_LONGEST_ANSWER_BYTES", 10)
    said = Said((b" " * 11, UpstreamUnreachable("reset")), headers=JSON)
    worker.upstream.says = lambda _: said
    answer = await worker.ask(["a", "b"])
    assert not isinstance(answer.body, bytes)
    with pytest.raises(UpstreamUnreachable):
        [chunk async for chunk in answer.body]
    await answer.body.aclose()
    assert [outcome.complete for outcome in worker.witness.outcomes] == [False]
    assert said.closed


async def test_B60_too_long_an_answer_to_a_composed_request_is_an_error(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await worker.ask(["a", "b"])
    monkeypatch.setattr(item_asking, "_LONGEST_ANSWER_BYTES", 10)
    with pytest.raises(UpstreamProtocolError, match="too-large"):
        await worker.ask(["a", "c"])
    assert all(said.closed for said in worker.upstream.answers)


# ---- what the client and the rule want ----


async def test_B13_no_cache_asks_for_everything_anew_and_stores_it(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    worker.clock.advance(10)
    answer = await worker.ask(["a", "b", "a"], NO_CACHE)
    assert worker.upstream.sent == [["a", "b"], ["a", "b"]]
    assert told(answer, b"cache-status").startswith("magic-proxy; fwd=request; fwd-status=200")
    assert told(await worker.ask(["a", "b"]), b"age") == "0"
    assert worker.entries.version(next(iter(worker.store.values))) > 0


async def test_B13_no_store_takes_hits_and_stores_nothing(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    answer = await worker.ask(["a", "c"], NO_STORE)
    assert vectors(answer) == expected("a", "c")
    assert worker.witness.outcomes[-1].not_stored == "client-no-store"
    await worker.ask(["c", "d"], NO_STORE)
    assert worker.upstream.sent[1:] == [["c"], ["c", "d"]]


async def test_B13_only_if_cached_is_answered_where_all_are_hits(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    assert vectors(await worker.ask(["b", "a"], ONLY_IF_CACHED)) == expected("b", "a")
    with pytest.raises(NotCached, match="none for 1 of the 2 inputs: absent"):
        await worker.ask(["a", "c"], ONLY_IF_CACHED)
    assert len(worker.upstream.sent) == 1


async def test_B13_max_age_counts_for_each_item(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    worker.clock.advance(20)
    await worker.ask(["c", "d"])
    worker.clock.advance(5)
    answer = await worker.ask(["a", "c"], (b"cache-control", b"max-age=10"))
    assert worker.upstream.sent[-1] == ["a"]
    assert 'detail="partial:1/2"' in told(answer, b"cache-status")


async def test_B15_items_past_their_freshness_are_asked_for_again(worker: Worker) -> None:
    await worker.ask(["a", "b"])
    worker.clock.advance(50)
    await worker.ask(["c", "d"])
    worker.clock.advance(20)
    await worker.ask(["a", "c"])
    assert worker.upstream.sent[-1] == ["a"]


async def test_B15_jitter_lets_items_of_one_batch_expire_at_different_times() -> None:
    worker = Worker(rule=replace(RULE, ttl_jitter=0.5))
    _, items = worker.plan([str(number) for number in range(20)])
    await worker.ask(list(items.values))
    found = await worker.entries.get_batch(items.store_keys("p:"))
    ends = {getattr(entry, "fresh_until", None) for entry in found}
    assert len(ends) == 20
    await worker.stop()


async def test_B14_an_item_above_the_rules_bound_is_answered_and_not_stored() -> None:
    worker = Worker(rule=replace(RULE, max_entry_bytes=180))
    worker.upstream.changed = lambda answer: {
        **answer,
        "data": [
            {**row, "embedding": row["embedding"] * (1 + 9 * row["index"])}
            for row in answer["data"]
        ],
    }
    answer = await worker.ask(["a", "b"])
    assert [len(vector) for vector in vectors(answer)] == [3, 30]
    assert worker.witness.outcomes[-1].not_stored == "too-large"
    worker.upstream.changed = lambda answer: answer
    await worker.ask(["a", "b"])
    assert worker.upstream.sent[-1] == ["b"]
    await worker.stop()


async def test_B14_with_no_lifetime_nothing_is_stored() -> None:
    worker = Worker(rule=replace(RULE, honor_upstream=True))
    worker.upstream.headers = (*JSON, (b"cache-control", b"no-store"))
    for _ in range(2):
        assert vectors(await worker.ask(["a", "b"])) == expected("a", "b")
    assert len(worker.upstream.sent) == 2
    assert worker.witness.outcomes[-1].not_stored == "no-lifetime"
    await worker.stop()


# ---- the store ----


async def test_B50_a_store_that_is_down_costs_a_miss() -> None:
    store = FaultyStore()
    store.down = {"get", "put"}
    worker = Worker(store=store)
    answer = await worker.ask(["a", "b"])
    assert 'detail="store-down"' in told(answer, b"cache-status")
    await worker.settled()
    assert worker.witness.failed == ["get", "put"]
    assert vectors(await worker.ask(["b", "a"])) == expected("b", "a")
    await worker.stop()


async def test_B51_an_item_that_can_not_be_read_is_asked_for_again(worker: Worker) -> None:
    await worker.ask(["a", "b", "c"])
    await worker.settled()
    key = worker.plan(["b", "x"])[1].store_keys("p:")[0]
    worker.store.values[key] = b"rubbish"
    assert vectors(await worker.ask(["a", "b", "c"])) == expected("a", "b", "c")
    assert worker.upstream.sent[-1] == ["b"]
    assert worker.witness.unreadable == 1


async def test_an_entry_that_has_no_form_in_the_encoding_is_asked_for_again(
    worker: Worker,
) -> None:
    worker.upstream.changed = lambda answer: {
        **answer,
        "data": [{**row, "embedding": [1e39, 1.0]} for row in answer["data"]],
    }
    await worker.ask(["a", "b"])
    worker.upstream.changed = lambda answer: answer
    answer = await worker.ask(["a", "b"], encoding_format="base64")
    assert 'detail="form"' in told(answer, b"cache-status")
    assert worker.witness.outcomes[-1].x_cache is XCache.MISS


async def test_B53_a_full_queue_drops_entries_and_the_client_is_answered() -> None:
    store = FaultyStore()
    store.stalled = {"put"}
    worker = Worker(store=store, limits=WriteLimits(entries=2))
    assert vectors(await worker.ask(["a", "b", "c"])) == expected("a", "b", "c")
    assert worker.witness.outcomes[-1].not_stored == "queue-full"
    assert worker.witness.dropped == 1
    await worker.stop()
