"""The purge marks of a store that nobody else shares."""

from collections.abc import Callable, Sequence

from proxy.clock import Clock
from proxy.core.marks import MOST_MARKS, Marks, next_number
from proxy.core.selectors import Mark, Selector
from proxy.stores.marks import Hearing, Reading


class LocalMarkLog:
    """Held in memory for as long as the store is: with the process both are gone."""

    hearing = Hearing.ALONE

    def __init__(self, clock: Clock, *, most: int = MOST_MARKS) -> None:
        self._clock = clock
        self._marks = Marks(most)
        self._number = 0
        self._changed = True

    async def open(self, heard: Callable[[], None]) -> None:
        """Nobody else adds marks, so `heard` is never called."""

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        self._number = next_number(self._number, known, self._clock.wall())
        mark = Mark(self._number, selector, soft, stored_before)
        self._take([mark])
        return mark

    async def read(self, known: int) -> Reading | None:
        self._number = max(self._number, known)
        if not self._changed:
            return None
        self._changed = False
        marks = tuple(self._marks)
        return Reading(marks, held=marks)

    async def keep(self, marks: Sequence[Mark]) -> None:
        self._number = max(self._number, *(mark.number for mark in marks), 0)
        self._take(marks)

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _take(self, marks: Sequence[Mark]) -> None:
        for mark in marks:
            self._changed |= self._marks.add(mark)
