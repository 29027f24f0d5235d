"""The circuit before a store: what it admits, and what it says."""

import logging

import pytest

from proxy.backends.circuit import Circuit
from proxy.core.breaker import Breaker
from proxy.errors import StoreUnavailable
from tests.fakes import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def circuit(clock: FakeClock) -> Circuit:
    return Circuit("disk", Breaker(failure_threshold=2, retry_seconds=1.0), clock)


def test_B50_a_long_outage_is_two_lines_however_often_it_was_probed(
    circuit: Circuit, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(10):
            circuit.failed("no space left")
        for _ in range(10):
            clock.advance(60.0)
            circuit.admit()
            circuit.failed("no space left")
        clock.advance(60.0)
        circuit.admit()
        for _ in range(10):
            circuit.succeeded()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "disk: does not work, and is left alone for a while (no space left)"),
        ("INFO", "disk: works again"),
    ]


def test_it_tells_its_caller_when_it_opened(circuit: Circuit) -> None:
    assert [circuit.failed("x") for _ in range(3)] == [False, True, False]


def test_it_admits_one_probe_after_a_wait_with_some_jitter(
    circuit: Circuit, clock: FakeClock
) -> None:
    circuit.admit()
    circuit.failed("x")
    circuit.failed("x")
    assert not circuit.closed
    assert 0.8 <= circuit.seconds_to_retry <= 1.2
    with pytest.raises(StoreUnavailable, match="disk"):
        circuit.admit()
    clock.advance(circuit.seconds_to_retry + 0.001)
    assert circuit.seconds_to_retry == 0.0
    circuit.admit()
    with pytest.raises(StoreUnavailable):
        circuit.admit()
