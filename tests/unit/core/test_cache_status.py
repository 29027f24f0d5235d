"""The outcome as headers: every parameter, and nothing that a header can't hold."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cache_status import cache_status, header_text, outcome_headers, sf_string
from proxy.core.outcome import Forwarded, Outcome, XCache
from tests.integration.structured_fields import Bare, Token, parse_list

MISS = Outcome(
    x_cache=XCache.MISS, endpoint="chat", forwarded=Forwarded.MISS, forward_status=200, detail="d"
)
HIT = Outcome(x_cache=XCache.HIT, endpoint="chat", age_seconds=1.9, ttl_seconds=58.1)


def parameters(outcome: Outcome, *, with_key: bool = False) -> dict[str, Bare]:
    (item,) = parse_list(cache_status(outcome, with_key=with_key))
    assert item.value == Token("magic-proxy")
    return item.parameters


def headers(outcome: Outcome, *, with_key: bool = False) -> dict[bytes, bytes]:
    given = outcome_headers(outcome, with_key=with_key)
    assert len(dict(given)) == len(given), "each is told once"
    return dict(given)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(HIT, "magic-proxy; hit; ttl=58", id="hit"),
        pytest.param(MISS, 'magic-proxy; fwd=miss; fwd-status=200; detail="d"', id="miss"),
        pytest.param(
            replace(MISS, stored=True, ttl_seconds=600.0, collapsed=True),
            'magic-proxy; fwd=miss; fwd-status=200; ttl=600; stored; collapsed; detail="d"',
            id="stored",
        ),
        pytest.param(
            replace(MISS, not_stored="status"),
            'magic-proxy; fwd=miss; fwd-status=200; detail="d, not-stored:status"',
            id="not-stored",
        ),
        pytest.param(
            replace(MISS, detail=None, stored=False, not_stored="too-large"),
            'magic-proxy; fwd=miss; fwd-status=200; detail="not-stored:too-large"',
            id="not-stored-without-a-reason-to-forward",
        ),
        pytest.param(
            Outcome(x_cache=XCache.ERROR, endpoint="chat", detail="not_cached"),
            'magic-proxy; detail="not_cached"',
            id="error",
        ),
        pytest.param(
            Outcome(x_cache=XCache.ERROR, endpoint="chat"), "magic-proxy", id="nothing-known"
        ),
        pytest.param(
            replace(HIT, ttl_seconds=-3.0), "magic-proxy; hit; ttl=-3", id="past-its-freshness"
        ),
    ],
)
def test_B12_what_cache_status_says(outcome: Outcome, expected: str) -> None:
    assert cache_status(outcome) == expected


@pytest.mark.parametrize("forwarded", list(Forwarded))
def test_B12_every_reason_to_forward_is_a_token(forwarded: Forwarded) -> None:
    # An age is known of an entry that was found and not served: no hit all the same.
    told = parameters(replace(MISS, forwarded=forwarded, age_seconds=3.0))

    assert told["fwd"] == Token(forwarded.value)
    assert "hit" not in told


def test_B12_the_key_is_told_only_where_it_may_be() -> None:
    keyed = replace(HIT, digest="ab" * 32)

    assert "key" not in parameters(keyed)
    assert parameters(keyed, with_key=True)["key"] == "ab" * 32
    assert "key" not in parameters(HIT, with_key=True)
    assert b"key=" in headers(keyed, with_key=True)[b"cache-status"]
    assert b"key=" not in headers(keyed)[b"cache-status"]


@pytest.mark.parametrize("x_cache", list(XCache))
def test_B12_x_cache_is_the_one_word(x_cache: XCache) -> None:
    assert headers(replace(MISS, x_cache=x_cache))[b"x-cache"] == x_cache.value.encode()


def test_B12_age_and_rule_are_told_where_there_are_any() -> None:
    assert headers(HIT).keys() == {b"cache-status", b"x-cache", b"age"}
    assert headers(HIT)[b"age"] == b"1"
    assert headers(replace(MISS, rule="chat"))[b"x-cache-rule"] == b"chat"
    assert b"age" not in headers(MISS)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("plain", b"plain"),
        ("two words", b"two words"),
        ("Zürich 日本", b"Z?rich ??"),
        ("a\r\nset-cookie: b", b"a??set-cookie: b"),
        ("tab\tdel\x7fnul\0", b"tab?del?nul?"),
        ('"\\', b'"\\'),
        ("\ud800", b"?"),
    ],
)
def test_B12_an_operator_s_text_fits_a_header(text: str, written: bytes) -> None:
    assert header_text(text) == written
    assert headers(replace(MISS, rule=text))[b"x-cache-rule"] == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("", '""'),
        ('a"b', '"a\\"b"'),
        ("a\\b", '"a\\\\b"'),
        ('\\"', '"\\\\\\""'),
        ("é\r\n", '"???"'),
    ],
)
def test_B12_a_string_is_quoted_once(text: str, written: str) -> None:
    assert sf_string(text) == written


TEXT = st.text(st.characters()) | st.text('"\\;,=\r\n\0 \x7fé\ud800')


@given(detail=TEXT, rule=TEXT, not_stored=TEXT)
def test_B12_no_text_leaves_its_header(detail: str, rule: str, not_stored: str) -> None:
    outcome = replace(MISS, detail=detail, rule=rule, not_stored=not_stored)

    for name, value in outcome_headers(outcome):
        assert re.fullmatch(rb"[ -~]*", value), name
    told = parameters(outcome)
    assert told.keys() <= {"fwd", "fwd-status", "detail"}
    assert len(headers(outcome)[b"x-cache-rule"]) == len(rule)
