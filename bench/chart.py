"""Bars on a logarithmic scale, as an SVG that stands by itself: nothing is fetched, nothing runs.

It is read on light and on dark pages: it has its own ground, light or dark as the reader's system
prefers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, VALUES = 820, 300, 130
ROW, BAR, GAP, TOP, BOTTOM = 24, 15, 14, 54, 30
MARGIN = 18
_PLOT = WIDTH - LABELS - VALUES
_STYLE = """\
  text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #24292f }
  .ground { fill: #ffffff }
  .title { font-size: 16px; font-weight: 600 }
  .group { font-weight: 600 }
  .faint { fill: #656d76; font-size: 12px }
  .grid { stroke: #8c959f; stroke-opacity: .3 }
  .limit { fill: #8c959f }
  .ours { fill: #1f883d }
  .other { fill: #bf8700 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 }
    text { fill: #e6edf3 }
    .faint { fill: #9198a1 }
    .ours { fill: #3fb950 }
    .other { fill: #d29922 }
  }"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One side: answers in a second, and CPU for each."""

    title: str
    group: str
    rate: float
    cpu_us: float


def decades(rates: Sequence[float]) -> tuple[int, int]:
    """The powers of ten that hold all rates between them."""
    return math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))


def length(rate: float, low: int, high: int) -> float:
    """How long its bar is, in pixels."""
    return (math.log10(rate) - low) / (high - low) * _PLOT


def svg(title: str, below: str, bars: Sequence[Bar], ours: str, limit: str) -> str:
    """The picture; `ours` and `limit` are the groups with a colour of their own."""
    low, high = decades([bar.rate for bar in bars])
    groups = list(dict.fromkeys(bar.group for bar in bars))
    height = TOP + len(bars) * ROW + len(groups) * (ROW + GAP) + BOTTOM
    colours = {ours: "ours", limit: "limit"}
    wide, tall = WIDTH + 2 * MARGIN, height + 2 * MARGIN
    size = f'viewBox="{-MARGIN} {-MARGIN} {wide} {tall}" width="{wide}" height="{tall}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">',
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="ground" x="{-MARGIN}" y="{-MARGIN}" width="{wide}" height="{tall}" rx="8"/>',
        f'<text class="title" x="0" y="18">{escape(title)}</text>',
        f'<text class="faint" x="0" y="38">{escape(below)}</text>',
        *_grid(low, high, height),
    ]
    at = TOP
    for group in groups:
        at += GAP
        lines.append(f'<text class="group" x="0" y="{at + BAR - 3}">{escape(group)}</text>')
        at += ROW
        for bar in bars:
            if bar.group == group:
                lines.extend(_bar(bar, colours.get(group, "other"), at, low, high))
                at += ROW
    return "\n".join([*lines, "</svg>", ""])


def _grid(low: int, high: int, height: int) -> Iterator[str]:
    for decade in range(low, high + 1):
        x = LABELS + length(10.0**decade, low, high)
        yield (
            f'<line class="grid" x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{height - BOTTOM + 4}"/>'
        )
        yield (
            f'<text class="faint" x="{x:.1f}" y="{height - 10}" text-anchor="middle">'
            f"{10**decade:,}</text>"
        )


def _bar(bar: Bar, colour: str, at: float, low: int, high: int) -> Iterator[str]:
    long = length(bar.rate, low, high)
    base = at + BAR - 3
    yield f'<text x="{LABELS - 10}" y="{base}" text-anchor="end">{escape(bar.title)}</text>'
    yield (
        f'<rect class="{colour}" x="{LABELS}" y="{at}" width="{long:.1f}" height="{BAR}" rx="2"/>'
    )
    yield (
        f'<text x="{LABELS + long + 7:.1f}" y="{base}">{bar.rate:,.0f}/s'
        f' <tspan class="faint">{bar.cpu_us:,.0f} µs</tspan></text>'
    )
