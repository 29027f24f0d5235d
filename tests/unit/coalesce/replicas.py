"""Replicas over one real Redis, for tests of how they share their work."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.coalesce.redis import RedisCoalescer
from tests.channels import FakeAir, FakeChannel
from tests.integration.redis_server import RedisServer

PREFIX = "p:"
LONG_SECONDS = 60.0  # a lease of this length plays no part in a test
PATIENT_SECONDS = 5.0  # on a machine that is busy with other things


@dataclass
class Replicas:
    """Makes coalescers over `server`, which talk to each other through `air`."""

    server: RedisServer
    stack: AsyncExitStack
    air: FakeAir = field(default_factory=FakeAir)

    async def start(self, *, retry_seconds: float = 0.05, **settings: Any) -> RedisCoalescer:
        channel = FakeChannel(self.air)
        defaults = {
            "lease_seconds": LONG_SECONDS,
            "timeout_seconds": PATIENT_SECONDS,
            "linger_seconds": 0.0,
        }
        made = RedisCoalescer(
            RedisConfig(self.server.url, retry_seconds=retry_seconds),
            clock=SystemClock(),
            channel=channel,
            key_prefix=PREFIX,
            **(defaults | settings),
        )
        await made.open()
        await channel.open()
        self.stack.push_async_callback(made.close)
        return made

    def keys(self, pattern: str = "*") -> list[str]:
        """What lies in Redis, in order."""
        return sorted(_strings(self.server.command("KEYS", pattern)))

    def calls(self) -> dict[str, int]:
        """How often each command was called since the last `CONFIG RESETSTAT`."""
        lines = self.server.command("INFO", "commandstats").decode().splitlines()
        pairs = (line.removeprefix("cmdstat_").split(":calls=") for line in lines if "=" in line)
        return {name: int(rest.split(",")[0]) for name, rest in pairs}

    def forget_calls(self) -> None:
        self.server.command("CONFIG", "RESETSTAT")


@asynccontextmanager
async def replicas_over(server: RedisServer) -> AsyncIterator[Replicas]:
    server.command("FLUSHALL")
    async with AsyncExitStack() as stack:
        yield Replicas(server, stack)


def _strings(reply: bytes) -> Iterator[str]:
    """The elements of an array of bulk strings."""
    lines = reply.decode().split("\r\n")
    yield from lines[2::2]
