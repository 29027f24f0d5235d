"""Thousands of requests given up in whatever state: nothing is lost of a pool of connections."""

import asyncio
import random

import pytest

from proxy.upstream.config import TransportName
from tests.contract.raw_server import CHUNKED, OK, Peer, Server
from tests.contract.transports import SOON, Opener, post
from tests.waiting import until

pytestmark = pytest.mark.anyio

CONNECTIONS = 10
# Cancellations, and requests after them; httpx takes several times as long for each.
COUNTS = {TransportName.AIOHTTP: (2_000, 1_000), TransportName.HTTPX: (500, 200)}


async def serves(peer: Peer) -> None:
    """Answers `/ok`; begins to answer `/begun`; says nothing to others, until the client goes."""
    while True:
        head, _ = await peer.request()
        if b"/ok " in head:
            await peer.say(OK)
            continue
        if b"/begun " in head:
            await peer.say(CHUNKED, b"5\r\nbegun\r\n")
        await peer.until_closed()
        return


async def test_B42_thousands_of_cancellations_leave_a_pool_as_it_was(
    opened: Opener, transport_name: TransportName
) -> None:
    cancellations, afterwards = COUNTS[transport_name]
    dice = random.Random(7)
    cancelled = 0

    async with (
        Server(serves) as server,
        opened(server.root, max_connections=CONNECTIONS) as transport,
    ):

        async def ask(path: str) -> bytes:
            response = await transport.send(post(server.root, path=path))
            try:
                return b"".join([chunk async for chunk in response.aiter_raw()])
            finally:
                await response.aclose()

        while cancelled < cancellations:
            # Twice as many as there are places: half of them are given up in line.
            paths = dice.choices(["/ok", "/begun", "/silent"], k=2 * CONNECTIONS)
            tasks = [asyncio.create_task(ask(path)) for path in paths]
            for task in tasks:
                for _ in range(dice.randrange(8)):
                    await asyncio.sleep(0)
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(result) for result in results} <= {asyncio.CancelledError, bytes}
            cancelled += sum(isinstance(result, asyncio.CancelledError) for result in results)

        await until(lambda: _open(server) <= CONNECTIONS)
        async with asyncio.timeout(4 * SOON):
            for _ in range(afterwards // (2 * CONNECTIONS)):
                answers = await asyncio.gather(*(ask("/ok") for _ in range(2 * CONNECTIONS)))
                assert answers == [b"{}"] * (2 * CONNECTIONS)
        assert _open(server) <= CONNECTIONS

    await until(lambda: _open(server) == 0)


def _open(server: Server) -> int:
    return sum(not peer.writer.transport.is_closing() for peer in server.peers)
