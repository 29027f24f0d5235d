"""Whole servers side by side: what an answer costs, from nginx to other gateways.

    python -m bench.bench_hit [--turns 5] [--seconds 2] [--patience 240] [--only NAME ...] [--write]

Each server is a process of its own, pinned to one core; wrk, the upstream and Redis have the other
one. The sides take turns (A B C … A B C …), 32 connections ask for 2 KB of chat and get 1.6 KB. CPU
is user and system time of the server's processes by `/proc/PID/stat`: the figure to trust, as rates
swing with whatever else the machine does. A ratio is one of the same turn. A turn in which others
had more than a tenth of a core was disturbed, and is taken again, as long as the patience (seconds,
in all) lasts.

Each side proves that it measures what it says: the proxy by its own `/metrics` (how many hits and
misses there were, and whether hits came by the hot path, which counts no duration), nginx and
LiteLLM by a header of the very request, and all that should answer from a cache by the upstream's
count of its calls.
"""

import argparse
from collections.abc import Mapping

from bench import chart, goals
from bench.gateways import peer_version
from bench.hit_kinds import KINDS, Group
from bench.hit_report import bars, figures, load_line, sides_table, streams_line
from bench.hit_run import started, take_turns
from bench.hit_turns import Side
from bench.machine import LOAD_CORE, SERVER_CORE, described, pin
from bench.processes import program_version
from bench.report import PAGE, publish, publish_goals

NAME = "bench_hit"
PICTURE = PAGE.with_name("performance.svg")
_CAPTIONS = (
    "Answers per second, one process on one core",
    "2 KB asked, 1.6 KB answered, 32 connections; logarithmic scale; beside it CPU per answer",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each turn of each side")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds, for quiet turns")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md and .svg")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    if SERVER_CORE == LOAD_CORE:
        print("Only one core here: server and load share it, so rates say little.")
    command = f"python -m bench.bench_hit --turns {given.turns} --seconds {given.seconds}"
    with started({name: KINDS[name] for name in given.only}) as (sides, missing):
        patience, wrong = take_turns(sides, given.turns, given.seconds, given.patience)
        about = f"`{command}`: {_versions(sides)} {given.turns} turn(s); median (range). {patience}"
        lines = [
            f"{about}{load_line(sides)}{streams_line(sides)}",
            "",
            sides_table(sides),
            *(f"\nLeft out: {each}" for each in missing + wrong),
        ]
        drawn, came = bars(sides), figures(sides)
    publish("hit", "\n".join(lines), write=given.write)
    publish_goals(goals.rows(came, NAME), write=given.write)
    if given.write:
        PICTURE.write_text(chart.svg(*_CAPTIONS, drawn, Group.OURS, Group.LIMIT), encoding="utf-8")


def _versions(sides: Mapping[str, Side]) -> str:
    programs = [("wrk", "-v"), ("nginx", "-v"), ("redis-server", "--version")]
    told = [program_version(*each) for each in programs]
    told += [peer_version(name) for name in ("litellm", "tensorzero") if name in sides]
    packages = described(
        "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "aiohttp", "httpx"
    )
    return f"{packages} {', '.join(told)}."


if __name__ == "__main__":
    main()
