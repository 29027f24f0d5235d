"""Windows that are never passed, and buckets that answers tell of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.upstream.limits_told import ToldLimit
from proxy.upstream.windows import Bucket, MinuteWindow


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 40)), max_size=120),
)
def test_B62_no_minute_holds_more_than_the_limit(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    window, now = MinuteWindow(limit), 0.0
    taken: list[tuple[float, int]] = []
    for seconds, amount in steps:
        now += seconds
        if window.wait(amount, now) > 0.0:
            continue
        window.take(amount, now)
        taken.append((now, amount))
        within = [used for at, used in taken if at > now - 60.0]
        assert sum(within) <= limit or within == [amount], "but for what alone is more than that"


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(1, 40)), min_size=1, max_size=60),
)
def test_B62_a_wait_is_as_long_as_it_says_and_not_two_seconds_longer_than_needed(
    limit: int, steps: list[tuple[float, int]]
) -> None:
    window, now = MinuteWindow(limit), 0.0
    taken: list[tuple[float, int]] = []
    for seconds, amount in steps:
        now += seconds
        wait = window.wait(amount, now)
        if wait > 0.0:
            assert window.wait(amount, now + wait + 1e-6) == 0.0
            # The oldest that is in the way was used within the last minute and a second.
            earlier = now + wait - 61.0
            assert sum(used for at, used in taken if at > earlier - 1.0) + amount > limit
            now += wait + 1e-6
        window.take(amount, now)
        taken.append((now, amount))


def test_B62_what_was_used_late_in_a_second_counts_for_a_whole_minute() -> None:
    window = MinuteWindow(1)
    window.take(1, 0.9)
    assert window.left(60.8) == 0
    assert window.wait(1, 60.8) == pytest.approx(0.2)
    assert window.left(61.0) == 1


def test_B62_what_was_estimated_is_corrected_in_its_own_minute() -> None:
    window = MinuteWindow(100)
    window.take(60, 5.2)
    window.correct(5.2, -40)
    assert window.left(5.2) == 80
    window.correct(5.9, -1000)
    assert window.left(6.0) == 100, "it never gives more than was taken"
    window.correct(5.0, 30)
    assert window.left(66.9) == 100
    window.correct(5.0, 30)
    assert window.left(67.0) == 100, "forgotten"


@given(
    st.integers(1, 30),
    st.lists(st.tuples(st.floats(0.0, 20.0), st.integers(-40, 40), st.booleans()), max_size=120),
)
def test_B62_what_others_take_or_give_back_frees_nothing_that_was_used_here(
    limit: int, steps: list[tuple[float, int, bool]]
) -> None:
    window, now = MinuteWindow(limit), 0.0
    taken: list[tuple[float, int]] = []
    for seconds, amount, by_others in steps:
        now += seconds
        if by_others:
            window.others_took(amount, now)
        elif amount > 0 and window.wait(amount, now) <= 0.0:
            window.take(amount, now)
            taken.append((now, amount))
        within = [used for at, used in taken if at > now - 60.0]
        assert sum(within) <= limit or len(within) == 1, "but for what alone is more than that"
        assert window.left(now) <= limit - sum(within)


def test_B62_what_others_give_back_is_taken_from_what_they_took() -> None:
    window = MinuteWindow(100)
    window.take(30, 0.0)
    window.others_took(60, 10.0)
    assert window.wait(20, 10.0) == pytest.approx(51.0)
    window.others_took(-50, 20.0)
    assert window.left(20.0) == 60
    window.others_took(-50, 20.0)
    assert window.left(20.0) == 70


def test_B62_a_told_limit_fills_evenly_until_its_reset() -> None:
    bucket = Bucket(ToldLimit(limit=60, remaining=0, reset_seconds=60.0), 100.0)
    assert bucket.wait(1, 100.0) == pytest.approx(1.0)
    assert bucket.left(130.0) == pytest.approx(30.0)
    assert bucket.left(500.0) == 60.0
    bucket.take(10, 130.0)
    assert bucket.left(130.0) == pytest.approx(20.0)
    assert bucket.wait(10_000, 130.0) == pytest.approx(40.0), "full is enough for what is more"


def test_B62_without_a_reset_nobody_is_held_back_by_what_is_told() -> None:
    bucket = Bucket(ToldLimit(limit=60, remaining=0, reset_seconds=None), 0.0)
    assert bucket.left(0.0) == 0.0
    assert bucket.wait(1, 0.0) == 0.0
    assert bucket.left(30.0) == pytest.approx(30.0), "it counts as one by the minute"


def test_B62_a_reset_that_is_now_means_that_all_is_there() -> None:
    bucket = Bucket(ToldLimit(limit=1, remaining=0, reset_seconds=0.0), 0.0)
    assert bucket.left(0.0) == 1.0
    assert bucket.wait(1, 0.0) == 0.0
