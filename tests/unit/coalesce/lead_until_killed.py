"""A process of its own that leads `k`, says so, publishes two records when wanted, and hangs.

Arguments: `redis` or `disk`, the URL or the path, and the lease time in seconds.
"""

import asyncio
import sys
from pathlib import Path

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.coalesce.base import Followed
from proxy.coalesce.disk import DiskCoalescer
from proxy.coalesce.redis import RedisCoalescer


async def main(medium: str, where: str, lease_seconds: float) -> None:
    clock = SystemClock()
    coalescer: RedisCoalescer | DiskCoalescer
    if medium == "redis":
        config = RedisConfig(where)
        channel = RedisChannel(config, clock=clock)
        coalescer = RedisCoalescer(
            config,
            clock=clock,
            channel=channel,
            key_prefix="p:",
            lease_seconds=lease_seconds,
            timeout_seconds=10.0,
        )
        await coalescer.open()
        await channel.open()
    else:
        coalescer = DiskCoalescer(
            Path(where), clock=clock, lease_seconds=lease_seconds, timeout_seconds=10.0
        )
        await coalescer.open()
    (lease,) = await coalescer.acquire(["k"])
    assert not isinstance(lease, Followed)
    wanted = asyncio.Event()
    lease.when_wanted(wanted.set)
    sys.stdout.write(f"{lease.token}\n")
    sys.stdout.flush()
    await wanted.wait()
    await lease.publish([b"1", b"2"])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
