"""Metrics as values: what one worker counted, and the sum of what several did.

A scrape may reach any worker and tells of all. What a worker counted that has ended since stays in
the sums, so that no counter ever goes backwards.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""Names and values, in the order of the family."""

# Gauges that are no sums, by how their names end. Where workers differ about a state, each
# counts: a store is up if it is for all, a key or circuit is in every state that any has it in. Of
# what is left of a limit that they share, the least does.
_GAUGES: Final[Mapping[str, Callable[[float, float], float]]] = MappingProxyType(
    {"up": min, "state": max, "headroom": min}
)
# What all workers share is held once, whoever counts it.
_HELD: Final = frozenset({"magic_proxy_store_entries", "magic_proxy_store_bytes"})
_PER_WORKER: Final = (("store", "memory"),)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its samples.

    `kind` is Prometheus's word: `counter`, `gauge`, `histogram`. Samples have names of their own:
    a counter's ends in `_total`, a histogram has several.
    """

    name: str
    kind: str
    documentation: str
    samples: Mapping[tuple[str, Labels], float] = field(hash=False)

    @property
    def is_lasting(self) -> bool:
        """True where it counts what has happened, and not what is."""
        return self.kind != "gauge"

    def as_json(self) -> list[Any]:
        """The same as JSON values."""
        samples = [[name, labels, value] for (name, labels), value in self.samples.items()]
        return [self.name, self.kind, self.documentation, samples]

    @classmethod
    def of_json(cls, given: list[Any]) -> "Family":
        """Undo `as_json`."""
        name, kind, documentation, samples = given
        return cls(
            name,
            kind,
            documentation,
            {
                (sample, tuple((label, text) for label, text in labels)): value
                for sample, labels, value in samples
            },
        )


def merged(reports: Iterable[Iterable[Family]]) -> list[Family]:
    """The families of several workers as those of one, in the order of their first appearance."""
    together: dict[str, list[Family]] = {}
    for report in reports:
        for family in report:
            together.setdefault(family.name, []).append(family)
    return [_merge(families) for families in together.values()]


def lasting(report: Iterable[Family]) -> list[Family]:
    """What stays of a worker that has ended."""
    return [family for family in report if family.is_lasting]


def _merge(families: Sequence[Family]) -> Family:
    first = families[0]
    if len(families) == 1:
        return first
    samples: dict[tuple[str, Labels], float] = {}
    for family in families:
        for key, value in family.samples.items():
            before = samples.get(key)
            samples[key] = value if before is None else _joined(first, key[1], before, value)
    return Family(first.name, first.kind, first.documentation, samples)


def _joined(family: Family, labels: Labels, one: float, other: float) -> float:
    if family.is_lasting:
        return one + other
    if family.name in _HELD and labels != _PER_WORKER:
        return max(one, other)
    join = _GAUGES.get(family.name.rpartition("_")[2])
    return one + other if join is None else join(one, other)
