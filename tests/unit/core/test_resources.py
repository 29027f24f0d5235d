"""Which paths are resources, what their keys are, and what a write makes out of date."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proxy.core.entry import EntryMeta
from proxy.core.key import CacheKey, make_scope
from proxy.core.marks import Marks, Verdict
from proxy.core.resources import (
    PathPattern,
    Resource,
    ResourceSet,
    accepts_json,
    derive_resource,
    segments,
    tags_of_path,
    varies_beyond,
)
from proxy.core.rules import Rule
from proxy.core.selectors import Mark, Selector

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "vectors" / "resources.json").read_text()
)
RULE = Rule(name="r", model_names=(), include_in_key=(), ttl_seconds=60.0)


def resources(*patterns: str) -> ResourceSet:
    return ResourceSet([Resource(RULE, tuple(map(PathPattern.parse, patterns)))])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_B3_keys_are_those_of_the_frozen_vectors(vector: dict[str, Any]) -> None:
    resource = Resource(RULE, (), tuple(name.encode() for name in vector["vary"]))
    headers = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in vector["headers"])
    scope = make_scope(**vector["scope"])
    derivation = derive_resource(resource, vector["path"], headers, scope)
    assert derivation.canonical.decode() == vector["canonical"]
    assert derivation.key is not None
    store_key = derivation.key.store_key("p:")
    assert store_key == vector["store_key"]
    assert CacheKey.parse(store_key, "p:") == derivation.key


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("/v1/models", "/v1/models", True),
        ("/v1/models", "/v1/models/", True),
        ("/v1/models", "/v1/models/a", False),
        ("/v1/assistants/*", "/v1/assistants/a", True),
        ("/v1/assistants/*", "/v1/assistants", False),
        ("/v1/assistants/*", "/v1/assistants/a/b", False),
        ("/v1/assistants/*", "/v1/%61ssistants/a", True),
        ("/v1/threads/*/messages", "/v1/threads/t/messages", True),
        ("/v1/threads/*/messages", "/v1/threads/t/runs", False),
        ("/v1/models/**", "/v1/models", False),
        ("/v1/models/**", "/v1/models/org/name", True),
        ("/v1/models/**", "/v1/models/org%2Fname", True),
        ("/v1/**", "/v1/" + "a/" * 20, False),
    ],
)
def test_a_pattern_stands_for_paths(pattern: str, path: str, fits: bool) -> None:
    assert (resources(pattern).find(path) is not None) is fits


@pytest.mark.parametrize(
    "text",
    ["", "v1/models", "/v1", "/v1/", "/v2/models", "/v1//a", "/v1/a*", "/v1/**/a", "/v1/a?b", "/v1/%61"],
)  # fmt: skip
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must|stands"):
        PathPattern.parse(text)


def test_the_first_resource_that_fits_counts() -> None:
    first, second = (Resource(RULE, (PathPattern.parse(p),)) for p in ("/v1/a/*", "/v1/**"))
    both = ResourceSet([first, second])
    assert (both.find("/v1/a/b"), both.find("/v1/b")) == (first, second)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_a_read_makes_nothing_out_of_date(method: str) -> None:
    assert resources("/v1/**").outdated_by(method, "/v1/a") == ()


def test_a_write_where_nothing_is_cached_costs_no_purge() -> None:
    known = resources("/v1/models", "/v1/models/**", "/v1/threads/*/messages")
    assert known.outdated_by("POST", "/v1/files") == ()
    assert known.outdated_by("DELETE", "/v1/files/f") == ()
    assert known.outdated_by("POST", "/v1/threads") == ()
    assert known.outdated_by("DELETE", "/v1/threads/t") != ()
    assert known.outdated_by("POST", "/v1/" + "a/" * 20) == ()


def test_a_write_is_looked_at_wherever_something_may_be_cached() -> None:
    known = resources("/v1/models", "/v1/*")
    assert known.outdated_by("POST", "/v1/files") != ()
    assert known.outdated_by("POST", "/v1/models") != ()
    assert resources("/v1/**").outdated_by("POST", "/v1/files/f") != ()
    assert resources("/v1/models").outdated_by("DELETE", "/v1/") != ()


NAMES = st.lists(st.sampled_from(["a", "b", "c d", "é"]), min_size=1, max_size=4)


def spelled(names: list[str]) -> str:
    return "/v1/" + "/".join(names)


def in_one_bucket(*paths: list[str]) -> bool:
    """Whether different ones among these, and those above them, are purged together."""
    all_paths = {tuple(path[:length]) for path in paths for length in range(1, len(path) + 1)}
    tags = [tag for path in all_paths for tag in tags_of_path(spelled(list(path)))]
    return len({tag for tag in tags if tag.startswith("resource-at:")}) < len(all_paths)


@given(read=NAMES, written=NAMES, method=st.sampled_from(["POST", "PUT", "PATCH", "DELETE"]))
def test_a_write_purges_itself_those_above_and_if_it_deletes_those_below(
    read: list[str], written: list[str], method: str
) -> None:
    assume(not in_one_bucket(read, written))
    marks = Marks()
    for number, tag in enumerate(resources("/v1/**").outdated_by(method, spelled(written)), 1):
        marks.add(Mark(number, Selector(tag=tag)))
    key = f"p:v1:resource:shared:{0:064}"
    stored = EntryMeta(key, "", "r", 0.0, tags_of_path(spelled(read)))
    is_above = written[: len(read)] == read
    is_below = read[: len(written)] == written and method == "DELETE"
    gone = marks.verdict(stored) is Verdict.GONE
    assert gone is (is_above or is_below)


@settings(max_examples=50)
@given(st.text(max_size=50))
def test_no_path_is_too_strange(path: str) -> None:
    known = resources("/v1/**")
    known.find("/v1/" + path)
    known.outdated_by("DELETE", "/v1/" + path)
    assert all(segment and "/" not in segment for segment in segments(path))


def test_writes_go_by_so_few_names_that_the_list_of_purges_never_overflows() -> None:
    known = resources("/v1/**")
    names = {tag for n in range(20_000) for tag in known.outdated_by("DELETE", f"/v1/t/{n}")}
    assert len(names) <= 2 * 2048


@pytest.mark.parametrize(
    ("accept", "takes"),
    [
        ([], True),
        ([""], True),
        (["application/json"], True),
        (["text/html, application/xhtml+xml, */*;q=0.8"], True),
        (["text/html", "Application/* ; q=0.1"], True),
        (["text/csv"], False),
        (["text/event-stream"], False),
        (["application/json;q=0, */*"], False),
        (["*/*;q=0.0"], False),
        (["application/json;q=much"], False),
    ],
)
def test_who_takes_json(accept: list[str], takes: bool) -> None:
    assert accepts_json(tuple((b"accept", value.encode()) for value in accept)) is takes


@pytest.mark.parametrize(
    ("vary", "is_beyond"),
    [
        ([], False),
        (["Accept-Encoding, Origin"], False),
        (["accept", "OPENAI-BETA,"], False),
        (["Authorization"], False),
        (["Accept-Encoding", "Accept-Language"], True),
        (["Cookie"], True),
        (["*"], True),
    ],
)
def test_an_answer_may_vary_on_what_keeps_entries_apart(vary: list[str], is_beyond: bool) -> None:
    headers = tuple((b"Vary", value.encode()) for value in vary)
    assert varies_beyond((b"openai-beta",), headers) is is_beyond
