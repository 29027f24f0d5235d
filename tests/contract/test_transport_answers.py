"""What a transport gives on: heads and bodies as they come, and ends that come too early."""

import asyncio
import gzip
import itertools

import pytest

from proxy.errors import UpstreamProtocolError
from proxy.upstream.base import UpstreamRequest
from proxy.upstream.config import TransportName
from tests.contract.raw_server import CHUNKED, OK, Peer, Server, answering, once
from tests.contract.transports import SOON, Opener, post, whole

pytestmark = pytest.mark.anyio


async def test_B60_answer_headers_keep_order_and_repeats_without_hop_by_hop(opened: Opener) -> None:
    answer = (
        b"HTTP/1.1 429 Slow Down\r\nX-One: 1\r\nSet-Cookie: a=1\r\nConnection: keep-alive, X-Hop\r\n"
        b"X-Hop: me\r\nKeep-Alive: timeout=5\r\nSet-Cookie: b=2\r\nretry-after-ms: 20\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    async with Server(answering(answer)) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        assert response.status == 429
        assert response.headers == (
            (b"X-One", b"1"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"retry-after-ms", b"20"),
            (b"Content-Length", b"2"),
        )
        assert await whole(response) == b"{}"


async def test_B60_redirects_are_answers_like_others(opened: Opener) -> None:
    answer = b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    async with Server(answering(answer)) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        assert response.status == 307
        assert await whole(response) == b""


async def test_B60_coded_bodies_are_not_decoded(opened: Opener) -> None:
    packed = gzip.compress(b'{"answer": 42}')
    answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(
        packed
    )
    async with Server(answering(answer + packed)) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        assert (b"Content-Encoding", b"gzip") in response.headers
        assert await whole(response) == packed


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("DELETE", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_B60_answers_without_a_body(opened: Opener, method: str, answer: bytes) -> None:
    async with Server(answering(answer)) as server, opened(server.root) as transport:
        for _ in range(2):
            response = await transport.send(UpstreamRequest(method, server.root + "/x", ()))
            assert await whole(response) == b""
        assert len(server.peers) == 1, "the connection is used again"


async def test_B60_interim_answers_are_passed_over(opened: Opener) -> None:
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK
    async with Server(answering(answer)) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        assert response.status == 200
        assert await whole(response) == b"{}"


async def test_B60_an_answer_without_a_length_ends_with_the_connection(opened: Opener) -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\nto the end"
    async with Server(once(answer)) as server, opened(server.root) as transport:
        assert await whole(await transport.send(post(server.root))) == b"to the end"


async def test_B60_headers_of_60_kilobytes_pass(opened: Opener) -> None:
    long = b"x" * 60_000
    answer = b"HTTP/1.1 200 OK\r\nX-Long: " + long + b"\r\nContent-Length: 2\r\n\r\n{}"
    async with Server(answering(answer)) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        assert (b"X-Long", long) in response.headers
        await whole(response)


async def test_B60_trailers_do_not_disturb_the_body(opened: Opener) -> None:
    answer = CHUNKED + b"2\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n"
    async with Server(answering(answer)) as server, opened(server.root) as transport:
        for _ in range(2):
            assert await whole(await transport.send(post(server.root))) == b"{}"
        assert len(server.peers) == 1


async def test_B60_trailers_belong_to_their_answer_though_its_connection_is_used_again(
    opened: Opener, transport_name: TransportName
) -> None:
    async def script(peer: Peer) -> None:
        for number in itertools.count(1):
            await peer.request()
            head = CHUNKED.removesuffix(b"\r\n") + b"Trailer: X-Sum\r\n\r\n"
            await peer.say(head + b"2\r\n{}\r\n0\r\nX-Sum: %d\r\n\r\n" % number)

    gives = transport_name is TransportName.AIOHTTP
    async with Server(script) as server, opened(server.root) as transport:
        responses = [await transport.send(post(server.root)) for _ in range(3)]
        assert [await whole(response) for response in responses] == [b"{}"] * 3
        came = [each.trailers.came() for each in responses if each.trailers is not None]
        assert came == [((b"x-sum", b"%d" % number),) for number in range(1, 4) if gives]
        assert len(server.peers) == 1 or not gives


async def test_B20_a_piece_is_given_on_before_the_next_is_sent(opened: Opener) -> None:
    taken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, b"9\r\ndata: 1\n\n\r\n")
        await taken.wait()
        await peer.say(b"9\r\ndata: 2\n\n\r\n", b"0\r\n\r\n")

    async with Server(script) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        pieces: list[bytes] = []
        async with asyncio.timeout(SOON):
            async for piece in response.aiter_raw():
                pieces.append(piece)
                taken.set()
        await response.aclose()
    assert pieces == [b"data: 1\n\n", b"data: 2\n\n"]


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
        CHUNKED + b"5\r\nshort\r\n",
        CHUNKED + b"ff\r\nshort",
    ],
    ids=["length", "no-last-chunk", "in-a-chunk"],
)
async def test_B21_an_early_end_is_an_error(opened: Opener, answer: bytes) -> None:
    async with Server(once(answer)) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        with pytest.raises(UpstreamProtocolError):
            await whole(response)
        await response.aclose()


async def test_B21_a_broken_chunk_is_an_error(opened: Opener) -> None:
    taken = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, b"5\r\nshort\r\n")
        await taken.wait()
        await peer.say(b"not a size\r\n")
        await peer.until_closed()

    async with Server(script) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))

        async def read() -> None:
            async for _ in response.aiter_raw():
                taken.set()

        with pytest.raises(UpstreamProtocolError):
            await asyncio.wait_for(read(), SOON)
        await response.aclose()


async def test_B21_a_reset_in_the_middle_is_an_error(opened: Opener) -> None:
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(CHUNKED, b"5\r\nshort\r\n")
        await started.wait()
        peer.writer.transport.abort()

    async with Server(script) as server, opened(server.root) as transport:
        response = await transport.send(post(server.root))
        pieces: list[bytes] = []

        async def read() -> None:
            async for piece in response.aiter_raw():
                pieces.append(piece)
                started.set()

        with pytest.raises(UpstreamProtocolError):
            await asyncio.wait_for(read(), SOON)
        await response.aclose()
        assert pieces == [b"short"]


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"HTTP/1.1 2xx\r\n\r\n"])
async def test_B68_what_is_not_http_is_a_protocol_error(opened: Opener, answer: bytes) -> None:
    async with Server(once(answer)) as server, opened(server.root) as transport:
        with pytest.raises(UpstreamProtocolError):
            await transport.send(post(server.root))
