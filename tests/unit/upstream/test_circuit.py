"""The circuit before one upstream, as a state machine."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.breaker import CircuitState
from proxy.upstream.circuit import Circuit, CircuitChange, CircuitPolicy, Permit
from proxy.upstream.sliding import SlidingCounts

POLICY = CircuitPolicy(
    failure_rate=0.5,
    min_calls=4,
    window_seconds=10.0,
    connect_failures=3,
    open_seconds=1.0,
    max_open_seconds=8.0,
)


def admitted(circuit: Circuit, now: float) -> Permit:
    permit = circuit.admit(now)
    assert permit is not None
    return permit


def fail(circuit: Circuit, now: float, *, connecting: bool = False) -> CircuitChange | None:
    return circuit.failed(admitted(circuit, now), now, connecting=connecting)


def succeed(circuit: Circuit, now: float) -> CircuitChange | None:
    return circuit.answered(admitted(circuit, now), now)


def opened(policy: CircuitPolicy = POLICY, now: float = 0.0) -> Circuit:
    circuit = Circuit(policy)
    changes = [fail(circuit, now, connecting=True) for _ in range(policy.connect_failures)]
    assert changes[-1] is CircuitChange.OPENED
    return circuit


def test_B62_it_opens_when_enough_of_enough_calls_fail() -> None:
    circuit = Circuit(POLICY)
    changes = [succeed(circuit, 0.0), succeed(circuit, 0.1), fail(circuit, 0.2), fail(circuit, 0.3)]
    assert changes == [None, None, None, CircuitChange.OPENED]
    assert circuit.admit(1.29) is None
    assert circuit.state(1.29) is CircuitState.OPEN


def test_few_failures_say_nothing() -> None:
    circuit = Circuit(POLICY)
    assert [fail(circuit, 0.0) for _ in range(3)] == [None] * 3
    assert circuit.state(0.0) is CircuitState.CLOSED


def test_a_rate_below_the_threshold_never_opens_it() -> None:
    circuit = Circuit(POLICY)
    for step in range(1_000):
        assert succeed(circuit, step * 0.01) is None
        assert succeed(circuit, step * 0.01) is None
        assert fail(circuit, step * 0.01) is None


def test_old_failures_no_longer_count() -> None:
    circuit = Circuit(POLICY)
    for now in (0.0, 1.0, 2.0):
        fail(circuit, now)
    assert fail(circuit, 11.5) is None
    assert circuit.state(11.5) is CircuitState.CLOSED


def test_B62_connections_that_fail_in_a_row_open_it_at_once() -> None:
    circuit = Circuit(replace(POLICY, min_calls=100))
    assert fail(circuit, 0.0, connecting=True) is None
    assert fail(circuit, 0.0, connecting=True) is None
    assert succeed(circuit, 0.0) is None
    assert fail(circuit, 0.0, connecting=True) is None
    assert fail(circuit, 100.0, connecting=True) is None
    assert fail(circuit, 100.0) is None, "an answer, even of a failure, came over a connection"
    assert fail(circuit, 200.0, connecting=True) is None
    assert fail(circuit, 200.0, connecting=True) is None
    assert fail(circuit, 200.0, connecting=True) is CircuitChange.OPENED


def test_one_probe_at_a_time_and_its_answer_closes() -> None:
    circuit = opened()
    assert circuit.seconds_to_probe(0.25) == pytest.approx(0.75)
    assert circuit.state(1.0) is CircuitState.HALF_OPEN
    probe = admitted(circuit, 1.0)
    assert circuit.admit(1.0) is None
    assert circuit.answered(probe, 1.5) is CircuitChange.CLOSED
    assert circuit.state(1.5) is CircuitState.CLOSED
    assert circuit.admit(1.5) is not None


def test_as_many_probes_at_once_as_the_policy_says() -> None:
    circuit = opened(replace(POLICY, probes=3))
    permits = [circuit.admit(1.0) for _ in range(5)]
    assert [permit is not None for permit in permits] == [True, True, True, False, False]


def test_the_wait_doubles_with_each_probe_that_fails_up_to_its_bound() -> None:
    circuit = opened()
    now, waits = 0.0, []
    for _ in range(6):
        waits.append(circuit.seconds_to_probe(now))
        now += waits[-1]
        assert fail(circuit, now) is CircuitChange.REOPENED
    assert waits == pytest.approx([1.0, 2.0, 4.0, 8.0, 8.0, 8.0])
    now += circuit.seconds_to_probe(now)
    assert succeed(circuit, now) is CircuitChange.CLOSED
    changes = [fail(circuit, now, connecting=True) for _ in range(3)]
    assert changes[-1] is CircuitChange.OPENED
    assert circuit.seconds_to_probe(now) == pytest.approx(1.0), "it begins anew"


def test_the_jitter_stretches_the_wait() -> None:
    circuit = Circuit(replace(POLICY, connect_failures=1))
    circuit.failed(admitted(circuit, 5.0), 5.0, connecting=True, jitter=1.2)
    assert circuit.seconds_to_probe(5.0) == pytest.approx(1.2)


def test_an_abandoned_probe_lets_the_next_one_through_at_once() -> None:
    circuit = opened()
    circuit.dropped(admitted(circuit, 1.0))
    assert circuit.state(1.0) is CircuitState.HALF_OPEN
    assert circuit.admit(1.0) is not None


def test_a_probe_that_hangs_does_not_bar_the_others_for_ever() -> None:
    circuit = opened()
    hanging = admitted(circuit, 1.0)
    assert circuit.seconds_to_probe(1.4) == pytest.approx(0.6)
    assert circuit.admit(1.9) is None
    second = admitted(circuit, 2.0)
    assert circuit.admit(2.5) is None
    assert circuit.answered(second, 2.6) is CircuitChange.CLOSED
    assert circuit.failed(hanging, 600.0) is None, "what it tells now is old news"
    assert circuit.state(600.0) is CircuitState.CLOSED


def test_a_slow_probe_still_closes_it() -> None:
    circuit = opened()
    slow = admitted(circuit, 1.0)
    admitted(circuit, 2.0)
    assert circuit.answered(slow, 40.0) is CircuitChange.CLOSED


def test_it_begins_to_count_anew_when_it_closes() -> None:
    circuit = Circuit(replace(POLICY, min_calls=7))
    for _ in range(3):
        fail(circuit, 0.0)
    for _ in range(3):
        fail(circuit, 0.0, connecting=True)
    assert succeed(circuit, 1.0) is CircuitChange.CLOSED
    assert [fail(circuit, 1.0) for _ in range(6)] == [None] * 6


def test_calls_from_before_it_opened_are_old_news() -> None:
    circuit = Circuit(POLICY)
    before = [admitted(circuit, 0.0) for _ in range(4)]
    for _ in range(3):
        fail(circuit, 0.0, connecting=True)
    assert circuit.answered(before[0], 0.5) is None
    assert circuit.state(0.5) is CircuitState.OPEN
    assert circuit.failed(before[1], 0.5) is None
    probe = admitted(circuit, 1.0)
    assert circuit.failed(before[2], 1.0) is None
    assert circuit.answered(before[3], 1.0) is None
    assert circuit.answered(probe, 1.1) is CircuitChange.CLOSED


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["admit", "answer", "fail", "connect", "drop"]),
        st.floats(0.0, 3.0),
        st.integers(0, 5),
    ),
    max_size=80,
)


@given(events=EVENTS, probes=st.integers(1, 3))
def test_it_always_comes_back(events: list[tuple[str, float, int]], probes: int) -> None:
    """Whatever happens: few probes at a time, and after the longest wait a call goes through."""
    policy = replace(POLICY, probes=probes)
    circuit, now = Circuit(policy), 0.0
    permits: list[Permit] = []
    for event, step, which in events:
        now += step
        if event == "admit":
            is_open = circuit.state(now) is not CircuitState.CLOSED
            waits = circuit.seconds_to_probe(now) > 0.0
            permit = circuit.admit(now)
            assert (permit is None) == waits
            if permit is not None:
                assert (permit.probe > 0) == is_open
                permits.append(permit)
        elif permits:
            permit = permits.pop(which % len(permits))
            if event == "answer":
                circuit.answered(permit, now)
            elif event == "drop":
                circuit.dropped(permit)
            else:
                circuit.failed(permit, now, connecting=event == "connect")
        assert 0.0 <= circuit.seconds_to_probe(now) <= policy.max_open_seconds
    now += policy.max_open_seconds
    probe = admitted(circuit, now)
    circuit.answered(probe, now)
    assert circuit.state(now) is CircuitState.CLOSED


@given(
    steps=st.lists(st.tuples(st.floats(0.0, 4.0), st.booleans()), max_size=60),
    seconds=st.floats(0.5, 20.0),
)
def test_sliding_counts_forget_in_time(steps: list[tuple[float, bool]], seconds: float) -> None:
    counts, now = SlidingCounts(seconds), 0.0
    seen: list[tuple[float, bool]] = []
    for step, marked in steps:
        now += step
        counts.add(now, marked=marked)
        seen.append((now, marked))
        total, of_it = counts.totals(now)
        tenth = seconds / 10
        recent = [m for t, m in seen if t > now - seconds + tenth]
        at_most = [m for t, m in seen if t > now - seconds - tenth]
        assert len(recent) <= total <= len(at_most)
        assert sum(recent) <= of_it <= sum(at_most)
    counts.clear()
    assert counts.totals(now) == (0, 0)
