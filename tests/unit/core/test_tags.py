"""Tags: what a request gets by its rule's templates, and what a client may name (B54)."""

import re
import time
import tracemalloc

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.access.clients import ADMIN_HEADER
from proxy.core.canonical import parse_body
from proxy.core.scope import CREDENTIAL_HEADERS
from proxy.core.selectors import Selector
from proxy.core.tags import LONGEST_TAG, MOST_TAGS, TagTemplate, normalized_tag, tags_of
from proxy.core.wire import Headers, JsonValue

HEADERS: Headers = ((b"x-project", b"alpha"), (b"x-empty", b" "), (b"x-utf8", "größe".encode()))


def tag(template: str, body: dict[str, JsonValue] | None = None) -> str | None:
    return TagTemplate.parse(template).tag(body or {}, HEADERS)


def given_tags(*values: bytes) -> tuple[str, ...] | None:
    return tags_of((), {}, tuple((b"x-tags", value) for value in values), b"x-tags")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("nightly", "nightly"),
        ("  nightly ", "nightly"),
        ("project:{header.x-project}", "project:alpha"),
        ("project:{header.X-Project}", "project:alpha"),
        ("{header.x-project}/{user}", "alpha/u1"),
        ("user:{user}", "user:u1"),
        ("{metadata.team}", "search"),
        ('{metadata."a.b}c"}', "odd"),
        ('{"header".x}', "field"),
        ("{header.x-utf8}", "größe"),
        ("n:{n}", "n:2"),
        ("t:{temperature}", "t:1"),
        ("t:{top_p}", "t:0.5"),
        ("s:{stream}", "s:true"),
    ],
)
def test_B54_a_template_is_filled_from_header_and_body(template: str, expected: str) -> None:
    body: dict[str, JsonValue] = {
        "user": "u1",
        "metadata": {"team": "search", "a.b}c": "odd"},
        "header": {"x": "field"},
        "n": 2,
        "temperature": 1.0,
        "top_p": 0.5,
        "stream": True,
    }
    assert tag(template, body) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{header.x-none}",
        "{header.x-empty}",
        "{none}",
        "{user.name}",
        "{metadata}",
        "{metadata.none}",
        "{list}",
        "{list.0}",
        "{nothing}",
        "{empty}",
        "project:{header.x-project}:{none}",
    ],
)
def test_B54_a_request_that_lacks_a_place_does_not_get_the_tag(template: str) -> None:
    body: dict[str, JsonValue] = {
        "user": "u1",
        "metadata": {"team": {}},
        "list": ["a"],
        "nothing": None,
        "empty": "",
    }
    assert tag(template, body) is None


def test_B54_lines_of_one_header_are_one_value() -> None:
    headers = ((b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3"))
    template = TagTemplate.parse("{header.x-a}")
    assert template.tag({}, headers) == normalized_tag("1, 3")


def test_B54_a_header_that_is_not_utf8_is_read_as_latin1() -> None:
    assert TagTemplate.parse("{header.x-a}").tag({}, ((b"x-a", b"gr\xf6\xdfe"),)) == "größe"


def test_B54_a_number_makes_the_tag_of_its_canonical_form() -> None:
    spelled = ["1", "1.0", "1e0", "10e-1"]
    tags = {tag("n:{n}", parse_body(b'{"n":%s}' % number.encode()).fields) for number in spelled}
    assert tags == {"n:1"}
    assert tag("{n}", parse_body(b'{"n":%s}' % (b"7" * 100)).fields) == "7" * 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("{", "character 1 has no partner"),
        ("a:{user", "character 3 has no partner"),
        ("a}b", "character 2 has no partner"),
        ("{{user}}", "character 1 has no partner"),
        ('{"user}', "character 1 has no partner"),
        ("a{}", "expected a field name"),
        ("{header.}", "'' is not a header name"),
        ("{header.a b}", "'a b' is not a header name"),
        ("{*}", "must lead to one value"),
        ("{messages[*].content}", "must lead to one value"),
        ("{a..b}", "expected a field name"),
    ],
)
def test_B54_a_template_that_can_not_be_filled_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        TagTemplate.parse(text)


