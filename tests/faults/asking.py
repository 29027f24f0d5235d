"""A client that sees how each answer ends."""

import asyncio
import contextlib
from dataclasses import dataclass
from urllib.parse import urlsplit

from tests.faults.kinds import Asked
from tests.integration.wire import unchunked

# What an endless answer is read of before its client leaves, and how long one is waited for.
_LONGEST = 1_000_000
_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Got:
    """One answer; `whole`: its framing says that it came to its end."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    whole: bool

    def __getitem__(self, name: str) -> str:
        """The only value of a header, "" where there is none."""
        values = [value for key, value in self.headers if key == name]
        assert len(values) <= 1, f"{name} stands {len(values)} times"
        return values[0] if values else ""


async def ask(root: str, asked: Asked, key: str, *lines: str) -> Got:
    """One request on a connection of its own, read until the proxy closes it."""
    parts = urlsplit(root)
    host, port = parts.hostname, parts.port
    assert host is not None
    head = [
        f"{asked.method} /v1{asked.path} HTTP/1.1",
        f"host: {parts.netloc}",
        f"authorization: Bearer {key}",
        "connection: close",
        "accept-encoding: identity",
        *lines,
    ]
    if asked.body:
        head += ["content-type: application/json", f"content-length: {len(asked.body)}"]
    async with asyncio.timeout(_SECONDS):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write("\r\n".join([*head, "", ""]).encode() + asked.body)
            return _read(await _received(reader))
        finally:
            writer.close()


async def _received(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while len(received) < _LONGEST and (more := await reader.read(65_536)):
            received += more
    return bytes(received)


def _read(received: bytes) -> Got:
    head, found, rest = received.partition(b"\r\n\r\n")
    assert found, f"no answer: {received!r}"
    status_line, *lines = head.decode("latin-1").split("\r\n")
    status = int(status_line.split(" ")[1])
    headers = tuple(
        (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)
    )
    framing = dict(headers)
    if "transfer-encoding" in framing:
        body, whole = unchunked(rest)
    elif "content-length" in framing:
        body, whole = rest, len(rest) == int(framing["content-length"])
    else:
        # Nothing else tells where such an answer ends: only those that never have a body may do so.
        body, whole = rest, status in {204, 304} and not rest
    return Got(status, headers, body, whole)
