"""Proxies by the hundred, served by the loop that also runs their clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from proxy.clock import Clock
from proxy.edge.app import Edge, create_app
from proxy.settings.models import Settings
from proxy.standin.server import listen
from proxy.workers.server import server_config
from tests.faults.fault import WALL
from tests.waiting import until


class LabClock:
    """Durations go on by themselves; dates and ages move only when the test says so."""

    def __init__(self) -> None:
        self._ahead = 0.0  # of the time at which the faults happen

    def wall(self) -> float:
        return WALL + self._ahead

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        self._ahead += seconds


class Fronting:
    """One of many proxies that are served by one loop, in one thread."""

    def __init__(self, given: Mapping[str, Any], clock: Clock) -> None:
        settings = Settings.model_validate(given)
        self.app: Edge = create_app(settings, clock=clock)
        self._listener = listen()
        self.server = uvicorn.Server(server_config(self.app, settings))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    async def serve(self) -> None:
        """Until `server.should_exit`."""
        await self.server.serve(sockets=[self._listener])
        self._listener.close()


@asynccontextmanager
async def serving(proxies: Sequence[Fronting]) -> AsyncIterator[None]:
    """They listen as long as the block lasts, and end in order."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(proxy.serve()) for proxy in proxies]
    try:
        await until(lambda: all(proxy.server.started for proxy in proxies))
        yield
    finally:
        for proxy in proxies:
            proxy.server.should_exit = True
        await asyncio.gather(*tasks)
