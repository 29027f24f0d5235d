"""One client of an hour of chaos, with a connection of its own: asks, reads, checks, thinks."""

import asyncio
import time

import aiohttp

from bench.checked import Ask, Came, Result
from bench.exchange import KEEP_ALIVE_SECONDS, exchange

# Far beyond all time-outs of the proxy.
HUNG_SECONDS = 20.0


class ChaosClient:
    """Sends one request at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=KEEP_ALIVE_SECONDS)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=HUNG_SECONDS)
        )

    async def close(self) -> None:
        """Hang up."""
        await self._session.close()

    async def send(self, ask: Ask) -> Result:
        """Send, read to the end, and check; never raises for what a server does."""
        result = Result(ask, began=time.monotonic())
        try:
            async with asyncio.timeout(ask.leaves_after):
                await exchange(self._session, self._url, result)
        except TimeoutError:
            result.came = Came.LEFT
        finally:
            result.ended = time.monotonic()
        return result
