"""How much of one limit is left over time. Pure: `now` is monotonic seconds, handed in.

What counts by the minute is exact to the second, on the side of less. What upstreams tell of their
own count (`x-ratelimit-*`) is a bucket that fills evenly until its reset.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from proxy.upstream.limits_told import ToldLimit

WINDOW_SECONDS: Final = 60


class MinuteWindow:
    """At most `limit` in any 60 seconds; times are monotonic seconds.

    What others use counts with what is used here, but is known late and told in estimates first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._slices: deque[_Slice] = deque()
        self._used = 0

    def left(self, now: float) -> int:
        """How much may be used now; below 0 where more was used than had been estimated."""
        self._forget(now)
        return self.limit - self._used

    def take(self, amount: int, now: float) -> None:
        self._slice(now).own += amount
        self._used += amount

    def correct(self, at: float, amount: int) -> int:
        """Change what was taken at `at` by `amount`; by how much it did: not what is forgotten."""
        second = math.floor(at)
        for each in self._slices:
            if each.second == second:
                amount = max(amount, -each.own)
                each.own += amount
                self._used += amount
                return amount
        return 0

    def others_took(self, amount: int, now: float) -> None:
        """Below 0, they give back; the oldest first, so that nothing is forgotten too early."""
        newest = self._slice(now)
        if amount >= 0:
            newest.others += amount
            self._used += amount
            return
        for each in self._slices:
            back = min(each.others, -amount)
            each.others -= back
            self._used -= back
            amount += back

    def wait(self, amount: int, now: float) -> float:
        """Seconds until `amount` may be taken; more than the limit needs an empty window."""
        self._forget(now)
        over = self._used + min(amount, self.limit) - self.limit
        for each in self._slices:
            if over <= 0:
                break
            over -= each.own + each.others
            if over <= 0:
                return max(each.second + WINDOW_SECONDS + 1 - now, 0.0)
        return 0.0

    def _slice(self, now: float) -> "_Slice":
        """That of the second that is now."""
        self._forget(now)
        second = math.floor(now)
        if not self._slices or self._slices[-1].second != second:
            self._slices.append(_Slice(second))
        return self._slices[-1]

    def _forget(self, now: float) -> None:
        # What was used anywhere in a second counts to the end of that second's minute.
        slices = self._slices
        oldest = math.floor(now) - WINDOW_SECONDS
        while slices and slices[0].second < oldest:
            gone = slices.popleft()
            self._used -= gone.own + gone.others


@dataclass(slots=True)
class _Slice:
    second: int
    own: int = 0
    others: int = 0


class Bucket:
    """What an upstream told of one limit, and what was taken since.

    Where it did not tell when all is there again, nobody is held back.
    """

    def __init__(self, told: ToldLimit, now: float) -> None:
        self.limit = told.limit
        missing, reset = told.limit - told.remaining, told.reset_seconds
        self._level = float(told.limit if reset == 0.0 else told.remaining)
        self._at = now
        self._holds = reset is not None
        self._rate = missing / reset if missing and reset else told.limit / WINDOW_SECONDS

    def left(self, now: float) -> float:
        return min(self._level + (now - self._at) * self._rate, float(self.limit))

    def take(self, amount: int, now: float) -> None:
        self._level = max(self.left(now) - amount, 0.0)
        self._at = now

    def wait(self, amount: int, now: float) -> float:
        """Seconds until it holds `amount`, or is full."""
        if not self._holds or amount <= self._level:
            return 0.0
        lacking = min(amount, self.limit) - self.left(now)
        return lacking / self._rate if lacking > 0 else 0.0
