"""What marks of purges cost: a verdict on each read, adding one, and until a replica has heard.

    python -m bench.bench_marks [--turns 5] [--redis redis://127.0.0.1:6379/0]

Figures are medians with their range. Without `--redis` a server is started on a free port, without
persistence.
"""

import argparse
import asyncio
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.processes import redis
from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.core.entry import Entry, Form
from proxy.core.marks import Marks, Verdict
from proxy.core.selectors import MEMBERS, Mark, Selector
from proxy.engine.generations import Generations
from proxy.stores.marks import MarkLog
from proxy.stores.marks_disk import DiskMarkLog
from proxy.stores.marks_local import LocalMarkLog
from proxy.stores.marks_redis import RedisMarkLog
from proxy.tasks import TaskGroup

MOST = 10_000
VERDICTS = 100_000
PURGES = 200
DIGEST = "0a" * 32


class Silent:
    """A storage observer that counts nothing."""

    def store_failed(self, operation: str) -> None:
        raise AssertionError(operation)

    def write_dropped(self) -> None: ...

    def entry_unreadable(self) -> None: ...


def entry(generation: int, *tags: str) -> Entry:
    return Entry(
        key=f"magic_proxy:cache:v1:chat:-:{DIGEST}",
        model="m",
        rule="r",
        stored_at=1.0,
        fresh_until=2.0,
        expires_at=3.0,
        form=Form.JSON,
        status=200,
        headers=(),
        usage=None,
        payload=b"",
        tags=tags,
        generation=generation,
    )


def marks_of(*marks: Mark) -> Marks:
    made = Marks()
    for mark in marks:
        made.add(mark)
    return made


def line(what: str, figures: Sequence[float], unit: str) -> None:
    spread = f"{min(figures):.3g} to {max(figures):.3g}"
    print(f"  {what:58}{statistics.median(figures):8.3g} {unit} ({spread})")


def verdicts(turns: int) -> None:
    """CPU of one verdict, with the loop around it taken off."""
    print("\nverdict")
    tagged = marks_of(*(Mark(i + 1, Selector(tag=f"t{i}")) for i in range(MOST)))
    shapes = [Selector(**{name: f"v{i}"}) for i in range(MOST // len(MEMBERS)) for name in MEMBERS]
    shaped = marks_of(*(Mark(i + 1, selector) for i, selector in enumerate(shapes)))
    one = marks_of(Mark(1, Selector(tag="x")))
    cases = {
        "no marks": (Marks(), entry(0)),
        "1 mark, entry younger": (one, entry(1)),
        "1 mark, entry older": (one, entry(0)),
        "10,000 tags, entry younger": (tagged, entry(MOST)),
        "10,000 tags, entry older, without tags": (tagged, entry(0)),
        "10,000 tags, entry older, with 3 tags": (tagged, entry(0, "a", "b", "c")),
        "10,000 tags, entry older, purged": (tagged, entry(0, "t7")),
        "10,000 marks of all six shapes, entry older, with 3 tags": (shaped, entry(0, *"abc")),
    }
    for name, (marks, subject) in cases.items():
        figures = []
        for _ in range(turns):
            began = time.process_time()
            for _ in range(VERDICTS):
                pass
            empty = time.process_time() - began
            began = time.process_time()
            for _ in range(VERDICTS):
                marks.verdict(subject)
            figures.append((time.process_time() - began - empty) / VERDICTS * 1e9)
        line(name, figures, "ns CPU")


async def purges(name: str, log: MarkLog) -> None:
    """Purges one after the other, into an empty log and into a full one."""
    tasks = TaskGroup()
    generations = Generations(log, SystemClock(), tasks, Silent())
    await generations.open()

    async def purge_all(held: str) -> None:
        figures = []
        for i in range(PURGES):
            began = time.perf_counter()
            await generations.add(Selector(tag=f"{held} {i}"))
            figures.append((time.perf_counter() - began) * 1e3)
        line(f"{name}, log {held}", figures, "ms")

    await purge_all("empty")
    await log.keep([Mark(i + 1, Selector(tag=f"t{i}")) for i in range(MOST - 2 * PURGES)])
    await purge_all("of 10,000 marks")
    await generations.close()


async def replicas(url: str) -> None:
    """From the call of a purge to its effect on another replica."""
    one, other = over_redis(url, "heard:"), over_redis(url, "heard:")
    following = [Generations(log, SystemClock(), TaskGroup(), Silent()) for log, _ in (one, other)]
    for (_, channel), generations in zip((one, other), following, strict=True):
        await channel.open()
        await generations.open()
    figures = []
    for _ in range(PURGES):
        subject = entry(following[1].current, "a")
        assert following[1].verdict(subject) is Verdict.LIVE
        began = time.perf_counter()
        await following[0].add(Selector(tag="a"))
        while following[1].verdict(subject) is Verdict.LIVE:  # noqa: ASYNC110 - to the turn
            await asyncio.sleep(0)
        figures.append((time.perf_counter() - began) * 1e3)
    line("redis, until the other replica has heard", figures, "ms")
    for (_, channel), generations in zip((one, other), following, strict=True):
        await generations.close()
        await channel.close()


def over_redis(url: str, prefix: str) -> tuple[RedisMarkLog, RedisChannel]:
    config = RedisConfig(url)
    channel = RedisChannel(config, clock=SystemClock())
    return RedisMarkLog(config, channel=channel, key_prefix=prefix, clock=SystemClock()), channel


async def logs(url: str) -> None:
    print(f"\npurge, {PURGES} one after the other")
    await purges("memory", LocalMarkLog(SystemClock()))
    with tempfile.TemporaryDirectory() as directory:
        await purges("disk", DiskMarkLog(Path(directory) / "c.sqlite3", clock=SystemClock()))
    log, channel = over_redis(url, "bench:")
    await purges("redis", log)
    await channel.close()
    await replicas(url)


@contextmanager
def redis_at(url: str | None) -> Iterator[str]:
    """The server that was named, or one of our own."""
    if url is not None:
        yield url
        return
    with redis() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


def main() -> None:
    parser = argparse.ArgumentParser(description="Costs of purges.")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--redis", default=None)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}")
    verdicts(options.turns)
    with redis_at(options.redis) as url:
        asyncio.run(logs(url))


if __name__ == "__main__":
    main()
