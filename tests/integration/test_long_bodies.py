"""Bodies that nobody holds: both ways at the pace of the slower side, and let go at once."""

import asyncio
import contextlib
import hashlib
import itertools
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
import yaml

from proxy.standin.signals import Signal
from tests.integration.contract import chat
from tests.integration.paths import Way, Ways
from tests.integration.processes import ServedProxy
from tests.integration.raw_upstream import RawUpstream, Seen

MB = 1024 * 1024
BLOCK = b"0123456789abcdef" * 4096
BLOCKS = 50 * MB // len(BLOCK)
LENGTH = BLOCKS * len(BLOCK)
PARTS = (
    b'--=_x\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n',
    b"\r\n--=_x--\r\n",
)
# For so long nothing moves: who sends waits for who reads.
STALLED_SECONDS = 0.1


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port), 15)


class Sender(threading.Thread):
    """Sends pieces as fast as they are taken; that nobody takes them any more is no error."""

    def __init__(self, to: socket.socket, pieces: Sequence[bytes]) -> None:
        super().__init__(daemon=True)
        self._to = to
        self._pieces = pieces
        self._changed = threading.Condition()
        self.sent = 0

    def run(self) -> None:
        with contextlib.suppress(OSError):
            for piece in self._pieces:
                self._to.sendall(piece)
                with self._changed:
                    self.sent += len(piece)
                    self._changed.notify()

    def wait_until_it_waits(self) -> None:
        with self._changed:
            while self._changed.wait(STALLED_SECONDS):
                pass


async def send(seen: Seen, head: bytes, waits: Signal, blocks: int | None = None) -> None:
    """So many blocks, or without an end; `waits` is set where nobody takes them."""
    writer = seen.peer.writer
    writer.write(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % head)
    for _ in itertools.count() if blocks is None else range(blocks):
        writer.write(BLOCK)
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await writer.drain()
                await asyncio.sleep(0)  # to drain may mean not to wait at all
        except TimeoutError:
            waits.set()
            await writer.drain()


class Slow:
    """Takes nothing of an upload before it is told to; answers with as much, and sees that wait."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.digest = hashlib.sha256()
        self.waits = Signal("the answer waits for its reader")

    async def serve(self, seen: Seen) -> bool:
        await self.reads.wait()
        left = int(seen.values("content-length")[0])
        while left:
            read = await seen.peer.reader.read(min(left, MB))
            self.digest.update(read)
            left -= len(read)
        await send(seen, b"Content-Length: %d" % LENGTH, self.waits, BLOCKS)
        return False


@pytest.fixture(scope="module")
def upstream() -> Iterator[RawUpstream]:
    with RawUpstream() as running:
        yield running


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
def test_B43_B60_fifty_megabytes_pass_each_way_in_bounded_memory_however_slow_the_other_side(
    transport: str, upstream: RawUpstream, tmp_path: Path
) -> None:
    upstream.reset()
    file = tmp_path / "settings.yaml"
    upstreams = {"openai": {"base_url": upstream.root, "transport": transport}}
    file.write_text(
        yaml.safe_dump(
            {"server": {"port": 0}, "upstreams": upstreams, "store": {"tiers": ["memory"]}}
        )
    )
    form = [PARTS[0], *[BLOCK] * BLOCKS, PARTS[1]]
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n"
        b'Content-Type: multipart/form-data; boundary="=_x"\r\n\r\n' % sum(map(len, form))
    )

    with ServedProxy(file) as proxy, connected(proxy.url) as client:
        httpx.get(f"{proxy.base_url}/models", verify=False, trust_env=False)
        before = proxy.resident_bytes()
        slow = Slow()
        upstream.serve = slow.serve
        sender = Sender(client, [head, *form])
        sender.start()
        sender.wait_until_it_waits()
        seen = upstream.wait(2)
        assert sender.sent < 40 * MB, "what the kernel takes"

        seen.loop.call_soon_threadsafe(slow.reads.set)
        slow.waits.wait()
        digest, got = hashlib.sha256(), 0
        told, body = client.recv(MB).split(b"\r\n\r\n")
        while body:
            digest.update(body)
            got += len(body)
            body = client.recv(MB)

        assert told.startswith(b"HTTP/1.1 200 ")
        assert slow.digest.digest() == hashlib.sha256(b"".join(form)).digest()
        assert (got, digest.digest()) == (LENGTH, hashlib.sha256(BLOCK * BLOCKS).digest())
        assert proxy.resident_bytes("VmHWM") - before < 12 * MB


@pytest.mark.parametrize("length", [b"Content-Length: 99999999", b"Transfer-Encoding: chunked"])
def test_B42_an_upload_whose_client_goes_away_is_let_go_upstream_within_a_second(
    length: bytes, way: Way
) -> None:
    took = Signal("the upload is under way")

    async def takes(seen: Seen) -> bool:
        await seen.take(MB)
        took.set()
        await seen.take_all()
        return False

    way.upstream.serve = takes
    with connected(way.proxy.url) as client:
        client.sendall(b"POST /v1/files HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % length)
        client.sendall(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) * 20)
        took.wait()

    way.upstream.wait().gone.wait(1)


def asking(path: bytes, body: object = None, more: bytes = b"") -> bytes:
    raw = b"" if body is None else orjson.dumps(body)
    head = b"%b HTTP/1.1\r\nHost: x\r\n%bContent-Type: application/json\r\n" % (path, more)
    length = b"" if body is None else b"Content-Length: %d\r\n" % len(raw)
    return head + length + b"\r\n" + raw


CHAT, EMBED = b"POST /v1/chat/completions", b"POST /v1/embeddings"
ENDLESS = b"Content-Length: 9999999999\r\nContent-Type: "
PASS = b"Cache-Control: no-cache, no-store\r\n"
ANSWERS = {
    "files": (asking(b"GET /v1/files"), b"audio/mpeg"),
    "json": (asking(CHAT, chat("Long.")), b"application/json"),
    "stream": (asking(CHAT, chat("Long.", stream=True)), b"text/event-stream"),
    "stream-bypass": (asking(CHAT, chat("Long.", stream=True), PASS), b"text/event-stream"),
    "embeddings": (asking(EMBED, {"model": "e", "input": "a"}), b"application/json"),
}


@pytest.mark.parametrize("asked", ANSWERS)
@pytest.mark.parametrize("name", ["aiohttp-https", "httpx-http"])
def test_B42_an_answer_whose_client_goes_away_is_let_go_upstream_within_a_second(
    name: str, asked: str, ways: Ways
) -> None:
    """The client takes no more before, so that all wait for it and nothing is written."""
    way = ways(name)
    waits = Signal("the answer waits for its reader")

    async def endless(seen: Seen) -> bool:
        await seen.take_framed()
        sending = asyncio.ensure_future(send(seen, ENDLESS + ANSWERS[asked][1], waits))
        await seen.take_all()
        sending.cancel()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await sending
        return False

    way.upstream.serve = endless
    with connected(way.proxy.url) as client:
        client.sendall(ANSWERS[asked][0])
        assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        waits.wait()

    way.upstream.wait().gone.wait(1)
