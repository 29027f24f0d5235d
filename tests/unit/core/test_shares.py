"""B32: what an upstream counted for a batch, split over its items so that it adds up."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.entry import Usage
from proxy.core.shares import (
    added,
    added_usage,
    counts_in,
    spared_usage,
    split_counts,
    split_number,
)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_B32_the_parts_add_up_exactly(count: int, weights: list[int]) -> None:
    parts = split_number(count, weights)
    assert sum(parts) == count
    assert len(parts) == len(weights)
    assert min(parts) >= 0


@given(st.integers(0, 10_000), st.lists(st.integers(1, 500), min_size=1, max_size=30))
def test_B32_every_item_costs_something_where_there_is_enough(
    count: int, weights: list[int]
) -> None:
    parts = split_number(count, weights)
    assert min(parts) >= 1 or count < len(weights)


@given(st.integers(1, 10_000), st.lists(st.integers(1, 500), min_size=2, max_size=30))
def test_B32_who_weighs_more_costs_no_less(count: int, weights: list[int]) -> None:
    parts = split_number(count, weights)
    by_weight = [part for _, part in sorted(zip(weights, parts, strict=True))]
    assert by_weight == sorted(by_weight)


@pytest.mark.parametrize(
    ("count", "weights", "parts"),
    [
        (10, [1, 1], [5, 5]),
        (3, [1, 1], [2, 1]),
        (100, [1, 1, 98], [1, 1, 98]),
        (2, [5, 3, 9], [1, 0, 1]),
        (4, [0, 0], [2, 2]),
        (0, [3, 4], [0, 0]),
    ],
)
def test_B32_by_largest_remainder(count: int, weights: list[int], parts: list[int]) -> None:
    assert split_number(count, weights) == parts


def test_B32_token_arrays_cost_what_they_are_long_where_that_fits() -> None:
    counts = {"prompt_tokens": 6, "total_tokens": 6}
    assert split_counts(counts, [[1], [2, 3], [4, 5, 6]]) == [
        {"prompt_tokens": 1, "total_tokens": 1},
        {"prompt_tokens": 2, "total_tokens": 2},
        {"prompt_tokens": 3, "total_tokens": 3},
    ]


def test_B32_texts_weigh_what_they_take_in_utf_8() -> None:
    parts = split_counts({"total_tokens": 8}, ["äöü", "abc"])
    assert parts == [{"total_tokens": 5}, {"total_tokens": 3}]


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 3, "total_tokens": 3}, {"prompt_tokens": 3, "total_tokens": 3}),
        ({"total_tokens": 3, "cost": 0.1, "details": {"a": 1}, "x": None}, {"total_tokens": 3}),
        ({"prompt_tokens": True, "total_tokens": -1}, {}),
        ({"prompt_tokens": 2**64 - 1, "total_tokens": 3}, {"total_tokens": 3}),
        ({}, {}),
        (None, None),
        ([], None),
    ],
)
def test_B32_only_whole_numbers_are_counts(usage: Any, counts: Any) -> None:
    assert counts_in(usage) == counts


def test_B32_a_sum_with_an_unknown_part_is_unknown() -> None:
    assert added([{"total_tokens": 1}, None]) is None
    assert added([{"total_tokens": 1}, {"total_tokens": 2}]) == {"total_tokens": 3}
    assert added([{"a": 1, "b": 1}, {"b": 2, "c": 3}]) == {"b": 3}


def test_usage_is_added_and_what_was_spared_is_never_negative() -> None:
    assert added_usage([None, None]) is None
    assert added_usage([Usage(1, 0, 1), None, Usage(2, 0, 2)]) == Usage(3, 0, 3)
    assert spared_usage(Usage(5, 0, 5), Usage(2, 0, 2)) == Usage(3, 0, 3)
    assert spared_usage(Usage(0, 0, 5), Usage(2, 0, 2)) == Usage(0, 0, 3)
