"""Does a hit cost more as entries, bodies or connections grow? CPU µs of the proxy for each.

    python -m bench.bench_scaling [--turns 3] [--seconds 2] [--patience 120] [--entries 1000000]
        [--only PART ...] [--write]

- entries: 1,000 to 1,000,000 in memory, small embeddings, filled through the proxy in batches of
  1,000; asked one by one, all of them in turn, neighbours far apart. The hot path is switched off,
  or has answered all of them before (which takes too long for more than 10,000).
- bodies: requests of 1 KB to 1 MB, repeated byte for byte, and spelled anew each time.
- connections: 1 to 1,000, the same two requests of 2 KB, and nginx's `proxy_cache` beside them.

The sizes take turns within one run; turns that others disturbed are taken again, as in `bench_hit`,
and each side proves what it measures as there.
"""

import argparse
import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bench.filling import BATCH, EMBEDDING, fill
from bench.goals import middle_of
from bench.hit_kinds import KINDS, Kind, long_settings, ours
from bench.hit_run import started, take_turns
from bench.hit_turns import Side
from bench.load import Requests
from bench.machine import LOAD_CORE, allow_descriptors, described, pin
from bench.question import Question
from bench.report import publish, table

ENTRIES = (1_000, 10_000, 100_000, 1_000_000)
# More than these are not asked for beforehand, until all of them are remembered.
MOST_HOT, ROUNDS = 10_000, 6
WORDS = {"1 KB": 160, "10 KB": 1_960, "100 KB": 20_000, "1 MB": 200_000}
CONNECTIONS = (1, 10, 100, 1_000)
PARTS = ("entries", "bodies", "connections")
HOT, WARM = "repeated byte for byte", "other bytes, same key"


@dataclass(frozen=True, slots=True)
class Cell:
    """One side of a table: its row and column."""

    size: str
    way: str


Grid = Mapping[Cell, Kind]


def entries_grid(most: int) -> Grid:
    """Each number of entries, with the hot path and without."""
    store = {"tiers": "memory", "memory": {"max_bytes": "4GiB"}}
    grid = {}
    for count in (each for each in ENTRIES if each <= most):
        size = f"{count:,}"
        for way, hot_path_bytes in (("hot", "1GiB"), ("hot path switched off", 0)):
            is_hot = way == "hot"
            if not is_hot or count <= MOST_HOT:
                grid[Cell(size, way)] = ours(
                    f"{size} entries, {way}",
                    settings={"store": store, "server": {"hot_path_bytes": hot_path_bytes}},
                    question=EMBEDDING,
                    requests=Requests.CYCLED,
                    count=count,
                    is_hot=is_hot,
                )
    return grid


def bodies_grid() -> Grid:
    """Each size of the request, in both ways."""
    settings = long_settings("256MiB", "4MiB")
    return {
        Cell(size, way): ours(
            f"{size}, {way}",
            settings=settings,
            question=Question(words=words),
            requests=requests,
            is_hot=way == HOT,
        )
        for size, words in WORDS.items()
        for way, requests in ((HOT, Requests.SAME), (WARM, Requests.SPELLED))
    }


def connections_grid() -> Grid:
    """Each number of connections, in both ways and for nginx."""
    ways = {HOT: "hot", WARM: "warm", "nginx `proxy_cache`": "nginx"}
    return {
        Cell(f"{count:,}", way): replace(KINDS[name], connections=count)
        for count in CONNECTIONS
        for way, name in ways.items()
    }


def measured(grid: Grid, turns: int, seconds: int, patience: float) -> str:
    """The table of a grid, and what there is to say of it."""
    with started(grid) as (sides, missing):
        for side in sides.values():
            if side.kind.requests is Requests.CYCLED:
                _fill(side, seconds)
        spent, wrong = take_turns(sides, turns, seconds, patience)
        left_out = "".join(f"\n\nLeft out: {each}" for each in missing + wrong)
        return f"{spent}\n\n{table_of(grid, sides)}{left_out}"


def _fill(side: Side, seconds: int) -> None:
    """Have all entries stored that are asked for, and remembered by the hot path."""
    asyncio.run(fill(side.server, 0, side.kind.count // BATCH))
    while side.kind.is_hot and side.asked < ROUNDS * side.kind.count:
        side.warm_up(seconds)


def table_of(grid: Grid, sides: Mapping[Cell, Side]) -> str:
    """A row for each size; for each way its cost, beside that of the first size, and its p99."""
    ways = list(dict.fromkeys(cell.way for cell in grid))
    sizes = list(dict.fromkeys(cell.size for cell in grid))
    head = [""]
    for way in ways:
        head += [f"{way}: CPU µs", "/ first", "p99 ms"]
    rows = []
    for size in sizes:
        row = [size]
        for way in ways:
            row += _cells(sides.get(Cell(size, way)), sides.get(Cell(sizes[0], way)))
        rows.append(row)
    return table(head, rows)


def _cells(side: Side | None, first: Side | None) -> list[str]:
    if side is None:
        return [""] * 3
    costs = [turn.figures.cpu_us for turn in side.turns]
    ratio = ""
    if first is not None and first is not side:
        pairs = zip(costs, (turn.figures.cpu_us for turn in first.turns), strict=True)
        ratio = middle_of([mine / theirs for mine, theirs in pairs])
    p99 = f"{side.median(lambda turn: turn.figures.p99_us) / 1000:,.2f}"
    return [middle_of(costs), ratio, p99]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn of each side")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds, for each part")
    parser.add_argument("--entries", type=int, default=ENTRIES[-1], help="the most")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    allow_descriptors()
    grids = {
        "entries": lambda: entries_grid(given.entries),
        "bodies": bodies_grid,
        "connections": connections_grid,
    }
    command = f"python -m bench.bench_scaling --turns {given.turns} --seconds {given.seconds}"
    text = [f"`{command}`: {described('uvicorn', 'uvloop')} {given.turns} turn(s); median (range)."]
    for part in given.only:
        print(f"{part} …", flush=True)
        found = measured(grids[part](), given.turns, given.seconds, given.patience)
        text += ["", f"By {part}: {found}"]
    publish("scaling", "\n".join(text), write=given.write)


if __name__ == "__main__":
    main()
