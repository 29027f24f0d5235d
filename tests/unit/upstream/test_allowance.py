"""All limits of one key together."""

import pytest

from proxy.upstream.allowance import Allowance, LimitStatus, Need
from proxy.upstream.limits_told import ToldLimit, ToldLimits

ONE = Need()


def test_B62_what_is_told_counts_for_its_model_alone() -> None:
    allowance = Allowance(None, None)
    told = ToldLimits(requests=ToldLimit(10, 0, 10.0))
    allowance.told("large", told, 0.0)
    assert allowance.wait(Need("large"), 0.0) == pytest.approx(1.0)
    assert allowance.wait(Need("small"), 0.0) == 0.0
    assert allowance.headroom("large", 0.0) == 0.0
    assert allowance.headroom("small", 0.0) is None


def test_B62_the_models_that_are_remembered_are_bounded() -> None:
    allowance = Allowance(None, None)
    told = ToldLimits(requests=ToldLimit(10, 5, 10.0))
    for number in range(1000):
        allowance.told(f"m{number}", told, 0.0)
    allowance.told("x" * 1000, told, 0.0)
    assert len(list(allowance.statuses(0.0))) == 32


def test_B62_the_tightest_limit_is_the_headroom() -> None:
    allowance = Allowance(10, 1000)
    allowance.take(Need(prompt_tokens=300, output_tokens=400), 0.0)
    assert allowance.headroom("", 0.0) == pytest.approx(0.3)
    assert list(allowance.statuses(0.0)) == [
        LimitStatus("requests", 10, 9),
        LimitStatus("tokens", 1000, 300),
    ]
    allowance.spent(Need(prompt_tokens=300, output_tokens=400), 0.0, 100)
    assert allowance.headroom("", 0.0) == pytest.approx(0.9)


def test_B62_new_limits_still_count_what_was_used() -> None:
    allowance = Allowance(10, None)
    for _ in range(10):
        allowance.take(ONE, 0.0)
    assert allowance.wait(ONE, 0.0) > 0.0
    allowance.limit(20, None)
    assert allowance.wait(ONE, 0.0) == 0.0
    allowance.limit(5, None)
    assert allowance.wait(ONE, 0.0) == pytest.approx(61.0)
    allowance.limit(None, None)
    assert allowance.wait(ONE, 0.0) == 0.0
