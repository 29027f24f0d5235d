"""The client of the soak: it sends one request and says what came, whole, broken or wrong."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from bench.checked import Ask, Came, Result
from bench.exchange import KEEP_ALIVE_SECONDS, exchange

LONGEST_SECONDS = 30.0


class SoakClient:
    """Sends to the proxies by their names; one pool of connections for each."""

    def __init__(self) -> None:
        self._urls: Mapping[str, str] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self.under_way = 0

    async def open(self, urls: Mapping[str, str]) -> None:
        """Get ready to send to these."""
        self._urls = urls
        for name in urls:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS)
            self._sessions[name] = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=LONGEST_SECONDS)
            )

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def send(self, ask: Ask) -> Result:
        """Send, read to the end, and check; never raises for what a server does."""
        result = Result(ask, began=time.monotonic())
        self.under_way += 1
        try:
            async with asyncio.timeout(ask.leaves_after):
                await exchange(self._sessions[ask.proxy], self._urls[ask.proxy], result)
        except TimeoutError:
            result.came = Came.LEFT
        finally:
            self.under_way -= 1
            result.ended = time.monotonic()
        return result

    async def ask(
        self,
        method: str,
        proxy: str,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        """Status and body of any other request; an empty body is none. Raises what aiohttp does."""
        url = self._urls[proxy] + path
        content = {"content-type": "application/json", **headers}
        async with self._sessions[proxy].request(
            method, url, data=orjson.dumps(body) if body else None, headers=content
        ) as response:
            return response.status, await response.read()

    async def get(self, proxy: str, path: str) -> str:
        """The body of a GET. Raises what aiohttp does."""
        async with self._sessions[proxy].get(self._urls[proxy] + path) as response:
            return await response.text()
