"""Sides started together, and their turns."""

import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.gateways import Unavailable
from bench.hit_kinds import Around, Kind
from bench.hit_turns import Side
from bench.processes import paced, post
from bench.question import CHAT, HEADERS
from bench.quiet import Patience, quietly

# The upstream streams as many events, with so many seconds between them: each is read alone.
EVENTS, EVENT_SECONDS = 60, 0.005


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


def warm_up(sides: Collection[Side], seconds: int) -> None:
    """Let each answer for a while, uncounted."""
    for side in sides:
        side.warm_up(seconds)


def take_turns(
    sides: Collection[Side], turns: int, seconds: int, patience_seconds: float
) -> Patience:
    """Each side once, then each again, and so on; disturbed turns again."""
    patience = Patience(time.monotonic() + patience_seconds)
    for number in range(1, turns + 1):
        for side in sides:
            side.turns.append(quietly(partial(side.turn, seconds), side.processes, patience))
        print(f"turn {number} of {turns}: {patience}", flush=True)
    return patience
