"""What `bench_hit` came to, as a table and as bars."""

from collections.abc import Mapping

from bench.chart import Bar
from bench.goals import Figures, middle_of
from bench.hit_turns import Side
from bench.load import Requests
from bench.question import CHAT
from bench.report import middle, table

HEAD = (
    "side",
    "answers/s",
    "/ nginx cache",
    "CPU µs",
    "p50 ms",
    "p99 ms",
    "its core",
    "load's core",
    "RSS MB",
)
YARDSTICK = "nginx"


def figures(sides: Mapping[str, Side]) -> dict[str, list[Figures]]:
    """The figures of all turns, by the names of the sides."""
    return {name: [turn.figures for turn in side.turns] for name, side in sides.items()}


def sides_table(sides: Mapping[str, Side]) -> str:
    """One row for each side."""
    yardstick = sides.get(YARDSTICK)
    return table(HEAD, [_row(side, yardstick) for side in sides.values()])


def streams_line(sides: Mapping[str, Side]) -> str:
    """What the streamed misses cost for each event, if there were any."""
    side = sides.get("stream")
    if side is None:
        return ""
    events = [turn.figures.event_us for turn in side.turns if turn.figures.event_us is not None]
    return f" A streamed event, relayed and recorded, took {middle_of(events)} µs of CPU."


def load_line(sides: Mapping[str, Side]) -> str:
    """What wrk itself took for a request of 2 KB that is always the same."""
    load_us = [
        turn.run.load_cpu_seconds / turn.run.requests * 1e6
        for side in sides.values()
        if side.kind.requests is Requests.SAME and side.kind.question is CHAT
        for turn in side.turns
    ]
    if not load_us:
        return ""
    return (
        f" wrk itself took {middle(load_us)} µs of its core for a request that is always the same."
    )


def bars(sides: Mapping[str, Side]) -> list[Bar]:
    """The rates of all sides whose answers are of one size."""
    return [
        Bar(
            title=side.kind.title.replace("`", ""),
            group=side.kind.group.value,
            rate=side.median(lambda turn: turn.figures.rate),
            cpu_us=side.median(lambda turn: turn.figures.cpu_us),
        )
        for name, side in sides.items()
        if name not in {"stream", "hot-stream", "hot-100k", "warm-100k", "hot-logged", "ordinary"}
    ]


def _row(side: Side, yardstick: Side | None) -> list[str]:
    turns = side.turns
    ratio = ""
    if yardstick is not None and yardstick is not side:
        ratio = middle_of(_ratios(side, yardstick))
    return [
        side.kind.title,
        middle([turn.figures.rate for turn in turns]),
        ratio,
        middle_of([turn.figures.cpu_us for turn in turns]),
        f"{side.median(lambda turn: turn.figures.p50_us) / 1000:,.2f}",
        f"{side.median(lambda turn: turn.figures.p99_us) / 1000:,.2f}",
        f"{side.median(lambda turn: turn.server_share):.0%}",
        f"{side.median(lambda turn: turn.load_share):.0%}",
        f"{side.resident_bytes() / 1e6:.0f}",
    ]


def _ratios(side: Side, yardstick: Side) -> list[float]:
    pairs = zip(side.turns, yardstick.turns, strict=True)
    return [mine.figures.rate / theirs.figures.rate for mine, theirs in pairs]
