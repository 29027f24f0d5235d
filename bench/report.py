"""Figures as Markdown, on stdout and into docs/performance.md."""

import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
GOALS_HEAD = ("path", "goal", "measured", "", "by")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are aligned right."""
    rule = [*("---" for _ in head[:left]), *("---:" for _ in head[left:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def middle(figures: Sequence[float], digits: int = 0) -> str:
    """The median, and the range."""
    low, high = min(figures), max(figures)
    return f"{statistics.median(figures):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def publish(name: str, text: str, *, write: bool) -> None:
    """Print a report; with `write`, also put it between its markers in docs/performance.md."""
    print(text)
    if write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replaced(page, name, lambda _: text), encoding="utf-8")


def publish_goals(rows: Sequence[Sequence[str]], *, write: bool) -> None:
    """Print rows of the table of goals; with `write`, put them where they stand in the page."""
    print(f"\n{with_rows('', rows)}")
    if write:
        page = PAGE.read_text(encoding="utf-8")
        page = replaced(page, "goals", lambda old: with_rows(old, rows))
        PAGE.write_text(page, encoding="utf-8")


def replaced(page: str, name: str, new: Callable[[str], str]) -> str:
    """The page with other text between the markers; `new` gets the old one."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    pattern = re.compile(re.escape(begin) + "(.*?)" + re.escape(end), re.DOTALL)
    assert len(pattern.findall(page)) == 1, f"{PAGE} has no place for {name!r}"
    return pattern.sub(lambda found: f"{begin}\n{new(found[1].strip())}\n\n{end}", page)


def with_rows(old: str, rows: Sequence[Sequence[str]]) -> str:
    """The table of goals with some rows new: one replaces that whose first two cells it has."""
    kept = [line.strip("| ").split(" | ") for line in old.splitlines()[2:]]
    by_name = {tuple(row[:2]): row for row in kept} | {tuple(row[:2]): row for row in rows}
    return table(GOALS_HEAD, list(by_name.values()), left=len(GOALS_HEAD))
