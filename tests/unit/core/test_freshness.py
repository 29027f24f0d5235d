"""Ages and lifetimes, also when a clock steps back."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.freshness import (
    age_seconds,
    is_fresh,
    lifetime_seconds,
    remaining_seconds,
    upstream_lifetime_seconds,
)
from tests.vectors.rules import rule_of

RULE = replace(rule_of({"name": "r", "include_in_key": ["*"]}), ttl_seconds=600.0)
HONORING = replace(RULE, honor_upstream=True)


@dataclass(frozen=True, slots=True)
class Times:
    stored_at: float = 1_000.0
    fresh_until: float = 1_600.0


@pytest.mark.parametrize(
    ("now", "age", "remaining", "fresh"),
    [
        (1_000.0, 0.0, 600.0, True),
        (1_000.5, 0.5, 599.5, True),
        (1_599.9, 599.9, 0.1, True),
        (1_600.0, 600.0, 0.0, False),
        (1_700.0, 700.0, -100.0, False),
        pytest.param(900.0, 0.0, 700.0, True, id="the-clock-stepped-back"),
    ],
)
def test_B15_an_entry_in_time(now: float, age: float, remaining: float, fresh: bool) -> None:
    entry = Times()

    assert age_seconds(entry, now) == pytest.approx(age)
    assert remaining_seconds(entry, now) == pytest.approx(remaining)
    assert is_fresh(entry, now) is fresh


TIMES = st.floats(0, 1e11)


@given(TIMES, TIMES, TIMES)
def test_B15_age_is_never_negative_and_what_is_fresh_has_time_left(
    stored_at: float, fresh_until: float, now: float
) -> None:
    entry = Times(stored_at, fresh_until)

    assert age_seconds(entry, now) >= 0.0
    assert is_fresh(entry, now) is (remaining_seconds(entry, now) > 0.0)


@pytest.mark.parametrize(
    ("said", "allowed"),
    [
        (None, None),
        ("", None),
        ("public", None),
        ("no-transform, must-revalidate", None),
        ("no-store", 0.0),
        ("NO-STORE", 0.0),
        ("max-age=60, No-Cache", 0.0),
        ("private", 0.0),
        ('private="set-cookie"', 0.0),
        ("max-age=60", 60.0),
        (" Max-Age = 60 ", 60.0),
        ('max-age="60"', 60.0),
        ("public,max-age=60", 60.0),
        ("max-age=60, s-maxage=30", 30.0),
        ("s-maxage=90, max-age=60", 90.0),
        ("S-MaxAge=0, max-age=60", 0.0),
        ("max-age=soon", 0.0),
        ("max-age", 0.0),
    ],
)
def test_B13_what_an_upstream_allows(said: str | None, allowed: float | None) -> None:
    assert upstream_lifetime_seconds(said) == allowed


@pytest.mark.parametrize(
    ("said", "lifetime"),
    [(None, 600.0), ("public", 600.0), ("max-age=60", 60.0), ("max-age=9999", 600.0)],
)
def test_B13_an_upstream_that_is_honored_can_only_shorten(
    said: str | None, lifetime: float
) -> None:
    assert lifetime_seconds(HONORING, fallback=False, cache_control=said) == lifetime
    assert lifetime_seconds(RULE, fallback=False, cache_control=said) == 600.0


@pytest.mark.parametrize("said", ["no-store", "no-cache", "private", "max-age=0"])
def test_B13_an_upstream_that_is_honored_can_forbid(said: str) -> None:
    assert lifetime_seconds(HONORING, fallback=False, cache_control=said) == 0.0
    assert lifetime_seconds(RULE, fallback=False, cache_control=said) == 600.0


@pytest.mark.parametrize(
    ("ttl", "fallback_ttl", "lifetime"),
    [(600.0, 300.0, 300.0), (60.0, 300.0, 60.0), (600.0, 0.0, 0.0)],
)
def test_B67_a_fallback_s_answer_does_not_stay_as_long(
    ttl: float, fallback_ttl: float, lifetime: float
) -> None:
    rule = replace(RULE, ttl_seconds=ttl, fallback_ttl_seconds=fallback_ttl)

    assert lifetime_seconds(rule, fallback=True, cache_control=None) == lifetime
    assert lifetime_seconds(rule, fallback=False, cache_control=None) == ttl


def test_B67_the_shortest_of_all_counts() -> None:
    assert lifetime_seconds(HONORING, fallback=True, cache_control="max-age=60") == 60.0
    assert lifetime_seconds(HONORING, fallback=True, cache_control="max-age=400") == 300.0
