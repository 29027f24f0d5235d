"""An hour in which keys, upstreams and Redis fail at random, under 50 clients that check it all.

    python -m bench.chaos [--seconds 3600] [--seed 1] [--short] [--keep DIR] [--write]

`magic-proxy serve` with two workers and a redis-server, three upstreams in this process, and 50
clients with a connection each: chat as JSON and as streams, embeddings one by one and in batches,
requests that pass through, clients that leave in the middle or have little time. Each upstream and
each key breaks and is mended by itself, Redis is frozen or killed, and one of the workers is killed
(see `chaos_weather.Trouble`). In the end everything is mended, and calm for a minute. `--short` is
for seconds of it.

What must not happen, and makes the program exit with 1:
- an answer to another request, or one that is shorter than it should be and looks whole;
- an error, or an answer that breaks off, that is not explained by what was broken at that time:
  with one upstream of the chain surely well, a request succeeds unless its answer had begun;
- a stale answer without need, or one that is older than its rule allows;
- a request that ends later than `total_seconds`, or its client's own deadline, and two seconds
  (who followed another's request that failed: after the end of that);
- a call with a key that has been resting for long enough for everybody to know;
- in the calm: anything but success; after it: a request, key, slot or upstream call still in use, a
  circuit that is not closed, connections that are not needed;
- a worker whose memory or descriptors grow between 20 % of its life and its end.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.chaos_course import Course, Plan
from bench.chaos_report import dump, faults, report
from bench.machine import described
from bench.report import publish


async def chaos(plan: Plan, keep: Path | None) -> Course:
    """Run it whole; what it saw is in the course."""
    with tempfile.TemporaryDirectory(prefix="magic-proxy-chaos-") as directory:
        course = Course(plan, keep or Path(directory))
        await course.run()
        return course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of chaos; calm comes after")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="everything in quick succession")
    parser.add_argument(
        "--keep", type=Path, help="settings, logs, and all windows and complaints, go there"
    )
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    plan = Plan(seconds=given.seconds, seed=given.seed, short=given.short)
    course = asyncio.run(chaos(plan, given.keep))
    about = described("aiohttp", "uvicorn")
    command = f"python -m bench.chaos --seconds {given.seconds:.0f} --seed {given.seed}"
    text = f"`{command}`: {about}\n\n{report(course)}"
    publish("chaos", text, write=given.write)
    if given.keep is not None:
        (given.keep / "chaos.jsonl").write_bytes(dump(course))
        (given.keep / "report.md").write_text(text + "\n")
    sys.exit(1 if faults(course) else 0)


if __name__ == "__main__":
    main()
