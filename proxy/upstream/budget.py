"""How many calls may be made a second time. Pure: `now` is monotonic seconds, handed in."""

import math
from dataclasses import dataclass
from typing import Final

from proxy.upstream.sliding import SlidingCounts

_WINDOW_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """Retries may be `share` of the requests, and `per_second` more, over the last ten seconds."""

    share: float = 0.3
    per_second: float = 3.0


UNLIMITED: Final = BudgetPolicy(per_second=math.inf)


class RetryBudget:
    """Keeps retries from multiplying what an upstream in trouble has to carry."""

    def __init__(self, policy: BudgetPolicy) -> None:
        self.policy = policy
        # Marked are the retries.
        self._calls = SlidingCounts(_WINDOW_SECONDS)

    def asked(self, now: float) -> None:
        """A request is sent for the first time."""
        self._calls.add(now, marked=False)

    def has_more(self, now: float) -> bool:
        """Whether one more may be sent again."""
        calls, retries = self._calls.totals(now)
        policy = self.policy
        most = policy.share * (calls - retries) + policy.per_second * _WINDOW_SECONDS
        return retries + 1 <= most

    def retried(self, now: float) -> None:
        """One is sent again."""
        self._calls.add(now, marked=True)
