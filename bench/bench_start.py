"""From the start of the process to its first answers, and what an idle worker holds.

    python -m bench.bench_start [--runs 5] [--write]

Timed from the moment the process is started, by a client that tries again every 2 ms: the first
200 from `/healthz`, then a chat hit from the store that an earlier process filled. Memory is what
stands resident after both. An untimed run comes first: it fills the store and the page cache, and
Python compiles the modules.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.goals import row
from bench.machine import LOAD_CORE, described, pin, resident_bytes, threads
from bench.processes import Running, get, post, proxy, redis, upstream
from bench.report import middle, publish, publish_goals, table

GOAL_SECONDS = 1.5
GOAL_MEGABYTES = 90
HEADERS = {"content-type": "application/json", "authorization": "Bearer sk-bench"}
BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hello"}]}'


@dataclass(frozen=True, slots=True)
class Start:
    """One start; times in seconds from the start of the process."""

    healthy_seconds: float
    hit_seconds: float
    megabytes: float
    threads: int


def measure(behind: Running, settings: Mapping[str, Any]) -> Start:
    """Start a proxy, ask it, and end it."""
    began = time.perf_counter()
    with proxy(behind, settings) as server:
        get(server, "/healthz")
        healthy = time.perf_counter() - began
        headers, _ = post(server, "/v1/chat/completions", BODY, HEADERS)
        hit = time.perf_counter() - began
        assert headers["x-cache"] == "HIT", headers
        return Start(healthy, hit, resident_bytes(server.pid) / 1e6, threads(server.pid))


def fill(behind: Running, settings: Mapping[str, Any]) -> None:
    """Have the answer stored; a proxy writes what it has queued before it ends."""
    with proxy(behind, settings) as server:
        post(server, "/v1/chat/completions", BODY, HEADERS)


def report(starts: Mapping[str, Sequence[Start]], command: str) -> str:
    head = ["store", "first answer, s", "first hit, s", "RSS MB", "threads"]
    rows = [
        [
            name,
            middle([each.healthy_seconds for each in came], 2),
            middle([each.hit_seconds for each in came], 2),
            middle([each.megabytes for each in came]),
            f"{max(each.threads for each in came)}",
        ]
        for name, came in starts.items()
    ]
    about = f"`{command}`: {described('uvicorn', 'pydantic', 'aiohttp')} Median (range)."
    return "\n".join([about, "", table(head, rows)])


def goals(starts: Mapping[str, Sequence[Start]]) -> Iterator[list[str]]:
    """Two rows for each store."""
    for name, came in starts.items():
        seconds = [each.healthy_seconds for each in came]
        megabytes = [each.megabytes for each in came]
        for path, figures, bound, unit, digits in (
            ("start to the first answer", seconds, GOAL_SECONDS, "s", 2),
            ("idle worker", megabytes, GOAL_MEGABYTES, "MB", 0),
        ):
            reached = statistics.median(figures) <= bound
            wanted, shown = f"≤ {bound:g} {unit}", middle(figures, digits)
            yield row(f"{path} ({name})", wanted, shown, "bench_start", reached=reached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        behind = stack.enter_context(upstream())
        url = f"redis://127.0.0.1:{stack.enter_context(redis()).port}/0"
        variants = {
            "memory, disk": {"store": {"disk": {"path": str(directory / "cache.sqlite3")}}},
            "memory, Redis": {"store": {"redis": {"url": url}}},
        }
        for settings in variants.values():
            fill(behind, settings)
        starts: dict[str, list[Start]] = {name: [] for name in variants}
        for _ in range(given.runs):
            for name, settings in variants.items():
                starts[name].append(measure(behind, settings))
        command = f"python -m bench.bench_start --runs {given.runs}"
        publish("start", report(starts, command), write=given.write)
        publish_goals(list(goals(starts)), write=given.write)


if __name__ == "__main__":
    main()
