"""Connections: made, trusted, used again, closed with their answer, and no more than allowed."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.errors import UpstreamProtocolError, UpstreamUnreachable
from proxy.upstream.base import UpstreamRequest
from proxy.upstream.config import TransportName
from tests.contract.raw_server import (
    OK,
    Peer,
    Server,
    answering,
    falls_silent,
    once,
    tls_context,
    trickles,
    write_certificate,
)
from tests.contract.transports import SOON, Opener, post, sending, whole

pytestmark = pytest.mark.anyio

_SOCKETS = Path("/proc/net/tcp")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return write_certificate(tmp_path)


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    return tls_context(certificate)


async def test_B68_nobody_listens(opened: Opener) -> None:
    async with Server(once()) as server:
        root = server.root
    async with opened(root) as transport:
        with pytest.raises(UpstreamUnreachable):
            await transport.send(post(root))


@pytest.mark.skipif(not _SOCKETS.exists(), reason="the system does not list its sockets there")
async def test_B68_idle_connections_are_kept_alive(opened: Opener) -> None:
    async with Server(answering(OK)) as server, opened(server.root) as transport:
        await whole(await transport.send(post(server.root)))
        writer = server.peers[0].writer
        ends = [writer.get_extra_info(name)[1] for name in ("peername", "sockname")]
        sockets = [line.split() for line in _SOCKETS.read_text().splitlines()[1:]]
        timers = [
            fields[5]
            for fields in sockets
            if [int(end.partition(":")[2], 16) for end in fields[1:3]] == ends
        ]
        assert [timer.partition(":")[0] for timer in timers] == ["02"], "that of keep-alive runs"


async def test_B68_an_unknown_name(opened: Opener) -> None:
    async with opened("http://no-such-host.invalid/v1") as transport:
        with pytest.raises(UpstreamUnreachable):
            await transport.send(post("http://no-such-host.invalid/v1"))


async def test_B68_a_tls_client_at_a_plain_server(opened: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.say(b"HTTP/1.1 400 Plain\r\nContent-Length: 0\r\n\r\n")

    async with Server(script) as server:
        root = server.root.replace("http:", "https:")
        async with opened(root) as transport:
            with pytest.raises(UpstreamUnreachable):
                await transport.send(post(root))


async def test_B68_a_certificate_of_the_settings_authority_is_trusted(
    opened: Opener, server_tls: ssl.SSLContext, certificate: Path
) -> None:
    async with Server(answering(OK), server_tls) as server:
        with pytest.raises(UpstreamUnreachable):
            async with opened(server.root) as transport:
                await transport.send(post(server.root))
        async with opened(server.root, ca_file=str(certificate)) as transport:
            assert await whole(await transport.send(post(server.root))) == b"{}"
        async with opened(server.root, verify_tls=False) as transport:
            assert await whole(await transport.send(post(server.root))) == b"{}"


async def test_B42_closing_an_unfinished_answer_closes_a_tls_connection(
    opened: Opener, server_tls: ssl.SSLContext
) -> None:
    async with (
        Server(falls_silent, server_tls) as server,
        opened(server.root, verify_tls=False) as transport,
    ):
        response = await transport.send(post(server.root))
        await response.aclose()
        async with asyncio.timeout(1.0):
            await server.peers[0].gone.wait()


async def test_B42_cancelling_before_the_first_byte_closes_a_tls_connection(
    opened: Opener, server_tls: ssl.SSLContext
) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.until_closed()

    async with (
        Server(script, server_tls) as server,
        opened(server.root, verify_tls=False) as transport,
    ):
        task = asyncio.get_running_loop().create_task(sending(transport, post(server.root)))
        await asyncio.wait_for(asked.wait(), SOON)
        task.cancel()
        await asyncio.wait_for(server.peers[0].gone.wait(), 1.0)
        await asyncio.gather(task, return_exceptions=True)


async def test_B68_a_stale_connection_is_replaced_by_a_fresh_one(opened: Opener) -> None:
    requests: list[bytes] = []

    async def script(peer: Peer) -> None:
        requests.append((await peer.request())[1])
        await peer.say(OK)
        if len(server.peers) == 1:
            await peer.request()
            stale.set()  # the second request has arrived, and is answered with a closed connection
        else:
            await peer.until_closed()

    stale = asyncio.Event()

    async with Server(script) as server, opened(server.root) as transport:
        await whole(await transport.send(post(server.root, b"1")))
        assert await whole(await transport.send(post(server.root, b"2"))) == b"{}"
        assert stale.is_set()
        assert len(server.peers) == 2
    assert requests == [b"1", b"2"]


async def test_B68_a_fresh_connection_that_closes_is_not_replaced(opened: Opener) -> None:
    async with Server(once()) as server, opened(server.root) as transport:
        with pytest.raises(UpstreamUnreachable):
            await transport.send(post(server.root))
        assert len(server.peers) == 1


async def test_B68_a_stale_connection_is_not_replaced_under_an_upload(opened: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.reader.readuntil(b"x")

    async def source() -> AsyncIterator[bytes]:
        yield b"x"

    async with Server(script) as server, opened(server.root) as transport:
        await whole(await transport.send(post(server.root)))
        request = UpstreamRequest("POST", server.root + "/files", (), source())
        with pytest.raises(UpstreamUnreachable):
            await transport.send(request)
        assert len(server.peers) == 1


async def test_B68_an_answer_that_was_begun_is_not_asked_for_again(
    opened: Opener, transport_name: TransportName
) -> None:
    if transport_name is TransportName.HTTPX:
        pytest.skip("httpx does not say whether a byte of the head had come")

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.say(b"HTTP/1.1 200")

    async with Server(script) as server, opened(server.root) as transport:
        await whole(await transport.send(post(server.root)))
        with pytest.raises((UpstreamUnreachable, UpstreamProtocolError)):
            await transport.send(post(server.root))
        assert len(server.peers) == 1


async def test_B42_closing_an_unfinished_answer_closes_the_connection(opened: Opener) -> None:
    async with Server(falls_silent) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        await response.aclose()
        async with asyncio.timeout(1.0):
            await server.peers[0].gone.wait()


async def test_B42_cancelling_a_reader_closes_the_connection(opened: Opener) -> None:
    reading = asyncio.Event()

    async with Server(falls_silent) as server, opened(server.root) as transport:

        async def read() -> None:
            response = await transport.send(post(server.root))
            try:
                async for _ in response.aiter_raw():
                    reading.set()
            finally:
                await response.aclose()

        task = asyncio.get_running_loop().create_task(read())
        async with asyncio.timeout(SOON):
            await reading.wait()
        task.cancel()
        async with asyncio.timeout(1.0):
            await server.peers[0].gone.wait()
        assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is (
            asyncio.CancelledError
        )


async def test_B42_cancelling_before_the_first_byte_closes_the_connection(opened: Opener) -> None:
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await peer.until_closed()

    async with Server(script) as server, opened(server.root) as transport:
        task = asyncio.get_running_loop().create_task(sending(transport, post(server.root)))
        async with asyncio.timeout(SOON):
            await asked.wait()
        task.cancel()
        async with asyncio.timeout(1.0):
            await server.peers[0].gone.wait()
        await asyncio.gather(task, return_exceptions=True)


async def test_B68_a_limit_makes_requests_wait_in_line(opened: Opener) -> None:
    async with (
        Server(falls_silent) as server,
        opened(server.root, max_connections=1) as transport,
    ):
        first = await transport.send(post(server.root))
        task = asyncio.get_running_loop().create_task(sending(transport, post(server.root)))
        await asyncio.sleep(0)
        assert not task.done()
        assert len(server.peers) == 1
        await first.aclose()
        async with asyncio.timeout(SOON):
            second = await task
        await second.aclose()
        assert len(server.peers) == 2


async def test_B68_a_failed_request_leaves_its_place(opened: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if len(server.peers) > 1:
            await peer.say(OK)

    async with Server(script) as server, opened(server.root, max_connections=1) as transport:
        with pytest.raises(UpstreamUnreachable):
            await transport.send(post(server.root))
        async with asyncio.timeout(SOON):
            assert await whole(await transport.send(post(server.root))) == b"{}"


async def test_B68_an_answer_that_took_too_long_leaves_its_place_read_or_not(
    opened: Opener,
) -> None:
    async with (
        Server(trickles) as server,
        opened(server.root, max_connections=1) as transport,
    ):
        unread = await transport.send(replace(post(server.root), budget_seconds=0.1))
        async with asyncio.timeout(SOON):
            second = await transport.send(post(server.root))
        await second.aclose()
        await unread.aclose()


async def test_B68_a_cancelled_wait_in_line_leaves_the_place(opened: Opener) -> None:
    async with (
        Server(answering(OK)) as server,
        opened(server.root, max_connections=1) as transport,
    ):
        first = await transport.send(post(server.root))
        task = asyncio.get_running_loop().create_task(sending(transport, post(server.root)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await whole(first)
        assert await whole(await transport.send(post(server.root))) == b"{}"


_MORE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 2\r\n\r\n[]"


@pytest.mark.parametrize("more", [b"xy", _MORE[:20], _MORE], ids=["rubbish", "half", "answer"])
@pytest.mark.parametrize("when", ["with-the-head", "with-the-end", "at-rest"])
async def test_B60_what_nobody_asked_for_is_no_answer_to_the_next_request(
    when: str, more: bytes, opened: Opener
) -> None:
    begun, told = asyncio.Event(), asyncio.Event()
    head, body = OK[:-1], OK[-1:]

    async def script(peer: Peer) -> None:
        await peer.request()
        if len(server.peers) == 1 and when == "with-the-head":
            await peer.say(OK + more)
        elif len(server.peers) == 1:
            await peer.say(head)
            await begun.wait()
            await peer.say(body + more) if when == "with-the-end" else await peer.say(body)
            if when == "at-rest":
                await told.wait()
                await peer.say(more)
                more_said.set()
        else:
            await peer.say(OK)
        await answering(OK)(peer)

    more_said = asyncio.Event()
    async with Server(script) as server, opened(server.root) as transport:
        with contextlib.suppress(UpstreamProtocolError):
            first = await transport.send(post(server.root))
            begun.set()
            assert await whole(first) == b"{}"
        told.set()
        if when == "at-rest":
            await more_said.wait()
            for _ in range(3):  # turns of the loop, in which it is read
                await asyncio.sleep(0)
        async with asyncio.timeout(SOON):
            second = await transport.send(post(server.root))
            assert (second.status, await whole(second)) == (200, b"{}")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 20"])
async def test_B68_a_read_that_fails_on_a_fresh_connection_is_not_repeated(
    said: bytes, opened: Opener
) -> None:
    async with Server(once(said)) as server, opened(server.root) as transport:
        with pytest.raises((UpstreamUnreachable, UpstreamProtocolError)):
            await transport.send(UpstreamRequest("GET", server.root + "/files", ()))
        assert len(server.peers) == 1
