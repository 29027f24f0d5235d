"""The purges in force, and what they say of an entry.

Most entries are younger than the last purge: one comparison. For the others, the marks are held by
the shape of their selectors (which members are set), so that a verdict looks up one name per shape
and tag, however many marks there are.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Final, TypeAlias

from proxy.core.selectors import Mark, Selector, Tagged, key_members
from proxy.core.tags import normalized_tag

MOST_MARKS: Final = 10_000
_FOLDED_SHARE: Final = 10  # so that not every mark beyond the bound folds

EVERYTHING: Final = Selector()

_Kind: TypeAlias = tuple[Selector, bool, bool]  # and whether it is soft, and aged
_Names: TypeAlias = tuple[str, ...]
_Values: TypeAlias = tuple[str, ...]


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
        self._marks: dict[_Kind, Mark] = {}
        self._by_shape: dict[_Names, dict[_Values, tuple[Mark, ...]]] = {}

    def __len__(self) -> int:
        return len(self._marks)

    def __iter__(self) -> Iterator[Mark]:
        return iter(self._marks.values())

    def verdict(self, entry: Tagged) -> Verdict:
        """What the marks say of `entry`, whose tags are normalized."""
        if entry.generation >= self.latest:
            return Verdict.LIVE
        return self._judge(entry)

    def add(self, mark: Mark) -> bool:
        """Put a mark in force; False where it changes nothing."""
        self.latest = max(self.latest, mark.number)
        if mark.number <= self._everything:
            return False
        if mark.selector.tag is not None:
            tag = normalized_tag(mark.selector.tag)
            mark = replace(mark, selector=replace(mark.selector, tag=tag))
        kind = mark.selector, mark.soft, mark.stored_before is not None
        held = self._marks.get(kind)
        merged = mark if held is None else _merged(held, mark)
        if merged == held:
            return False
        self._marks[kind] = merged
        self._index(mark.selector)
        if kind == (EVERYTHING, False, False):
            self._everything = mark.number
            self._forget_covered()
        if len(self._marks) > self._most:
            self._fold()
        return True

    def _judge(self, entry: Tagged) -> Verdict:
        generation, stored_at = entry.generation, entry.stored_at
        verdict = Verdict.LIVE
        for mark in self._fitting(entry):
            if mark.number <= generation:
                continue
            if mark.stored_before is not None and stored_at >= mark.stored_before:
                continue
            if not mark.soft:
                return Verdict.GONE
            verdict = Verdict.STALE
        return verdict

    def _fitting(self, entry: Tagged) -> Iterator[Mark]:
        endpoint, digest = key_members(entry.key)
        members = {
            "digest": digest,
            "endpoint": endpoint,
            "rule": entry.rule,
            "model": entry.model,
            "tenant": entry.tenant,
        }
        for names, marks in self._by_shape.items():
            if names[-1:] != ("tag",):
                yield from marks.get(tuple([members[name] for name in names]), ())
                continue
            values = tuple([members[name] for name in names[:-1]])
            for tag in entry.tags:
                yield from marks.get((*values, tag), ())

    def _index(self, selector: Selector) -> None:
        kinds = [(selector, soft, aged) for soft in (False, True) for aged in (False, True)]
        names, values = _shape(selector)
        marks = tuple([self._marks[kind] for kind in kinds if kind in self._marks])
        self._by_shape.setdefault(names, {})[values] = marks

    def _fold(self) -> None:
        numbers = sorted(mark.number for mark in self if mark.number > self._everything)
        self.add(Mark(numbers[self._most // _FOLDED_SHARE], EVERYTHING))

    def _forget_covered(self) -> None:
        """Drop what the mark on everything covers."""
        held, self._marks, self._by_shape = self._marks, {}, {}
        for kind, mark in held.items():
            if mark.number > self._everything or kind == (EVERYTHING, False, False):
                self._marks[kind] = mark
        for selector, _, _ in self._marks:
            self._index(selector)


def uncovered(marks: Iterable[Mark], held: Sequence[Mark]) -> list[Mark]:
    """Those of `marks` whose work none of `held` does."""
    everything = 0
    numbers: dict[tuple[Selector, bool, float | None], int] = {}
    for mark in held:
        if mark.selector == EVERYTHING and not mark.soft and mark.stored_before is None:
            everything = max(everything, mark.number)
        place = mark.selector, mark.soft, mark.stored_before
        numbers[place] = max(mark.number, numbers.get(place, 0))
    return [
        mark
        for mark in marks
        if mark.number > everything
        and mark.number > numbers.get((mark.selector, mark.soft, mark.stored_before), 0)
    ]


def _shape(selector: Selector) -> tuple[_Names, _Values]:
    members = selector.set_members
    return tuple([name for name, _ in members]), tuple([value for _, value in members])


def _merged(held: Mark, new: Mark) -> Mark:
    """One mark of the same selector and kind that purges whatever either does."""
    before = held.stored_before
    if before is not None and new.stored_before is not None:
        before = max(before, new.stored_before)
    return replace(held, number=max(held.number, new.number), stored_before=before)
