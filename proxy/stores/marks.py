"""What the engine asks of the log of purges that all who share a store share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from proxy.core.selectors import Mark, Selector


class Hearing(StrEnum):
    """How the log learns of marks that others added."""

    ALONE = "alone"  # nobody else adds any
    TOLD = "told"  # `heard` is called; what gets lost is found by reading now and then
    UNTOLD = "untold"  # by reading alone


@dataclass(frozen=True, slots=True)
class Reading:
    """What a log says: the marks that are `new` to this reader, in no order.

    `held` are all that the log holds, where it was read whole; else None. A mark that a reader
    knows and that is not among them was lost, and is for the reader to give back (`keep`).
    """

    new: Sequence[Mark]
    held: Sequence[Mark] | None = None


class MarkLog(Protocol):
    """Purge marks, numbered. Methods raise `StoreUnavailable`, within a time limit, and no else.

    Numbers grow over restarts, loss of the log and clocks that step back. Bounded: of one selector
    and kind the latest mark alone is kept, and where there are too many, the oldest give way to one
    mark on everything: that purges too much, never too little. Each instance has one reader.
    """

    @property
    def hearing(self) -> Hearing: ...

    async def open(self, heard: Callable[[], None]) -> None:
        """Get ready; `heard` is called when others may have added marks (where that is told).

        A medium that is down now must not make this fail.
        """
        ...

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        """Add a mark with a number above all before, and above `known`."""
        ...

    async def read(self, known: int) -> Reading | None:
        """What is new since the last reading; None where nothing is. The first reading is whole.

        `known` is the highest number known: a log that has lost it goes on above it, and is read
        whole. So it is after it was lost or repaired, and after a failure.
        """
        ...

    async def keep(self, marks: Sequence[Mark]) -> None:
        """Hold marks that were numbered before, unless the log holds what covers them."""
        ...

    async def close(self) -> None:
        """Let go of everything; safe to call twice."""
        ...
