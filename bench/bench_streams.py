"""Many streamed misses in a row: memory stays flat, and nothing stays open.

    python -m bench.bench_streams [--streams 10000] [--at-once 16] [--write]

Each request is a new one, streamed, read to its end. The memory tier holds 1 MiB, so that it is
full long before the part of the run that counts. Between batches, when nothing is under way, the
proxy is looked at from outside: resident memory, descriptors, threads, requests under way, and
connections that the upstream has.

Exits with 1 where the proxy grows:
- the line through resident memory over the last 80 % of the run rises by 256 bytes or more for
  each stream (one kept event, task or outcome would be more than that);
- after any batch there are other descriptors open than at the start, besides those of pooled
  upstream connections, or more of these than there were streams at once;
- requests are under way after a batch, or threads grow over the last 80 %.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from bench.machine import LOAD_CORE, cpu_seconds, described, open_descriptors, pin, resident_bytes
from bench.machine import threads as threads_of
from bench.metrics import gauge
from bench.processes import Running, get, proxy
from bench.report import publish, table
from bench.upstream import CONTENT
from proxy.standin import RunningStandIn, Script, StandIn, start_standin

GROWTH_BYTES = 256.0
WARM_UP_SHARE = 0.2
BATCHES = 10
SETTLE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The proxy when nothing is under way. `other_descriptors`: but for upstream connections."""

    streams: int
    resident: int
    other_descriptors: int
    upstream_connections: int
    threads: int
    under_way: int


class Run:
    """One proxy, and streams sent through it."""

    def __init__(self, server: Running, standin: RunningStandIn, at_once: int) -> None:
        self._server = server
        self._standin = standin
        self._at_once = at_once
        self._numbers = itertools.count()
        self.streams = 0
        self.bytes = 0

    def batch(self, streams: int) -> None:
        """That many streams; all have ended, and so have the client's connections."""
        asyncio.run(self._batch(streams))

    def look(self, settled: Callable[[Sample], bool]) -> Sample:
        """The proxy once it has settled, or as it is when it does not within some time."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while not settled(sample := self._sample()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return sample

    def _sample(self) -> Sample:
        pid = self._server.pid
        connections = len(self._standin.app.connections)
        return Sample(
            streams=self.streams,
            # The proxy has answered this question itself, over a connection that is closed again.
            under_way=int(gauge(self._server, "magic_proxy_in_flight")),
            resident=resident_bytes(pid),
            other_descriptors=open_descriptors(pid) - connections,
            upstream_connections=connections,
            threads=threads_of(pid),
        )

    async def _batch(self, streams: int) -> None:
        left = iter(range(streams))
        connector = aiohttp.TCPConnector(limit=self._at_once)
        async with aiohttp.ClientSession(connector=connector) as client:
            await asyncio.gather(*(self._worker(client, left) for _ in range(self._at_once)))

    async def _worker(self, client: aiohttp.ClientSession, left: Iterator[int]) -> None:
        headers = {"authorization": "Bearer sk-bench"}
        url = f"{self._server.url}/v1/chat/completions"
        for _ in left:
            message = {"role": "user", "content": f"Question {next(self._numbers)}"}
            body = {"model": "gpt-4o", "stream": True, "messages": [message]}
            async with client.post(url, json=body, headers=headers) as response:
                content = await response.read()
                assert response.headers["x-cache"] == "MISS", response.headers
                assert content.endswith(b"data: [DONE]\n\n"), content[-80:]
            self.streams += 1
            self.bytes += len(content)


def last_part(samples: Sequence[Sample]) -> list[Sample]:
    """Without the warm-up."""
    return [each for each in samples if each.streams >= WARM_UP_SHARE * samples[-1].streams]


def rise(samples: Sequence[Sample]) -> float:
    """Bytes for each stream: the slope of the line through resident memory (least squares)."""
    late = last_part(samples)
    fit = statistics.linear_regression(
        [sample.streams for sample in late], [sample.resident for sample in late]
    )
    return fit.slope


def faults(samples: Sequence[Sample], at_once: int) -> list[str]:
    """What grew; `samples` are the start's and one of each batch."""
    start, *after = samples
    late = last_part(after)
    found = []
    if (slope := rise(after)) >= GROWTH_BYTES:
        found.append(f"resident memory rises by {slope:.0f} bytes for each stream")
    if any(sample.other_descriptors != start.other_descriptors for sample in after):
        found.append("descriptors stay open")
    if any(sample.upstream_connections > at_once for sample in after):
        found.append("upstream connections stay open")
    if any(sample.under_way != start.under_way for sample in after):
        found.append("requests stay under way")
    if late[-1].threads > late[0].threads:
        found.append("threads stay")
    return found


def measure(streams: int, at_once: int) -> tuple[list[Sample], str]:
    """The samples, and one line on how the run went."""
    standin = StandIn(keep=0)
    standin.script(Script(content=CONTENT), times=None)
    settings = {"store": {"tiers": "memory", "memory": {"max_bytes": 1024 * 1024}}}
    with start_standin(standin) as behind, proxy(Running(0, behind.port), settings) as server:
        run = Run(server, behind, at_once)
        get(server, "/healthz")
        samples = [run.look(lambda _: True)]
        start = samples[0]
        began, spent = time.monotonic(), cpu_seconds(server.pid)
        for _ in range(BATCHES):
            run.batch(streams // BATCHES)
            samples.append(
                run.look(
                    lambda now: (
                        now.other_descriptors == start.other_descriptors
                        and now.under_way == start.under_way
                    )
                )
            )
        seconds, spent = time.monotonic() - began, cpu_seconds(server.pid) - spent
        return samples, (
            f"{run.streams:,} streams of {run.bytes / run.streams:,.0f} bytes, {at_once} at once,"
            f" in {seconds:.0f} s; {spent / run.streams * 1e6:,.0f} µs of the proxy's CPU each."
        )


def report(samples: Sequence[Sample], went: str, found: Sequence[str], command: str) -> str:
    head = ["after streams", "RSS MB", "descriptors", "upstream connections", "threads"]
    rows = [
        [
            f"{sample.streams:,}",
            f"{sample.resident / 1e6:.1f}",
            f"{sample.other_descriptors}",
            f"{sample.upstream_connections}",
            f"{sample.threads}",
        ]
        for sample in samples
    ]
    grown = f"{rise(samples):+.0f} bytes resident for each stream (bound: {GROWTH_BYTES:.0f})"
    verdict = "**Flat**" if not found else "**Grows** (" + "; ".join(found) + ")"
    return "\n".join(
        [
            f"`{command}`: {described('aiohttp', 'uvicorn')} {went}",
            "",
            table(head, rows),
            "",
            f"{verdict}: {grown}, over the last {1 - WARM_UP_SHARE:.0%} of the run.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    given = parser.parse_args()
    pin(0, LOAD_CORE)
    samples, went = measure(given.streams, given.at_once)
    found = faults(samples, given.at_once)
    command = f"python -m bench.bench_streams --streams {given.streams}"
    publish("streams", report(samples, went, found, command), write=given.write)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
