"""The times that a transport gives an upstream, each counted by itself."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.errors import NoConnectionFree, UpstreamTimeout, UpstreamUnreachable
from proxy.upstream.base import Timeouts, UpstreamRequest
from tests.contract.raw_server import (
    CHUNKED,
    OK,
    Peer,
    Server,
    answering,
    falls_silent,
    stalls,
    trickles,
)
from tests.contract.transports import SOON, Opener, post, whole

pytestmark = pytest.mark.anyio


async def test_B68_the_first_byte_has_a_time_out(opened: Opener) -> None:
    timeouts = Timeouts(first_byte_seconds=0.05)
    async with Server(stalls) as server, opened(server.root, timeouts) as transport:
        with pytest.raises(UpstreamTimeout):
            await transport.send(post(server.root))
        async with asyncio.timeout(SOON):
            await server.peers[0].gone.wait()


async def test_B68_the_first_byte_time_out_starts_after_the_upload(opened: Opener) -> None:
    timeouts = Timeouts(first_byte_seconds=0.2)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(
                0.1
            )  # real time is what is tested: the upload takes longer than 0.2 s
            yield b"x"

    async with Server(answering(OK)) as server, opened(server.root, timeouts) as transport:
        request = UpstreamRequest("POST", server.root + "/files", (), source())
        assert await whole(await transport.send(request)) == b"{}"


async def test_B68_bytes_between_have_a_time_out_of_their_own(opened: Opener) -> None:
    timeouts = Timeouts(first_byte_seconds=60.0, between_bytes_seconds=0.05)
    async with Server(falls_silent) as server, opened(server.root, timeouts) as transport:
        response = await transport.send(post(server.root))
        with pytest.raises(UpstreamTimeout):
            await whole(response)
        await response.aclose()
        async with asyncio.timeout(SOON):
            await server.peers[0].gone.wait()


async def test_B68_a_short_first_byte_time_out_does_not_count_between_bytes(
    opened: Opener,
) -> None:
    timeouts = Timeouts(first_byte_seconds=0.1, between_bytes_seconds=SOON)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, b"1\r\na\r\n")
        await asyncio.sleep(0.3)  # real time is what is tested: longer than to the first byte
        await peer.say(b"1\r\nb\r\n0\r\n\r\n")

    async with Server(script) as server, opened(server.root, timeouts) as transport:
        assert await whole(await transport.send(post(server.root))) == b"ab"


async def test_B68_the_total_has_a_time_out(opened: Opener) -> None:
    timeouts = Timeouts(total_seconds=0.1)
    async with Server(trickles) as server, opened(server.root, timeouts) as transport:
        response = await transport.send(post(server.root))
        with pytest.raises(UpstreamTimeout):
            await whole(response)
        await response.aclose()
        async with asyncio.timeout(SOON):
            await server.peers[0].gone.wait()


async def test_B68_the_total_counts_before_the_first_byte(opened: Opener) -> None:
    timeouts = Timeouts(total_seconds=0.05)
    async with Server(stalls) as server, opened(server.root, timeouts) as transport:
        with pytest.raises(UpstreamTimeout):
            await transport.send(post(server.root))


async def test_B63_a_request_can_have_less_time_than_the_upstream(opened: Opener) -> None:
    async with Server(stalls) as server, opened(server.root) as transport:
        with pytest.raises(UpstreamTimeout):
            await transport.send(replace(post(server.root), budget_seconds=0.05))


async def test_B68_connecting_has_a_time_out(opened: Opener) -> None:
    # A listener whose queue is full leaves the next connection waiting.
    timeouts = Timeouts(connect_seconds=0.1)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        root = f"http://127.0.0.1:{address[1]}/v1"
        async with opened(root, timeouts) as transport:
            with pytest.raises(UpstreamTimeout):
                await transport.send(post(root))


async def test_B62_a_connection_that_fails_is_told_apart_from_one_that_breaks(
    opened: Opener,
) -> None:
    async def hangs_up(peer: Peer) -> None:
        await peer.request()

    gone = "http://127.0.0.1:1/v1"  # nobody's port
    async with opened(gone) as transport:
        with pytest.raises(UpstreamUnreachable) as caught:
            await transport.send(post(gone))
    assert caught.value.connecting
    async with Server(hangs_up) as server, opened(server.root) as transport:
        with pytest.raises(UpstreamUnreachable) as caught:
            await transport.send(post(server.root))
    assert not caught.value.connecting


async def test_B68_the_wait_in_line_is_part_of_the_budget(opened: Opener) -> None:
    async with (
        Server(falls_silent) as server,
        opened(server.root, max_connections=1) as transport,
    ):
        first = await transport.send(post(server.root))
        async with asyncio.timeout(SOON):
            with pytest.raises(NoConnectionFree):
                await transport.send(replace(post(server.root), budget_seconds=0.05))
        await first.aclose()
