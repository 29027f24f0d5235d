"""Several answers to one request: how many, whose turn it is, and where each is kept."""

from collections import Counter
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.entry import Entry, Form
from proxy.core.key import CacheKey
from proxy.core.marks import Marks, Verdict
from proxy.core.selectors import Mark, Selector
from proxy.core.variants import Turns, to_fill, variant_count
from proxy.core.wire import Endpoint
from tests.vectors.rules import derivation_of, rule_of

PLAIN = rule_of({"name": "r", "include_in_key": ["*"]})
RULE = replace(PLAIN, variants=3)
KEY = CacheKey(1, Endpoint.CHAT, "shared", "a" * 64)


def body(**members: object) -> bytes:
    return orjson.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "a"}], "input": "a", **members}
    )


@pytest.mark.parametrize(
    ("members", "count"),
    [
        ({}, 3),
        ({"temperature": None}, 3),
        ({"temperature": 0.7}, 3),
        ({"temperature": 0.0001}, 3),
        ({"temperature": 2}, 3),
        ({"temperature": 0}, 1),
        ({"temperature": 0.0}, 1),
        ({"temperature": -0.0}, 1),
        ({"temperature": -1}, 1),
        # Not what the API takes; nothing is known of what it would do.
        ({"temperature": "0.7"}, 1),
        ({"temperature": [1]}, 1),
    ],
)
def test_B15_several_answers_are_collected_where_chance_is_asked_for(
    members: dict[str, object], count: int
) -> None:
    assert variant_count(derivation_of(body(**members), RULE)) == count
    pair = replace(PLAIN, variants=2)
    assert variant_count(derivation_of(body(**members), pair)) == min(count, 2)
    assert variant_count(derivation_of(body(**members), PLAIN)) == 1


def test_B15_numbers_of_any_length_are_a_temperature() -> None:
    long = b'{"model":"m","messages":[],"temperature":' + b"9" * 1_000 + b"}"

    assert variant_count(derivation_of(long, RULE)) == 3


def test_B15_vectors_have_one_answer() -> None:
    assert variant_count(derivation_of(body(), RULE, endpoint=Endpoint.EMBEDDINGS)) == 1


def test_B15_without_a_rule_there_is_nothing_to_collect() -> None:
    assert variant_count(derivation_of(body())) == 1


def test_B15_turns_count_for_each_key_by_itself() -> None:
    turns = Turns()

    assert [turns.next("a") for _ in range(3)] == [0, 1, 2]
    assert [turns.next("b"), turns.next("a"), turns.next("b")] == [0, 3, 1]


def test_B56_of_many_keys_the_one_not_asked_for_the_longest_is_forgotten() -> None:
    turns = Turns()
    turns.next("asked again")
    turns.next("once")
    for number in range(4_094):
        turns.next(str(number))
    assert turns.next("asked again") == 1, "all of them have their place"

    turns.next("one too many")

    assert turns.next("asked again") == 2
    assert turns.next("once") == 0
    for number in range(10_000):
        turns.next(str(number))
    assert len(turns._turns) == 4_096


@pytest.mark.parametrize(
    ("missing", "under_way", "turn", "filled"),
    [
        ([0, 1, 2], [False, False, False], 0, 0),
        ([0, 1, 2], [False, False, False], 5, 0),
        ([0, 1, 2], [True, False, False], 0, 1),
        ([0, 1, 2], [True, True, False], 4, 2),
        ([0, 1, 2], [True, True, True], 3, 0),
        ([0, 1, 2], [True, True, True], 4, 1),
        ([0, 1, 2], [True, True, True], 5, 2),
        ([2], [False], 7, 2),
        ([1, 2], [True, True], 4, 1),
        ([1, 2], [True, True], 5, 2),
        ([0, 2], [False, True], 1, 0),
    ],
)
def test_B40_what_nobody_asks_for_is_asked_for_first(
    missing: list[int], under_way: list[bool], turn: int, filled: int
) -> None:
    assert to_fill(missing, under_way, turn) == filled


@given(st.sets(st.integers(0, 9), min_size=1).map(sorted), st.integers(0, 99))
def test_B40_a_crowd_is_spread_over_all_that_is_under_way(missing: list[int], start: int) -> None:
    joined = Counter(
        to_fill(missing, [True] * len(missing), start + turn) for turn in range(5 * len(missing))
    )

    assert joined == dict.fromkeys(missing, 5)


def test_B3_each_variant_has_a_store_key_of_its_own_and_all_have_one_key() -> None:
    stored = [KEY.store_key("p:", variant) for variant in range(3)]

    assert stored[0] == KEY.store_key("p:") == "p:v1:chat:shared:" + "a" * 64
    assert stored[1:] == [stored[0] + ":1", stored[0] + ":2"]
    assert [CacheKey.parse(each, "p:") for each in stored] == [KEY] * 3


def entry(variant: int, digest: str = "a") -> Entry:
    return Entry(
        key=replace(KEY, digest=digest * 64).store_key("p:", variant),
        model="m",
        rule="r",
        stored_at=1.0,
        fresh_until=2.0,
        expires_at=2.0,
        form=Form.JSON,
        status=200,
        headers=(),
        usage=None,
        payload=b"{}",
    )


@pytest.mark.parametrize("soft", [False, True])
def test_B54_a_purge_of_a_key_is_one_of_all_its_variants(soft: bool) -> None:
    marks = Marks()
    marks.add(Mark(1, Selector(digest="a" * 64), soft))

    verdict = Verdict.STALE if soft else Verdict.GONE
    assert [marks.verdict(entry(variant)) for variant in (0, 1, 2, 10)] == [verdict] * 4
    assert [marks.verdict(entry(variant, "b")) for variant in (0, 1)] == [Verdict.LIVE] * 2
