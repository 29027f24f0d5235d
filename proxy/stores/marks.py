"""What the engine asks of the log of purges that all who share a store share."""

from collections.abc import Callable, Sequence
from typing import Protocol

from proxy.core.selectors import Mark, Selector


class MarkLog(Protocol):
    """Purge marks, numbered. Methods raise `StoreUnavailable`, within a time limit, and no else.

    Bounded: of one selector and kind the latest mark alone is kept, and where there are too many,
    the oldest give way to one mark on everything: that purges too much, never too little.
    """

    async def open(self, heard: Callable[[], None]) -> None:
        """Get ready; `heard` is called when others may have added marks (where that is told)."""
        ...

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        """Add a mark with a number above all before, and above `known`."""
        ...

    async def read(self, known: int) -> Sequence[Mark] | None:
        """All marks in force; None where there is none beyond number `known`.

        Numbers go on above `known` where the log itself has lost them.
        """
        ...

    async def close(self) -> None: ...
