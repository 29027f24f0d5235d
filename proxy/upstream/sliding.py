"""Two counters over the last seconds. Pure: `now` is monotonic seconds, handed in."""

from collections import deque
from typing import Final

_SLICES: Final = 10


class SlidingCounts:
    """How many there were in the last `seconds`, and how many of those were marked.

    Kept in slices of a tenth: what is counted leaves up to that much later.
    """

    def __init__(self, seconds: float) -> None:
        self._width = seconds / _SLICES
        # The number of each slice, what was counted in it, and what of that was marked.
        self._slices: deque[list[int]] = deque()
        self._all = 0
        self._marked = 0

    def add(self, now: float, *, marked: bool) -> None:
        """Count one."""
        number = self._settle(now)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append([number, 0, 0])
        latest = self._slices[-1]
        latest[1] += 1
        latest[2] += marked
        self._all += 1
        self._marked += marked

    def totals(self, now: float) -> tuple[int, int]:
        """All, and the marked ones among them."""
        self._settle(now)
        return self._all, self._marked

    def clear(self) -> None:
        """Begin anew."""
        self._slices.clear()
        self._all = self._marked = 0

    def _settle(self, now: float) -> int:
        number = int(now / self._width)
        while self._slices and self._slices[0][0] <= number - _SLICES:
            _, counted, marked = self._slices.popleft()
            self._all -= counted
            self._marked -= marked
        return number
