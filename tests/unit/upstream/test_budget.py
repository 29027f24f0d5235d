"""The share of the traffic that may be retries."""

from proxy.upstream.budget import UNLIMITED, BudgetPolicy, RetryBudget


def took(budget: RetryBudget, now: float) -> bool:
    """Whether there is one more, which is then made."""
    has_more = budget.has_more(now)
    if has_more:
        budget.retried(now)
    return has_more


def spent(budget: RetryBudget, now: float) -> int:
    """How many retries it gives until it gives no more."""
    count = 0
    while took(budget, now):
        count += 1
        assert count < 10_000
    return count


def test_B63_retries_are_a_share_of_the_requests_and_a_few_more() -> None:
    budget = RetryBudget(BudgetPolicy(share=0.2, per_second=1.0))
    for _ in range(100):
        budget.asked(0.0)
    assert spent(budget, 0.0) == 20 + 10


def test_without_traffic_there_is_the_floor() -> None:
    budget = RetryBudget(BudgetPolicy(share=0.2, per_second=0.5))
    assert spent(budget, 0.0) == 5
    assert spent(budget, 5.0) == 0
    assert spent(budget, 11.0) == 5


def test_nothing_is_given_where_nothing_is_allowed() -> None:
    budget = RetryBudget(BudgetPolicy(share=0.0, per_second=0.0))
    budget.asked(0.0)
    assert not took(budget, 0.0)


def test_old_requests_earn_nothing() -> None:
    budget = RetryBudget(BudgetPolicy(share=1.0, per_second=0.0))
    for _ in range(10):
        budget.asked(0.0)
    assert not took(budget, 20.0)


def test_an_outage_is_not_multiplied() -> None:
    """Everything fails, each request wants four retries: the upstream gets a third more."""
    budget = RetryBudget(BudgetPolicy(share=0.3, per_second=3.0))
    calls = 0
    for step in range(20_000):
        now = step * 0.01
        budget.asked(now)
        calls += 1
        for _ in range(4):
            calls += took(budget, now)
    assert 20_000 * 1.3 <= calls <= 20_000 * 1.35


def test_without_a_limit_there_is_always_one_more() -> None:
    budget = RetryBudget(UNLIMITED)
    assert all(took(budget, 0.0) for _ in range(10_000))
