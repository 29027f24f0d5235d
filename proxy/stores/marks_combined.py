"""The purge marks where entries are both on disk and in Redis: in both, so that either may be lost.

The shared log gives the numbers. The own one mirrors it: whoever starts while the shared one is
down knows what is purged on its disk, and gives back what the shared one lost.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

from proxy.core.marks import uncovered
from proxy.core.selectors import Mark, Selector
from proxy.errors import StoreUnavailable
from proxy.stores.marks import MarkLog, Reading


class CombinedMarkLog:
    """`shared` is that of all replicas, `own` that of this machine.

    `add` and `keep` raise where the shared log fails; what the own one missed it gets with the
    first reading that finds it well. `read` raises where the shared log fails and nothing is new
    in the own one.
    """

    def __init__(self, shared: MarkLog, own: MarkLog) -> None:
        self._shared = shared
        self._own = own
        self.hearing = shared.hearing

    async def open(self, heard: Callable[[], None]) -> None:
        await self._own.open(heard)
        await self._shared.open(heard)

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        mark = await self._shared.add(selector, soft=soft, stored_before=stored_before, known=known)
        await self._mirror([mark])
        return mark

    async def read(self, known: int) -> Reading | None:
        own = None
        with suppress(StoreUnavailable):  # its circuit tells; the shared log is what counts
            own = await self._own.read(known)
        try:
            shared = await self._shared.read(known)
        except StoreUnavailable:
            if own is None:
                raise
            return own
        if shared is None:
            return own
        await self._mirror(shared.new)
        if own is None:
            return shared
        new = tuple(dict.fromkeys((*own.new, *shared.new)))
        return Reading(new, held=_held_by_both(own, shared))

    async def keep(self, marks: Sequence[Mark]) -> None:
        await self._mirror(marks)
        await self._shared.keep(marks)

    async def close(self) -> None:
        await self._own.close()
        await self._shared.close()

    async def _mirror(self, marks: Sequence[Mark]) -> None:
        with suppress(StoreUnavailable):  # then its next reading is whole
            await self._own.keep(marks)


def _held_by_both(own: Reading, shared: Reading) -> Sequence[Mark] | None:
    if own.held is None or shared.held is None:
        return shared.held if own.held is None else own.held
    lacking = set(uncovered(own.held, shared.held)) | set(uncovered(shared.held, own.held))
    return [mark for mark in (*own.held, *shared.held) if mark not in lacking]
