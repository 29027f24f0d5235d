"""Figures as Markdown, on stdout and into docs/performance.md."""

import re
import statistics
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def middle(figures: Sequence[float], digits: int = 0) -> str:
    """The median, and the range."""
    low, high = min(figures), max(figures)
    return f"{statistics.median(figures):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def publish(name: str, text: str, *, write: bool) -> None:
    """Print a report; with `write`, also put it between its markers in docs/performance.md."""
    print(text)
    if not write:
        return
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    assert len(pattern.findall(page)) == 1, f"{PAGE} has no place for {name!r}"
    PAGE.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n\n{end}", page), encoding="utf-8")
