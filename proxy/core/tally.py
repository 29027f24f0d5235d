"""Counts that cost next to nothing: plain numbers, which a scrape reads.

A hit that takes 12 µs can't spend 2 of them on the locks of three counters and a histogram.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from proxy.core.entry import Usage


class Durations:
    """How many there were, and how many seconds they took, in the buckets of a histogram."""

    __slots__ = ("_bounds", "_counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self.seconds += seconds

    @property
    def cumulative(self) -> list[int]:
        """How many took no longer than each of the bounds; the last one is how many there were."""
        return list(accumulate(self._counts))


class Spending:
    """Tokens, and what they cost for models with a price."""

    __slots__ = ("completion_tokens", "cost", "prompt_tokens")

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cost: float | None = None

    def add(self, usage: Usage, cost: float | None) -> None:
        """Count one answer; `cost` None has no price."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if cost is not None:
            self.cost = cost if self.cost is None else self.cost + cost
