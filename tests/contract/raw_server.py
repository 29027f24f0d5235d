"""A server that writes bytes by hand: each connection follows a script."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class Peer:
    """One accepted connection, as the server sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return head, await self._chunked()
        if b"content-length: " in lower:
            length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
            return head, await self.reader.readexactly(length)
        return head, b""

    async def _chunked(self) -> bytes:
        body = b""
        while size := int(await self.reader.readline(), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readline()
        return body

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def until_closed(self) -> None:
        """Return when the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65_536):
                pass
        self.gone.set()


Script = Callable[[Peer], Awaitable[None]]


class Server:
    """Runs `script` on each connection; the connection closes when the script returns."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self.peers: list[Peer] = []
        self.failures: list[BaseException] = []
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        scheme = "http" if self._tls is None else "https"
        self.root = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers:
            if not peer.writer.is_closing():  # aborting twice raises on some releases of 3.11
                peer.writer.transport.abort()
        assert self.failures == []

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(reader, writer)
        self.peers.append(peer)
        try:
            await self._script(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            peer.gone.set()
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self.failures.append(error)
        finally:
            writer.close()
            self._tasks.discard(task)
            self.ended.set()


def answering(*pieces: bytes) -> Script:
    """Answer each request on the connection with the same bytes."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(*pieces)

    return script


def once(*pieces: bytes) -> Script:
    """Answer one request, then close."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces)

    return script


async def stalls(peer: Peer) -> None:
    """Takes a request and says nothing."""
    await peer.request()
    await peer.until_closed()


async def falls_silent(peer: Peer) -> None:
    """Begins an answer and says no more."""
    await peer.request()
    await peer.say(CHUNKED, b"5\r\nshort\r\n")
    await peer.until_closed()


async def trickles(peer: Peer) -> None:
    """Answers in pieces without an end, until the client is gone."""
    await peer.request()
    await peer.say(CHUNKED)
    with contextlib.suppress(ConnectionError):
        while True:
            await peer.say(b"1\r\na\r\n")
            await asyncio.sleep(0.01)  # the pace: each piece comes soon, the end never
    peer.gone.set()


def write_certificate(directory: Path) -> Path:
    """The server's certificate, which is also the authority that a client has to trust."""
    path = directory / "certificate.pem"
    path.write_text(_pem("CERTIFICATE", _TLS_CERTIFICATE))
    return path


def tls_context(certificate: Path) -> ssl.SSLContext:
    """What a `Server` takes to speak TLS; the key is written beside the certificate."""
    key = certificate.with_name("key.pem")
    key.write_text(_pem("PRIVATE KEY", _TLS_KEY))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def _pem(kind: str, text: str) -> str:
    return f"-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n"


# A throw-away key and its own certificate for 127.0.0.1, valid until 2126; without PEM's marks.
_TLS_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQghMM+lAvS/RxraKDcJ0k3wFylyLVVVpU52Dn1PH/I"
    "FemhRANCAAQmWdwrPTVrhuOfboXeLQTAZhBC0IjaIOi7QT8ztsPvYEaqWP09ir5499eeI9HRg1GJtKf6ZDjFJaOZ"
    "IJ4BMtuP"
)
_TLS_CERTIFICATE = (
    "MIIBkTCCATagAwIBAgIUQTMp4GEYbId949JWJDPCQeqSPHkwCgYIKoZIzj0EAwIwFDESMBAGA1UEAwwJMTI3LjAu"
    "MC4xMCAXDTI2MTEyMTAzMTMzNVoYDzIxMjYxMDI4MDMxMzM1WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcq"
    "hkjOPQIBBggqhkjOPQMBBwNCAAQmWdwrPTVrhuOfboXeLQTAZhBC0IjaIOi7QT8ztsPvYEaqWP09ir5499eeI9HR"
    "g1GJtKf6ZDjFJaOZIJ4BMtuPo2QwYjAdBgNVHQ4EFgQUUxkQ2tXrVB/SH9UudMgdZDwDXYIwHwYDVR0jBBgwFoAU"
    "UxkQ2tXrVB/SH9UudMgdZDwDXYIwDwYDVR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMC"
    "A0kAMEYCIQCn2Pe6uJ8Sjrgo2GLF14V0LC1E5BNA1kZOJNUW3/xjLwIhAJgN4vFEApErQsDZMVb4pHL48MIcbkpZ"
    "3/X8cLHOTG5G"
)
