"""Batches answer what single requests would, whatever is stored and whatever the upstream does.

Invariants, for every mask of hits and misses, duplicates, order of the upstream's rows, encoding and
shape of input: each position has its own index and its item's vector, `usage` is what all positions
cost, only what is missing goes upstream and each of it once, and item keys are those of `derive`.
"""

import asyncio
import base64
import json
import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.items import items_of
from proxy.core.wire import Endpoint
from proxy.engine.base import Answer
from tests.unit.engine.batch_kit import Embedder, Row, Worker, cost, packed, parsed, told_usage
from tests.vectors.rules import derivation_of, rule_of

texts = st.text(st.characters(codec="utf-8"), max_size=6)
tokens = st.lists(st.integers(0, 100_000), min_size=1, max_size=4)
encodings = st.sampled_from(["float", "base64", None])


@st.composite
def batches(draw: st.DrawFn) -> list[Any]:
    """Inputs, some of them more than once."""
    pool = draw(st.lists(draw(st.sampled_from([texts, tokens])), min_size=1, max_size=8))
    return draw(st.lists(st.sampled_from(pool), min_size=2, max_size=12))


def vectors(answer: dict[str, Any]) -> list[bytes]:
    """The vectors as binary32, in whichever encoding they are."""
    return [
        base64.b64decode(row["embedding"])
        if isinstance(row["embedding"], str)
        else np.array(row["embedding"], np.float32).astype("<f4").tobytes()
        for row in answer["data"]
    ]


def distinct(items: list[Any]) -> list[Any]:
    return [item for place, item in enumerate(items) if item not in items[:place]]


def check(answer: Answer, items: list[Any], encoding: str | None) -> None:
    """The answer is the one that these items, in this order, must get."""
    body = parsed(answer)
    assert answer.status == 200
    assert body["object"] == "list"
    assert body["model"] == "m-1"
    assert [row["index"] for row in body["data"]] == list(range(len(items)))
    assert {row["object"] for row in body["data"]} == {"embedding"}
    assert vectors(body) == [packed(item) for item in items]
    wanted = str if encoding == "base64" else list
    assert {type(row["embedding"]) for row in body["data"]} == {wanted}
    total = sum(map(cost, items))
    assert body["usage"] == {"prompt_tokens": total, "total_tokens": total}


def asked_with(encoding: str | None) -> dict[str, Any]:
    return {} if encoding is None else {"encoding_format": encoding}


@settings(max_examples=200)
@given(batches(), st.data())
def test_B30_B31_B32_B33_B34_every_mask_of_hits_and_misses(items: list[Any], data: Any) -> None:
    stored = data.draw(st.lists(st.sampled_from(items), max_size=6), label="stored")
    first, second = data.draw(encodings, label="first"), data.draw(encodings, label="second")
    seed = data.draw(st.integers(0, 2**32), label="order")
    max_batch = data.draw(st.sampled_from([None, 1, 2, 5]), label="max_batch")

    async def run() -> None:
        upstream = Embedder(max_batch=max_batch)
        upstream.order = lambda rows: shuffled(rows, seed)
        worker = Worker(upstream)
        try:
            if stored:
                check(await worker.ask(stored, **asked_with(first)), stored, first)
            before = distinct(stored)
            assert distinct(upstream.items) == upstream.items
            assert sorted(map(str, upstream.items)) == sorted(map(str, before))
            if data.draw(st.booleans(), label="written"):
                await worker.settled()
            check(await worker.ask(items, **asked_with(second)), items, second)
            missing = [item for item in distinct(items) if item not in before]
            assert sorted(map(str, upstream.items[len(before) :])) == sorted(map(str, missing))
            check(await worker.ask(items, **asked_with(first)), items, first)
            assert len(upstream.items) == len(before) + len(missing)
            assert len(worker.fetches) == 0
            last = worker.witness.outcomes[-1]
            assert (last.items, last.item_hits, last.items_collapsed) == (len(items),) * 2 + (0,)
            assert told_usage(worker) == sum(map(cost, before + missing))
        finally:
            await worker.stop()

    asyncio.run(run())


def shuffled(rows: list[Row], seed: int) -> list[Row]:
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)
    return mixed


@settings(max_examples=50)
@given(st.lists(batches(), min_size=2, max_size=4), st.data())
def test_B30_B40_overlapping_batches_at_once_ask_for_each_item_once(
    requests: list[list[Any]], data: Any
) -> None:
    async def run() -> None:
        upstream = Embedder(max_batch=data.draw(st.sampled_from([None, 2]), label="max_batch"))
        worker = Worker(upstream)
        upstream.gate = asyncio.Event()
        asking = [asyncio.create_task(worker.ask(items)) for items in requests]
        for _ in range(data.draw(st.integers(0, 30), label="turns")):
            await asyncio.sleep(0)
        upstream.gate.set()
        try:
            for items, answer in zip(requests, await asyncio.gather(*asking), strict=True):
                check(answer, items, None)
            everything = distinct([item for items in requests for item in items])
            assert sorted(map(str, upstream.items)) == sorted(map(str, everything))
            assert told_usage(worker) == sum(map(cost, everything))
        finally:
            await worker.stop()

    asyncio.run(run())


rules = st.sampled_from(
    [
        {"include_in_key": ["input"], "unlisted_fields": "ignore"},
        {"include_in_key": ["*"]},
        {"include_in_key": ["*"], "exclude_from_key": ["user", "meta.a"]},
        {"include_in_key": ["input", "meta.a", "zone"], "unlisted_fields": "ignore"},
        {
            "include_in_key": ["*"],
            "normalize": [
                {"path": "*", "pattern": "[aeiou]", "replacement": ""},
                {"path": "input", "pattern": r"\s+", "replacement": " "},
                {"path": "meta.a", "pattern": "x", "replacement": "y"},
            ],
        },
    ]
)
values = st.one_of(
    texts, st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.none()
)
around = st.dictionaries(
    st.sampled_from(["dimensions", "user", "zone", "a", "input2", "inpu", "é"]), values, max_size=4
)


@given(
    batches() | st.lists(st.lists(st.integers(0, 2**70), min_size=1), min_size=2),
    rules,
    around,
    st.dictionaries(st.sampled_from("ab"), values),
    texts,
)
def test_B30_an_items_key_is_that_of_the_request_for_it_alone(
    items: list[Any], rule: dict[str, Any], others: dict[str, Any], meta: Any, model: str
) -> None:
    def derived(given: Any) -> Any:
        body = {**others, "input": given, "meta": meta}
        raw = json.dumps(body, allow_nan=False).encode()
        return derivation_of(
            raw, rule_of(rule), endpoint=Endpoint.EMBEDDINGS, model=model, scope="s1"
        )

    derivation = derived(items)
    found = items_of(derivation)
    if derivation.key is None:
        assert found is None
        return
    assert found is not None
    alone = [derived(item) for item in items]
    assert list(found.keys) == [one.key for one in alone]
    assert found.store_keys("p:") == [one.key.store_key("p:") for one in alone]
    assert list(found.values) == items
