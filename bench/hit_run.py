"""Sides started together, and their turns."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.gateways import Unavailable
from bench.hit_kinds import Around, Kind
from bench.hit_turns import Side, Turn
from bench.processes import paced, post
from bench.question import CHAT, HEADERS
from bench.quiet import Patience, quietly

# The upstream streams as many events, with so many seconds between them: each is read alone.
EVENTS, EVENT_SECONDS = 60, 0.005
TRIES = 3


Name = TypeVar("Name")


@contextmanager
def started(kinds: Mapping[Name, Kind]) -> Iterator[tuple[dict[Name, Side], list[str]]]:
    """The servers of all sides, each on the measured core; and why some are missing."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        options = ("--events", str(EVENTS), "--event-seconds", str(EVENT_SECONDS))
        upstream = stack.enter_context(paced(*options))
        answer = Path(directory) / "answer.json"
        answer.write_bytes(post(upstream, CHAT.path, CHAT.body(), HEADERS)[1])
        around = Around(stack, upstream, answer, behind=[upstream])
        sides: dict[Name, Side] = {}
        missing = []
        for name, kind in kinds.items():
            try:
                server = stack.enter_context(kind.starts(around))
            except Unavailable as why:
                missing.append(f"{kind.title}: {why}")
                continue
            sides[name] = Side(kind, server, upstream, around.behind)
        yield sides, missing


def take_turns(
    sides: dict[Name, Side], turns: int, seconds: int, patience_seconds: float
) -> tuple[Patience, list[str]]:
    """Each side once, then each again, and so on; disturbed turns again.

    A side that does not measure what it says, try after try, is taken out of `sides`; returned is
    why.
    """
    missing = _each(sides, lambda side: side.warm_up(seconds))
    patience = Patience(time.monotonic() + patience_seconds)
    for number in range(1, turns + 1):
        missing += _each(sides, lambda side: side.turns.append(_one(side, seconds, patience)))
        print(f"turn {number} of {turns}: {patience}", flush=True)
    return patience, missing


def _each(sides: dict[Name, Side], work: Callable[[Side], None]) -> list[str]:
    missing = []
    for name, side in list(sides.items()):
        try:
            work(side)
        except AssertionError as wrong:
            missing.append(f"{side.kind.title}: {wrong}")
            del sides[name]
    return missing


def _one(side: Side, seconds: int, patience: Patience, tries: int = TRIES) -> Turn:
    try:
        return quietly(partial(side.turn, seconds), side.processes, patience)
    except AssertionError:
        if tries == 1:
            raise
        return _one(side, seconds, patience, tries - 1)
