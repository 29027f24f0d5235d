"""Equal requests at once: how many reach the upstream, how long they take, and what it costs.

    python -m bench.bench_coalesce [--turns 3] [--patience 200] [--only crowd followers misses]
        [--write]

- crowd: 1,000 equal requests on a cold key, over connections that stand already, to one proxy and
  to two replicas on one Redis, beside an application that makes each of them wait for 200 ms. The
  upstream takes 200 ms too. Each answer is timed from the write of its request to the last byte;
  what is told is how much longer than the upstream it took. The second replica has the core of the
  client, the upstream and Redis: there are two.
- followers: one stream, 201 clients of one process, an event every 20 ms. For each event, the time
  from the first client that has it (the leader's is one of them) to the last one. CPU is the
  proxy's own, by `/proc/PID/stat`, for a stream with followers less one without, for each event and
  follower.
- misses: what `coalesce: local` and `shared` add to a miss that nobody else asks for: proxies with
  `off`, `local` and `shared` take turns under wrk; the ratio is that of CPU times of one turn.

A turn in which other processes had more than a tenth of a core was disturbed, and is taken again,
as long as the patience (seconds, in all) lasts.
"""

import argparse
import time

from bench.coalesce_crowd import crowd_report, crowds
from bench.coalesce_followers import stream_report, streams
from bench.coalesce_misses import misses
from bench.machine import LOAD_CORE, described, pin
from bench.quiet import Patience
from bench.report import publish

PARTS = ("crowd", "followers", "misses")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--patience", type=float, default=200.0, help="seconds, in all")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    patience = Patience(time.monotonic() + given.patience)
    command = f"python -m bench.bench_coalesce --turns {given.turns}"
    about = described("aiohttp", "uvicorn", "uvloop")
    parts = []
    if "crowd" in given.only:
        parts.append(crowd_report(crowds(given.turns, patience)))
    if "followers" in given.only:
        parts.append(stream_report(streams(given.turns, patience)))
    if "misses" in given.only:
        parts.append(misses(given.turns, patience))
    first = f"`{command}`: {about} Median (range). {patience}"
    publish("coalesce", "\n\n".join([first, *parts]), write=given.write)


if __name__ == "__main__":
    main()
