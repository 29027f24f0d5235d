"""A leader that is killed, in a process of its own: a follower takes over within the lease time."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.coalesce.base import FlightEnd, Landed, Published
from proxy.coalesce.disk import DiskCoalescer
from proxy.coalesce.redis import RedisCoalescer
from tests.contract.coalescers import follow, lead, story
from tests.integration.redis_server import redis_server

pytestmark = pytest.mark.anyio

LEASE_SECONDS = 0.6
SLACK_SECONDS = 2.0
LEADER = Path(__file__).with_name("lead_until_killed.py")
ROOT = LEADER.parents[3]


@contextmanager
def leader(medium: str, where: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that leads `k`, and its token."""
    arguments = [sys.executable, str(LEADER), medium, where, str(LEASE_SECONDS)]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


async def test_B41_a_follower_of_a_stream_takes_over_when_its_leader_is_killed() -> None:
    with redis_server() as server, leader("redis", server.url) as (process, token):
        clock = SystemClock()
        config = RedisConfig(server.url)
        channel = RedisChannel(config, clock=clock)
        other = RedisCoalescer(
            config,
            clock=clock,
            channel=channel,
            key_prefix="p:",
            lease_seconds=LEASE_SECONDS,
            timeout_seconds=10.0,
        )
        await other.open()
        await channel.open()
        followed = await follow(other)
        assert followed.token == token
        events = aiter(followed.events(live=True))
        assert await anext(events) == Published([b"1", b"2"])
        ending = asyncio.ensure_future(anext(events))
        _, pending = await asyncio.wait({ending}, timeout=1.5 * LEASE_SECONDS)
        assert pending, "as long as the leader lives, its lease is kept"
        process.kill()
        began = time.monotonic()
        assert await ending == Landed(FlightEnd.ABANDONED)
        assert time.monotonic() - began < 1.2 * LEASE_SECONDS + SLACK_SECONDS
        taken = await lead(other)
        assert taken.token > token
        await taken.release(FlightEnd.STORED)
        await other.close()
        await channel.close()


async def test_B41_a_worker_on_the_same_disk_takes_over_when_its_leader_is_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cache.sqlite3"
    with leader("disk", str(path)) as (process, token):
        other = DiskCoalescer(
            path, clock=SystemClock(), lease_seconds=LEASE_SECONDS, timeout_seconds=10.0
        )
        await other.open()
        following = asyncio.ensure_future(story(await follow(other), live=True))
        _, pending = await asyncio.wait({following}, timeout=1.5 * LEASE_SECONDS)
        assert pending, "as long as the leader lives, its lease is kept"
        process.kill()
        began = time.monotonic()
        assert await following == ([], FlightEnd.ABANDONED)
        assert time.monotonic() - began < LEASE_SECONDS + SLACK_SECONDS
        taken = await lead(other)
        assert taken.token > token
        await other.close()
