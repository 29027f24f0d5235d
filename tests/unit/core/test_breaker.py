"""The circuit breaker, second by second."""

import pytest

from proxy.core.breaker import Breaker, CircuitState, Transition


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(failure_threshold=3, retry_seconds=1.0, longest_wait_seconds=5.0)


def opened(breaker: Breaker, now: float = 0.0) -> Breaker:
    for _ in range(3):
        breaker.failed(now)
    assert breaker.state is CircuitState.OPEN
    return breaker


def test_a_closed_circuit_lets_calls_through(breaker: Breaker) -> None:
    assert breaker.allow(0.0)
    assert breaker.succeeded(0.0) is None
    assert breaker.state is CircuitState.CLOSED


def test_failures_in_a_row_open_it_and_the_last_one_says_so(breaker: Breaker) -> None:
    assert [breaker.failed(0.0) for _ in range(3)] == [None, None, Transition.OPENED]
    assert not breaker.allow(0.0)


def test_a_success_between_failures_starts_the_count_anew(breaker: Breaker) -> None:
    breaker.failed(0.0)
    breaker.failed(0.0)
    breaker.succeeded(0.0)
    assert [breaker.failed(0.0) for _ in range(3)] == [None, None, Transition.OPENED]


def test_an_open_circuit_admits_one_probe_when_the_wait_is_over(breaker: Breaker) -> None:
    opened(breaker)
    assert not breaker.allow(0.99)
    assert breaker.allow(1.0)
    assert breaker.state is CircuitState.HALF_OPEN
    assert not breaker.allow(1.0)


def test_the_probe_that_succeeds_closes_it(breaker: Breaker) -> None:
    opened(breaker).allow(1.0)
    assert breaker.succeeded(1.1) is Transition.CLOSED
    assert breaker.allow(1.1)
    assert breaker.failed(1.2) is None


def test_each_probe_that_fails_doubles_the_wait_up_to_the_longest(breaker: Breaker) -> None:
    opened(breaker)
    now, waits = 0.0, []
    for _ in range(5):
        waits.append(breaker.retry_at - now)
        now = breaker.retry_at
        assert breaker.allow(now)
        assert breaker.failed(now) is Transition.REOPENED
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_the_wait_is_short_again_after_it_closed(breaker: Breaker) -> None:
    opened(breaker).allow(1.0)
    breaker.failed(1.0)
    breaker.allow(3.0)
    breaker.succeeded(3.0)
    opened(breaker, now=10.0)
    assert breaker.retry_at == 11.0


def test_failures_from_before_it_opened_change_nothing(breaker: Breaker) -> None:
    opened(breaker)
    assert breaker.failed(0.5) is None
    assert breaker.retry_at == 1.0


def test_a_success_from_before_it_opened_closes_it(breaker: Breaker) -> None:
    assert opened(breaker).succeeded(0.5) is Transition.CLOSED


def test_a_probe_that_is_never_heard_of_again_bars_one_wait_only(breaker: Breaker) -> None:
    opened(breaker)
    assert breaker.allow(1.0)
    assert not breaker.allow(1.9)
    assert breaker.allow(2.0)


def test_jitter_stretches_the_wait_but_does_not_add_up(breaker: Breaker) -> None:
    for _ in range(3):
        breaker.failed(0.0, jitter=1.2)
    assert breaker.retry_at == 1.2
    breaker.allow(1.2)
    breaker.failed(1.2, jitter=1.0)
    assert breaker.retry_at == pytest.approx(3.2)


def test_a_retry_time_above_the_longest_wait_is_kept() -> None:
    breaker = Breaker(failure_threshold=1, retry_seconds=60.0, longest_wait_seconds=30.0)
    breaker.failed(0.0)
    breaker.allow(60.0)
    breaker.failed(60.0)
    assert breaker.retry_at == 120.0
