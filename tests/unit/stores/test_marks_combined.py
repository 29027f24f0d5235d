"""The two logs of a machine with a disk and a Redis: each gets what the other has."""

from collections.abc import Callable, Sequence

import pytest

from proxy.core.marks import uncovered
from proxy.core.selectors import Mark, Selector
from proxy.errors import StoreUnavailable
from proxy.stores.marks import Hearing, Reading
from proxy.stores.marks_combined import CombinedMarkLog
from proxy.stores.marks_local import LocalMarkLog
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio

A, B = Selector(tag="a"), Selector(tag="b")


class Log(LocalMarkLog):
    """One that can be down; its next reading is whole then."""

    hearing = Hearing.TOLD

    def __init__(self, *marks: Mark) -> None:
        super().__init__(FakeClock())
        self._take(marks)
        self.down = False
        self.opened: Callable[[], None] | None = None

    @property
    def marks(self) -> set[Mark]:
        return set(self._marks)

    async def open(self, heard: Callable[[], None]) -> None:
        self.opened = heard

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        self._check()
        return await super().add(selector, soft=soft, stored_before=stored_before, known=known)

    async def read(self, known: int) -> Reading | None:
        self._check()
        return await super().read(known)

    async def keep(self, marks: Sequence[Mark]) -> None:
        self._check()
        await super().keep(marks)

    def _check(self) -> None:
        if self.down:
            self._changed = True
            raise StoreUnavailable("down")


async def follow(log: CombinedMarkLog, mine: Sequence[Mark] = ()) -> set[Mark]:
    """What a reader does: take what is new, and give back what is lacking."""
    known = set(mine)
    reading = await log.read(0)
    if reading is not None:
        known |= set(reading.new)
        if reading.held is not None and (lost := uncovered(known, reading.held)):
            await log.keep(lost)
    return known


async def add(log: CombinedMarkLog, selector: Selector = A) -> Mark:
    return await log.add(selector, soft=False, stored_before=None, known=0)


async def test_B54_a_purge_goes_to_both_under_one_number() -> None:
    shared, own = Log(), Log()
    mark = await add(CombinedMarkLog(shared, own))
    assert shared.marks == own.marks == {mark}


async def test_B54_what_others_purged_is_mirrored() -> None:
    shared, own = Log(), Log()
    combined = CombinedMarkLog(shared, own)
    await follow(combined)
    mark = await shared.add(A, soft=False, stored_before=None, known=0)
    await follow(combined)
    assert own.marks == {mark}


@pytest.mark.parametrize(
    ("in_shared", "in_own"),
    [
        ([Mark(1, A)], [Mark(2, B)]),
        ([Mark(1, A), Mark(3, B)], [Mark(2, B)]),
        ([], [Mark(2, B)]),
        ([Mark(1, A)], []),
        ([Mark(1, A, soft=True)], [Mark(2, A)]),
    ],
)
async def test_B54_at_the_start_each_gets_what_the_other_has(
    in_shared: list[Mark], in_own: list[Mark]
) -> None:
    shared, own = Log(*in_shared), Log(*in_own)
    known = await follow(CombinedMarkLog(shared, own))
    assert known == {*in_shared, *in_own}
    for log in (shared, own):
        assert not uncovered(known, list(log.marks))


async def test_B54_with_the_shared_log_down_the_own_one_tells() -> None:
    shared, own = Log(Mark(1, A)), Log(Mark(2, B))
    shared.down = True
    combined = CombinedMarkLog(shared, own)
    known = await follow(combined)
    assert known == {Mark(2, B)}
    with pytest.raises(StoreUnavailable):
        await combined.read(0)
    with pytest.raises(StoreUnavailable):
        await add(combined)
    assert own.marks == {Mark(2, B)}, "who adds it later adds it to both"
    shared.down = False
    known = await follow(combined, list(known))
    assert known == shared.marks == own.marks == {Mark(1, A), Mark(2, B)}


async def test_B54_what_the_own_log_missed_it_gets_later() -> None:
    shared, own = Log(), Log()
    combined = CombinedMarkLog(shared, own)
    await follow(combined)
    own.down = True
    mark = await add(combined)
    known = await follow(combined)
    assert known == {mark}
    own.down = False
    await follow(combined, list(known))
    assert own.marks == {mark}


async def test_it_hears_as_the_shared_log_does() -> None:
    shared, own = Log(), Log()
    combined = CombinedMarkLog(shared, own)

    def heard() -> None:
        return

    await combined.open(heard)
    assert shared.opened is own.opened is heard
    assert combined.hearing is Hearing.TOLD
    await combined.close()