@pytest.mark.parametrize("name", [*CREDENTIAL_HEADERS, ADMIN_HEADER, b"cookie", b"Authorization"])
def test_B69_no_credential_becomes_a_tag(name: bytes) -> None:
    with pytest.raises(ValueError, match="credential"):
        TagTemplate.parse(f"{{header.{name.decode()}}}")


@given(st.text(max_size=40))
def test_B54_any_text_is_a_template_or_a_value_error(text: str) -> None:
    try:
        template = TagTemplate.parse(text)
    except ValueError:
        return
    template.tag({}, ())


def test_B54_tags_of_rule_and_client_come_sorted_and_once() -> None:
    templates = [TagTemplate.parse(text) for text in ("z", "project:{header.x-project}", "{none}")]
    headers = (*HEADERS, (b"x-tags", b"b , z,,a"), (b"x-tags", b"a,c"))
    assert tags_of(templates, {}, headers, b"x-tags") == ("a", "b", "c", "project:alpha", "z")
    assert tags_of(templates, {}, headers, None) == ("project:alpha", "z")
    assert tags_of((), {}, headers, None) == ()


def test_B54_a_tag_that_is_not_utf8_changes_no_other() -> None:
    headers = ((b"x-tags", "größe".encode("latin-1") + ",größe".encode()),)
    assert tags_of((), {}, headers, b"x-tags") == ("größe",)


def test_B54_more_tags_than_an_entry_may_have_are_none() -> None:
    most = b",".join(b"t%d" % i for i in range(MOST_TAGS))
    assert len(given_tags(most) or ()) == MOST_TAGS
    assert len(given_tags(most, b"t0, t1") or ()) == MOST_TAGS
    assert given_tags(most, b"more") is None


def test_B54_ten_megabytes_of_tags_cost_little() -> None:
    many, long, commas = b"tag," * 2_500_000, b"x" * 10_000_000, b"," * 10_000_000
    body: dict[str, JsonValue] = {"user": long.decode()}
    template = TagTemplate.parse("user:{user}")
    tracemalloc.start()
    began = time.perf_counter()
    assert given_tags(many) is None
    assert given_tags(commas) is None
    assert given_tags(long) == (normalized_tag(long.decode()),)
    (hashed,) = tags_of([template], body, (), None) or ()
    seconds = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(hashed) < LONGEST_TAG
    assert peak < 60_000_000
    assert seconds < 2.0


@pytest.mark.parametrize(
    "text",
    ["a\x00b", "a\nb", "a\x7fb", "a,b", "\u202eabc", "a\u200bb", "x" * (LONGEST_TAG + 1)],
)
def test_B54_a_purge_finds_a_strange_tag_by_the_same_text(text: str) -> None:
    tagged = tag("{user}", {"user": text})
    assert tagged is not None
    assert re.fullmatch(r"sha256-[0-9a-f]{64}", tagged)
    assert Selector.from_members({"tag": text}).tag == tagged
    assert normalized_tag(tagged) == tagged


@given(st.text(max_size=200))
def test_B54_a_tag_is_short_printable_and_normalized_once(text: str) -> None:
    normalized = normalized_tag(text)
    assert len(normalized) <= LONGEST_TAG
    assert normalized.isprintable()
    assert "," not in normalized
    assert normalized_tag(normalized) == normalized


@given(st.lists(st.binary(max_size=30), max_size=5), st.binary(max_size=100))
def test_B54_any_headers_and_body_give_tags_or_none(values: list[bytes], user: bytes) -> None:
    headers = tuple((b"x-tags", value) for value in values)
    fields: dict[str, JsonValue] = {"user": user.decode("latin-1")}
    tags = tags_of([TagTemplate.parse("u:{user}")], fields, headers, b"x-tags")
    assert tags is None or list(tags) == sorted(set(tags))
    assert orjson.dumps(tags)
