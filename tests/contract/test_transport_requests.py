"""What a transport sends: URLs, headers and uploads arrive as they were."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from proxy.errors import UpstreamProtocolError
from proxy.upstream.base import UpstreamRequest
from tests.contract.raw_server import OK, Peer, Server, once
from tests.contract.transports import SOON, Opener, post, whole

pytestmark = pytest.mark.anyio


async def test_B60_path_query_headers_and_body_arrive_as_they_were(opened: Opener) -> None:
    heads: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.request())
        await peer.say(OK)

    async with Server(script) as server, opened(server.root) as transport:
        raw = "/a%2Fb;x=1//c/../d%7E?q=[1]&r=+&s=%20%5B&t='%22&u=a|b"
        request = UpstreamRequest(
            "PATCH",
            server.root + raw,
            ((b"x-two", b"1"), (b"x-one", b"a, b"), (b"x-two", b"2")),
            b"\x00\xffnot json",
        )
        await whole(await transport.send(request))
    head, body = heads[0]
    lines = head.split(b"\r\n")
    assert lines[0] == b"PATCH /v1" + raw.encode() + b" HTTP/1.1"
    sent = [line for line in lines if line.startswith(b"x-")]
    assert sent == [b"x-two: 1", b"x-one: a, b", b"x-two: 2"]
    names = {line.split(b":")[0].lower() for line in lines[1:] if line}
    assert names == {b"host", b"x-two", b"x-one", b"content-length"}, "nothing is added"
    assert body == b"\x00\xffnot json"


async def test_B60_cookies_of_an_answer_are_not_sent_back(opened: Opener) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        while True:
            heads.append((await peer.request())[0])
            await peer.say(
                b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/\r\nContent-Length: 0\r\n\r\n"
            )

    async with Server(script) as server:
        root = server.root.replace("127.0.0.1", "localhost")  # jars refuse cookies of addresses
        async with opened(root) as transport:
            await whole(await transport.send(post(root)))
            await whole(await transport.send(post(root)))
            assert len(server.peers) == 1, "the connection is used again"
    assert b"cookie" not in heads[1].lower()


async def test_B60_an_upload_goes_out_as_it_comes(opened: Opener) -> None:
    first_arrived = asyncio.Event()
    heads: list[bytes] = []
    bodies: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append(await peer.reader.readuntil(b"\r\n\r\n"))
        first = await peer.reader.readuntil(b"one")
        first_arrived.set()
        rest = await peer.reader.readuntil(b"0\r\n\r\n")
        bodies.append(first + rest)
        await peer.say(OK)

    async def source() -> AsyncIterator[bytes]:
        yield b"one"
        async with asyncio.timeout(SOON):
            await first_arrived.wait()
        yield b"two"

    async with Server(script) as server, opened(server.root) as transport:
        request = UpstreamRequest("POST", server.root + "/files", (), source())
        await whole(await transport.send(request))
    assert b"transfer-encoding: chunked" in heads[0].lower()
    assert bodies == [b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"]


async def test_B60_an_upload_of_announced_length_keeps_it(opened: Opener) -> None:
    requests: list[tuple[bytes, bytes]] = []

    async def script(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.say(OK)

    async def source() -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async with Server(script) as server, opened(server.root) as transport:
        headers = ((b"content-length", b"6"),)
        request = UpstreamRequest("PUT", server.root + "/files", headers, source())
        await whole(await transport.send(request))
    head, body = requests[0]
    assert b"transfer-encoding" not in head.lower()
    assert body == b"onetwo"


async def test_B60_a_failing_upload_raises_its_own_error(opened: Opener) -> None:
    class ClientLeftError(Exception):
        pass

    async def source() -> AsyncIterator[bytes]:
        yield b"one"
        raise ClientLeftError

    async def script(peer: Peer) -> None:
        await peer.until_closed()

    async with Server(script) as server, opened(server.root) as transport:
        request = UpstreamRequest("POST", server.root + "/files", (), source())
        with pytest.raises(ClientLeftError):
            await transport.send(request)
        async with asyncio.timeout(SOON):
            await server.peers[0].gone.wait()


async def test_B60_a_proxy_gets_the_absolute_url(opened: Opener) -> None:
    heads: list[bytes] = []

    async def script(peer: Peer) -> None:
        heads.append((await peer.request())[0])
        await peer.say(OK)

    async with Server(script) as proxy:
        address = proxy.root.removeprefix("http://").removesuffix("/v1")
        async with opened(
            "http://upstream.invalid/v1", http_proxy=f"http://me:secret@{address}"
        ) as transport:
            await whole(
                await transport.send(post("http://upstream.invalid/v1", path="/a%2Fb?q=%5B"))
            )
    lines = heads[0].split(b"\r\n")
    assert lines[0] == b"POST http://upstream.invalid/v1/a%2Fb?q=%5B HTTP/1.1"
    assert any(line.lower().startswith(b"proxy-authorization: basic ") for line in lines)


async def test_B69_errors_do_not_show_the_url_or_headers(opened: Opener) -> None:
    async with Server(once(b"nonsense\r\n\r\n")) as server, opened(server.root) as transport:
        request = UpstreamRequest(
            "POST",
            server.root + "/x?key=sk-secret",
            ((b"authorization", b"Bearer sk-secret"),),
            b"{}",
        )
        with pytest.raises(UpstreamProtocolError) as caught:
            await transport.send(request)
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(caught.value.envelope())
    assert "sk-secret" not in repr(request.headers and replace(request, url=""))
