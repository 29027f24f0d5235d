"""Ages and lifetimes, also when a clock steps back."""

from collections import Counter
from dataclasses import dataclass, replace
from hashlib import sha256
from math import exp, nextafter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.freshness import (
    age_seconds,
    certain_until,
    is_fresh,
    is_stale_within,
    jittered,
    lifetime_seconds,
    refreshes_ahead,
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


# ---- stale ----


@pytest.mark.parametrize(
    ("now", "seconds", "within"),
    [
        (1_599.9, 60.0, False),
        (1_600.0, 60.0, True),
        (1_659.9, 60.0, True),
        (1_660.0, 60.0, False),
        (1_600.0, 0.0, False),
        pytest.param(900.0, 1e9, False, id="the-clock-stepped-back"),
    ],
)
def test_B15_stale_is_past_its_time_and_no_further_than_allowed(
    now: float, seconds: float, within: bool
) -> None:
    assert is_stale_within(Times(), seconds, now) is within


@given(TIMES, TIMES, st.floats(0, 1e9))
def test_B15_nothing_is_fresh_and_stale(fresh_until: float, now: float, seconds: float) -> None:
    entry = Times(0.0, fresh_until)

    assert not (is_fresh(entry, now) and is_stale_within(entry, seconds, now))


# ---- refresh-ahead ----


@dataclass(frozen=True, slots=True)
class Taken(Times):
    took_seconds: float = 2.0


@pytest.mark.parametrize(
    ("left", "draw", "eagerness", "ahead"),
    [
        # The upstream takes 2 s, and a draw of 1/e is 2 s ahead of that.
        (4.1, exp(-1), 1.0, False),
        (3.9, exp(-1), 1.0, True),
        (5.9, exp(-1), 2.0, True),
        (6.1, exp(-1), 2.0, False),
        (21.9, exp(-10), 1.0, True),
        (22.1, exp(-10), 1.0, False),
        # A draw of 1 leaves it just the time that it takes.
        (2.001, 1.0, 1.0, False),
        (2.0, 1.0, 1.0, True),
        (2.0, 1.0, 9.0, True),
    ],
)
def test_B15_the_sooner_the_end_and_the_slower_the_upstream_the_likelier_is_a_refresh(
    left: float, draw: float, eagerness: float, ahead: bool
) -> None:
    entry = Taken()

    found = refreshes_ahead(entry, entry.fresh_until - left, eagerness=eagerness, draw=draw)

    assert found is ahead


def test_B15_an_upstream_that_takes_no_time_needs_nobody_to_be_ahead() -> None:
    entry = Taken(took_seconds=0.0)

    assert not refreshes_ahead(entry, entry.fresh_until - 0.001, eagerness=9.0, draw=1e-12)


@pytest.mark.parametrize("left", [2.5, 4.0, 8.0])
def test_B15_how_many_hits_refresh_follows_the_exponential_law(left: float) -> None:
    entry = Taken()
    draws = [(place + 0.5) / 1_000 for place in range(1_000)]

    refreshing = sum(
        refreshes_ahead(entry, entry.fresh_until - left, eagerness=1.0, draw=draw) for draw in draws
    )

    assert refreshing / 1_000 == pytest.approx(exp(-(left - 2.0) / 2.0), abs=0.001)


@pytest.mark.parametrize(("took", "eagerness"), [(2.0, 1.0), (2.0, 3.0), (0.4, 0.5), (0.0, 1.0)])
def test_B15_before_a_certain_time_not_one_hit_in_20000_refreshes(
    took: float, eagerness: float
) -> None:
    entry = Taken(took_seconds=took)
    until = certain_until(entry, eagerness=eagerness)

    assert until == pytest.approx(entry.fresh_until - took - took * eagerness * 10)
    before = nextafter(until, 0.0)
    assert not refreshes_ahead(entry, before, eagerness=eagerness, draw=1 / 20_000)
    if took:
        after = until + took * eagerness / 2
        assert refreshes_ahead(entry, after, eagerness=eagerness, draw=1 / 20_000)


# ---- jitter ----


def digest(number: int) -> str:
    return sha256(b"%d" % number).hexdigest()


@pytest.mark.parametrize(
    ("digest", "lifetime"),
    [
        ("0" * 64, 600.0),
        ("f" * 64, 540.0),
        ("7fffffff" + "f" * 56, 570.0),
        ("0" * 8 + "f" * 56, 600.0),
    ],
)
def test_B15_jitter_shortens_by_its_share_at_most(digest: str, lifetime: float) -> None:
    assert jittered(600.0, 0.1, digest) == pytest.approx(lifetime)
    assert jittered(600.0, 0.0, digest) == 600.0


@given(st.floats(0.001, 1e9), st.floats(0, 1), st.binary(min_size=32, max_size=32))
def test_B15_jitter_keeps_to_its_bounds(lifetime: float, jitter: float, key: bytes) -> None:
    found = jittered(lifetime, jitter, key.hex())

    # One part in 10^12 for the roundings on the way.
    assert lifetime * (1.0 - jitter) * (1 - 1e-12) <= found <= lifetime


def test_B15_jitter_spreads_keys_evenly_and_the_same_way_everywhere() -> None:
    lifetimes = [jittered(600.0, 0.5, digest(number)) for number in range(2_000)]

    tenths = Counter(int((lifetime - 300.0) / 30.0) for lifetime in lifetimes)
    assert set(tenths) == set(range(10))
    assert all(150 <= count <= 250 for count in tenths.values())
    # Of the digest alone, whichever replica stores the answer: that of "0" begins 5feceb66, which
    # is 0.374709 of the way to ffffffff.
    assert lifetimes[0] == pytest.approx(600.0 * (1.0 - 0.5 * 0.374709), abs=0.001)


# ---- clocks that differ ----


@given(st.floats(-3_600, 3_600), st.floats(0, 600), st.floats(0, 1_200))
def test_B15_an_entry_lives_no_longer_than_its_ttl_and_the_step_of_the_clock(
    step: float, at: float, passed: float
) -> None:
    """The clock steps `at` seconds after the answer was stored; or another replica's runs so."""
    entry = Times(stored_at=1_000_000.0, fresh_until=1_000_600.0)
    seconds = at + passed
    now = entry.stored_at + seconds + step

    assert age_seconds(entry, now) >= 0.0
    if is_fresh(entry, now):
        assert seconds < 600.0 - step + 1e-6
