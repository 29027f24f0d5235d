"""The frozen vectors: any change here is a change of the scheme, and needs a new scheme number."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from proxy.core.canonical import canonical_json, parse_body
from tests.vectors.independent import VECTORS, expected, write_number
from tests.vectors.rules import derive_vector

SPECIFICATION = VECTORS.parents[2] / "docs" / "keys.md"
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


EXAMPLE = re.compile(r"<!-- vector: (.*?) -->\n```json\n(.*?)\n```\n(.*?)(?=\n### |\Z)", re.DOTALL)
NUMBERS = re.compile(r"^\| `([-0-9.e]+)` \| `([-0-9.e]+)` \|", re.MULTILINE)


def test_B1_the_worked_examples_of_the_specification_are_vectors() -> None:
    by_id = {case["id"]: case for case in CASES}
    examples = EXAMPLE.findall(SPECIFICATION.read_text("utf-8"))
    assert len(examples) == 4
    for name, request, results in examples:
        assert request == by_id[name]["request"]
        assert f"\n{by_id[name]['expected']['canonical']}\n" in results
        assert f"\n{by_id[name]['expected']['store_key']}\n" in results


def test_B2_the_number_table_of_the_specification_holds() -> None:
    table = NUMBERS.findall(SPECIFICATION.read_text("utf-8"))
    assert len(table) == 8
    for token, written in table:
        assert canonical_json(parse_body(b'{"x":%s}' % token.encode()).fields["x"]) == (
            written.encode()
        )
        assert write_number(token) == written
