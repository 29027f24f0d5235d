"""The frozen vectors: any change here is a change of the scheme, and needs a new scheme number."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.vectors.independent import VECTORS, expected
from tests.vectors.rules import derive_vector

Vector = dict[str, Any]

CASES: list[Vector] = json.loads(Path(VECTORS).read_text("utf-8"))
each = pytest.mark.parametrize("vector", CASES, ids=[case["id"] for case in CASES])


@each
def test_B1_key_is_that_of_the_frozen_vector(vector: Vector) -> None:
    derivation = derive_vector(vector)
    if derivation.key is None:
        assert derivation.reason is not None
        found = {"no_key": derivation.reason.value, "field": derivation.field}
    else:
        found = {
            "canonical": derivation.canonical.decode(),
            "digest": derivation.key.digest,
            "store_key": derivation.key.store_key("magic_proxy:cache:"),
        }
    assert found == vector["expected"]


@each
def test_B1_an_independent_derivation_comes_to_the_same(vector: Vector) -> None:
    assert expected(vector) == vector["expected"]


def _digests(*prefixes: str) -> set[str]:
    return {
        case["expected"].get("digest", "none") for case in CASES if case["id"].startswith(prefixes)
    }


@pytest.mark.parametrize(
    "prefixes",
    [
        ("number-one",),
        ("number-zero",),
        ("escapes-decoded", "escapes-literal"),
        ("sample-chat-other-order", "sample-chat-streamed", "sample-chat-ignored-fields"),
        ("null-member",),
    ],
)
def test_B2_spellings_of_one_request_share_a_digest(prefixes: tuple[str, ...]) -> None:
    assert len(_digests(*prefixes)) == 1


def test_B2_absent_and_null_are_different() -> None:
    assert len(_digests("null-member", "absent-member")) == 2
    assert len(_digests("sample-chat-absent-temp", "sample-chat-null-temp")) == 2


def test_every_id_is_unique() -> None:
    assert len({case["id"] for case in CASES}) == len(CASES) >= 40
