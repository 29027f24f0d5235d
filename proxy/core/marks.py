"""The purges in force, and what they say of an entry.

Most entries are younger than the last purge: one comparison. For the others, the marks are held by
the shape of their selectors (which members are set), so that a verdict looks up one name per shape
and tag, however many marks there are.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from operator import itemgetter
from typing import Any, Final, TypeAlias

from proxy.core.selectors import MEMBERS, Mark, Selector, Tagged, key_members
from proxy.core.tags import normalized_tag

MOST_MARKS: Final = 10_000
_FOLDED_SHARE: Final = 10  # so that not every mark beyond the bound folds

EVERYTHING: Final = Selector()

# Marks of one selector, of one kind each: soft or hard, aged or not.
_Kinds: TypeAlias = tuple[Mark, ...]


class Verdict(StrEnum):
    """What the purges say of an entry."""

    LIVE = "live"  # no purge is about it
    STALE = "stale"  # a soft purge is: it may be served where stale entries are
    GONE = "gone"


def next_number(last: int, known: int, now: float) -> int:
    """The number of a new mark: the time in ms, but above all before, whatever the clock says.

    `last` is the highest of the log, `known` the highest that whoever adds it knows of, `now`
    wall-clock seconds.
    """
    return max(last + 1, known + 1, int(now * 1000))


class Marks:
    """Marks of which the latest of each selector and kind (soft or hard, aged or not) counts.

    Beyond `most` the oldest fold into one on everything. What is merged purges more than its parts
    did, never less.
    """

    def __init__(self, most: int = MOST_MARKS) -> None:
        self.latest = 0
        """The highest number so far."""
        self._most = most
        self._everything = 0
        self._count = 0
        self._shapes: dict[tuple[str, ...], _Shape] = {}

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Mark]:
        for shape in self._shapes.values():
            for kinds in shape.marks.values():
                yield from kinds

    def verdict(self, entry: Tagged) -> Verdict:
        """What the marks say of `entry`, whose tags are normalized."""
        if entry.generation >= self.latest:
            return Verdict.LIVE
        verdict = Verdict.LIVE
        members = (*key_members(entry.key), entry.rule, entry.model, entry.tenant)
        for shape in self._shapes.values():
            for name in shape.names(members, entry.tags):
                if name not in shape.marks:
                    continue
                found = _judge(shape.marks[name], entry)
                if found is Verdict.GONE:
                    return found
                if found is Verdict.STALE:
                    verdict = found
        return verdict

    def add(self, mark: Mark) -> bool:
        """Put a mark in force; False where it changes nothing."""
        self.latest = max(self.latest, mark.number)
        if mark.number <= self._everything:
            return False
        mark = _normalized(mark)
        set_names = tuple([name for name, _ in mark.selector.set_members])
        shape = self._shapes.get(set_names)
        if shape is None:
            shape = self._shapes[set_names] = _Shape.of(set_names)
        name = shape.name(mark.selector)
        kinds = shape.marks.get(name, ())
        held = next((other for other in kinds if _kind(other) == _kind(mark)), None)
        merged = mark if held is None else _merged(held, mark)
        if merged == held:
            return False
        shape.marks[name] = (merged, *(other for other in kinds if other is not held))
        self._count += held is None
        if _is_everything(mark):
            self._everything = mark.number
            self._forget_covered()
        if self._count > self._most:
            self._fold()
        return True

    def _fold(self) -> None:
        numbers = sorted([mark.number for mark in self if mark.number > self._everything])
        self.add(Mark(numbers[self._most // _FOLDED_SHARE], EVERYTHING))

    def _forget_covered(self) -> None:
        """Drop what the mark on everything covers."""
        self._count = 0
        for shape in self._shapes.values():
            for name, kinds in list(shape.marks.items()):
                left = [m for m in kinds if m.number > self._everything or _is_everything(m)]
                self._count += len(left)
                if len(left) < len(kinds):
                    shape.marks[name] = tuple(left)
                if not left:
                    del shape.marks[name]
        self._shapes = {name: shape for name, shape in self._shapes.items() if shape.marks}


@dataclass(frozen=True, slots=True)
class _Shape:
    """The marks whose selectors set the same members, by what `pick` takes of an entry's members.

    With `tagged` the tag is one of them, and a mark's name is that and the tag.
    """

    pick: Callable[[Sequence[str]], Hashable]
    tagged: bool
    marks: dict[Hashable, _Kinds] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str]) -> "_Shape":
        places = [MEMBERS.index(name) for name in names if name != "tag"]
        pick: Any = itemgetter(*places) if places else _nothing
        return cls(pick, "tag" in names)

    def names(self, members: Sequence[str], tags: Sequence[str]) -> Sequence[Hashable]:
        """Under which names marks that fit an entry stand."""
        picked = self.pick(members)
        return [(picked, tag) for tag in tags] if self.tagged else (picked,)

    def name(self, selector: Selector) -> Hashable:
        """The name of a selector of this shape."""
        members = [getattr(selector, name) for name in MEMBERS]
        (name,) = self.names(members, members[-1:])
        return name


def uncovered(marks: Iterable[Mark], held: Sequence[Mark]) -> list[Mark]:
    """Those of `marks` whose work none of `held` does."""
    everything = 0
    numbers: dict[tuple[Selector, bool, float | None], int] = {}
    for mark in held:
        if _is_everything(mark):
            everything = max(everything, mark.number)
        place = mark.selector, mark.soft, mark.stored_before
        numbers[place] = max(mark.number, numbers.get(place, 0))
    return [
        mark
        for mark in marks
        if mark.number > everything
        and mark.number > numbers.get((mark.selector, mark.soft, mark.stored_before), 0)
    ]


def _judge(kinds: _Kinds, entry: Tagged) -> Verdict:
    verdict = Verdict.LIVE
    for mark in kinds:
        if mark.number <= entry.generation:
            continue
        if mark.stored_before is not None and entry.stored_at >= mark.stored_before:
            continue
        if not mark.soft:
            return Verdict.GONE
        verdict = Verdict.STALE
    return verdict


def _kind(mark: Mark) -> tuple[bool, bool]:
    return mark.soft, mark.stored_before is not None


def _is_everything(mark: Mark) -> bool:
    return mark.selector == EVERYTHING and _kind(mark) == (False, False)


def _nothing(_: Sequence[str]) -> tuple[str, ...]:
    return ()


def _normalized(mark: Mark) -> Mark:
    tag = mark.selector.tag
    if tag is None or tag == (normal := normalized_tag(tag)):
        return mark
    return replace(mark, selector=replace(mark.selector, tag=normal))


def _merged(held: Mark, new: Mark) -> Mark:
    """One mark of the same selector and kind that purges whatever either does."""
    before = held.stored_before
    if before is not None and new.stored_before is not None:
        before = max(before, new.stored_before)
    return replace(held, number=max(held.number, new.number), stored_before=before)
