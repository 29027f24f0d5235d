"""B30, B34: the items of a request, and their keys."""

import json
from typing import Any

import pytest

from proxy.core.items import derive_items, items_of, split_input
from proxy.core.matching import RuleSet
from proxy.core.wire import Endpoint
from tests.vectors.independent import ITEMS, expected_items
from tests.vectors.rules import derivation_of, derive_vector, rule_of

Vector = dict[str, Any]
CASES: list[Vector] = json.loads(ITEMS.read_text("utf-8"))
each = pytest.mark.parametrize("vector", CASES, ids=[case["id"] for case in CASES])
PREFIX = "magic_proxy:cache:"
RULE = rule_of({"include_in_key": ["input"]})


@each
def test_B30_the_keys_of_items_are_those_of_the_frozen_vector(vector: Vector) -> None:
    items = items_of(derive_vector(vector))
    keys = None if items is None else items.store_keys(PREFIX)
    wanted = vector["expected"]
    assert keys == (None if wanted is None else [item["store_key"] for item in wanted])


@each
def test_B30_an_independent_derivation_comes_to_the_same(vector: Vector) -> None:
    assert expected_items(vector) == vector["expected"]


@pytest.mark.parametrize(
    ("given", "items"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
    ids=["text", "texts", "tokens", "token-arrays"],
)
def test_B34_every_shape_of_input_has_items(given: Any, items: list[Any]) -> None:
    assert list(split_input(given) or ()) == items


@pytest.mark.parametrize("given", [None, [], {}, 1, [[]], [["a"]], ["a", 1], [True], [1.5], [None]])
def test_B34_what_has_another_shape_has_none(given: Any) -> None:
    assert split_input(given) is None


def test_B30_items_that_are_normalized_to_the_same_share_a_key() -> None:
    rule = rule_of(
        {
            "include_in_key": ["input"],
            "normalize": [{"path": "input", "pattern": r"\s+", "replacement": " "}],
        }
    )
    derivation = derivation_of(b'{"input":["a  b","a b","c"]}', rule, endpoint=Endpoint.EMBEDDINGS)
    items = items_of(derivation)
    assert items is not None
    assert items.keys[0] == items.keys[1] != items.keys[2]
    assert items.values == ["a  b", "a b", "c"]


@pytest.mark.parametrize("body", [b'{"input":["a"]}', b'{"input":[[1,2]]}'])
def test_B30_a_request_for_one_item_is_derived_as_if_it_named_that_alone(body: bytes) -> None:
    request = derivation_of(body, RULE, endpoint=Endpoint.EMBEDDINGS).request
    bare = derivation_of(
        body.replace(b":[", b":").replace(b"]}", b"}"), RULE, endpoint=Endpoint.EMBEDDINGS
    )
    derivation, items = derive_items(request, RuleSet([RULE]))
    assert (derivation.key, derivation.canonical) == (bare.key, bare.canonical)
    assert derivation.request is request
    assert items is not None
    assert len(items) == 1


def test_B30_a_batch_keeps_its_own_derivation() -> None:
    whole = derivation_of(b'{"input":["a","b"]}', RULE, endpoint=Endpoint.EMBEDDINGS)
    derivation, items = derive_items(whole.request, whole.rules)
    assert derivation == whole
    assert items is not None
    assert whole.key not in items.keys


def test_B30_a_chat_request_has_no_items() -> None:
    chat = derivation_of(b'{"input":["a","b"]}', RULE, endpoint=Endpoint.CHAT)
    assert chat.key is not None
    assert items_of(chat) is None
    assert derive_items(chat.request, chat.rules) == (chat, None)
