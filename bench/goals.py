"""What is to be reached, computed from the turns of the sides."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bench.report import middle


@dataclass(frozen=True, slots=True)
class Figures:
    """What one turn of one side came to; `event_us`: CPU for each streamed event."""

    rate: float
    cpu_us: float
    p50_us: float
    p99_us: float
    event_us: float | None = None


class Measure(StrEnum):
    """What a goal is about; the value is what a table calls it."""

    RATE = "rate"
    CPU = "CPU"
    EVENT = "CPU per event"
    P99 = "p99"

    def of(self, figures: Figures) -> float:
        match self:
            case Measure.RATE:
                return figures.rate
            case Measure.CPU:
                return figures.cpu_us
            case Measure.P99:
                return figures.p99_us
            case Measure.EVENT:
                assert figures.event_us is not None
                return figures.event_us


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a side's figure, or for its ratio to another side's figure of the same turn.

    Rates are to be at least the bound, all else at most.
    """

    path: str
    side: str
    measure: Measure
    bound: float
    against: str | None = None
    against_title: str = ""

    @property
    def wanted(self) -> str:
        sign = "≥" if self.measure is Measure.RATE else "≤"
        unit = f"times {self.against_title}" if self.against is not None else "µs"
        return f"{self.measure} {sign} {self.bound:g} {unit}"

    def figures(self, turns: Mapping[str, Sequence[Figures]]) -> list[float] | None:
        """One for each turn; None where a side was not measured."""
        mine = turns.get(self.side)
        if not mine:
            return None
        if self.against is None:
            return [self.measure.of(each) for each in mine]
        theirs = turns.get(self.against)
        if not theirs:
            return None
        pairs = zip(mine, theirs, strict=True)
        return [self.measure.of(a) / self.measure.of(b) for a, b in pairs]

    def is_reached(self, figures: Sequence[float]) -> bool:
        """By the median."""
        median = statistics.median(figures)
        return median >= self.bound if self.measure is Measure.RATE else median <= self.bound


_CACHE = "nginx `proxy_cache`"
_LITELLM = "LiteLLM's, from memory"
_TENSORZERO = "TensorZero's"
GOALS = (
    Goal("hot hit", "hot", Measure.RATE, 2.0, "nginx", _CACHE),
    Goal("hot hit", "hot", Measure.RATE, 0.5, "static", "nginx static"),
    Goal("hot hit", "hot", Measure.RATE, 3.0, "fastapi", "plain FastAPI route"),
    Goal("hot hit", "hot", Measure.CPU, 16),
    Goal("hot hit", "hot", Measure.P99, 1.5, "nginx", _CACHE),
    Goal("hot hit", "hot", Measure.RATE, 300, "litellm", _LITELLM),
    Goal("hot hit", "hot", Measure.RATE, 12, "tensorzero", _TENSORZERO),
    Goal("warm hit", "warm", Measure.RATE, 0.35, "nginx", _CACHE),
    Goal("warm hit", "warm", Measure.CPU, 110),
    Goal("warm hit", "warm", Measure.RATE, 80, "litellm", _LITELLM),
    Goal("warm hit", "warm", Measure.RATE, 2, "tensorzero", _TENSORZERO),
    Goal("hit from Redis", "redis", Measure.CPU, 180),
    Goal("hit from disk", "disk", Measure.CPU, 150),
    Goal("miss, instant upstream", "miss", Measure.CPU, 600),
    Goal("miss, instant upstream", "miss", Measure.CPU, 0.5, "miss-httpx", "that over httpx"),
    Goal("stream relayed and recorded", "stream", Measure.EVENT, 60),
    Goal("hot hit, 100 KB asked", "hot-100k", Measure.CPU, 80),
    Goal("warm hit, 100 KB asked", "warm-100k", Measure.CPU, 500),
)


def rows(turns: Mapping[str, Sequence[Figures]], program: str) -> list[list[str]]:
    """A row for each goal whose sides were measured."""
    made = []
    for goal in GOALS:
        figures = goal.figures(turns)
        if figures is not None:
            reached = goal.is_reached(figures)
            made.append(row(goal.path, goal.wanted, middle_of(figures), program, reached=reached))
    return made


def row(path: str, wanted: str, measured: str, program: str, *, reached: bool) -> list[str]:
    """One row of the table of goals."""
    return [path, wanted, measured, "reached" if reached else "**missed**", f"`{program}`"]


def middle_of(figures: Sequence[float]) -> str:
    """Median and range, with as many digits as say something."""
    median = statistics.median(figures)
    return middle(figures, 4 if median < 0.1 else 2 if median < 10 else 1 if median < 100 else 0)
