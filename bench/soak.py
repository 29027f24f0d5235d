"""Two proxies on one Redis under a mixed load, with faults; every answer is checked by its client.

    python -m bench.soak [--seconds 600] [--rate 50] [--seed 1] [--short] [--keep DIR] [--write]

Two processes `magic-proxy serve`, a redis-server and the load with its upstream in this process:
chat as JSON and as streams, embeddings one by one and in overlapping batches, crowds of equal
requests on cold keys at both proxies, clients that leave at any moment, `Cache-Control`, purges
hard and soft, answers that are stale while they are fetched anew. In announced windows the upstream
is slow, fails, or breaks streams off; one proxy is killed and started again, and Redis is stopped
and comes back empty. `--short`, for ten seconds of it, leaves Redis alone.

An answer carries the digest of its request, and a version that goes up with every purge (see
`stamped`). What must not happen, and makes the program exit with 1:
- an answer to another request, a stream that is shorter than it should be and looks whole;
- an answer of a version before a purge that had been answered when the request began, one second
  later for the proxy that did not answer it (after Redis was down: `purge_poll_seconds` later);
- an answer older than its rule allows, or than its client allows;
- a request that fails outside of the windows;
- more than one upstream call for a crowd, outside of the windows;
- an upstream call that no request explains (see `soak_accounts`), or that the proxy did not count;
- resident memory of the proxy that lives through it all that grows between 20 % and the end.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from bench.machine import described
from bench.report import publish
from bench.soak_course import Course, Plan
from bench.soak_report import dump, faults, report


async def soak(plan: Plan, keep: Path | None) -> Course:
    """Run it whole; what it saw is in the course."""
    with tempfile.TemporaryDirectory(prefix="magic-proxy-soak-") as directory:
        course = Course(plan, keep or Path(directory))
        await course.run()
        return course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests in a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="Redis stays as it is")
    parser.add_argument(
        "--keep", type=Path, help="settings, logs, and all requests and upstream calls, go there"
    )
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    plan = Plan(
        seconds=given.seconds, rate=given.rate, seed=given.seed, stops_redis=not given.short
    )
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    course = asyncio.run(soak(plan, given.keep))
    about = described("aiohttp", "uvicorn")
    command = f"python -m bench.soak --seconds {given.seconds:.0f} --seed {given.seed}"
    publish("soak", f"`{command}`: {about}\n\n{report(course)}", write=given.write)
    if given.keep is not None:
        (given.keep / "requests.jsonl").write_bytes(dump(course))
    sys.exit(1 if faults(course) else 0)


if __name__ == "__main__":
    main()
