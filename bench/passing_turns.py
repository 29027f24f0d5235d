"""What passes through, and one turn of it: 32 connections, each busy all the time."""

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from bench.coalesce_base import at_share, hang_up
from bench.crowd import Caller, callers
from bench.load import CONNECTIONS
from bench.machine import cpu_seconds
from bench.processes import HOST, Running
from bench.question import CHAT

_BOUNDARY = "a-boundary-between-parts"
_UPLOAD_BYTES = 100_000
_WARM_SECONDS = 0.4


@dataclass(frozen=True, slots=True)
class Kind:
    """A request that no cache answers."""

    title: str
    method: str
    path: str
    body: bytes = b""
    lines: tuple[str, ...] = ()

    def to(self, server: Running) -> bytes:
        """Its bytes for this server."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"host: {HOST}:{server.port}"]
        lines += ["authorization: Bearer sk-bench", *self.lines]
        if self.body:
            lines.append(f"content-length: {len(self.body)}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


def _response() -> bytes:
    return orjson.dumps({"model": "gpt-4o", "input": "word " * 195})


def _form() -> bytes:
    head = (
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    )
    return head.encode() + b"x" * _UPLOAD_BYTES + f"\r\n--{_BOUNDARY}--\r\n".encode()


_JSON = "content-type: application/json"
KINDS = {
    "post": Kind("POST of 1 KB, 2 KB back", "POST", "/v1/responses", _response(), (_JSON,)),
    "get": Kind("GET, 2 KB back", "GET", "/v1/files/file-1"),
    "upload": Kind(
        "upload of 100 KB",
        "POST",
        "/v1/files",
        _form(),
        (f"content-type: multipart/form-data; boundary={_BOUNDARY}",),
    ),
    "chat": Kind(
        "chat of 2 KB, past the cache",
        "POST",
        "/v1/chat/completions",
        CHAT.body(),
        (_JSON, "cache-control: no-cache, no-store"),
    ),
}


@dataclass(frozen=True, slots=True)
class Turn:
    """`beyond` are seconds besides those that the upstream took itself, of all answers, ordered."""

    beyond: Sequence[float]
    rate: float
    cpu_us: float

    def ms(self, share: float) -> float:
        """What this share of the answers does not exceed."""
        return 1000 * at_share(self.beyond, share)


async def turn(server: Running, kind: Kind, seconds: float) -> Turn:
    """Ask for so long. Raises AssertionError if any answer was no 200."""
    crowd = await callers([server], CONNECTIONS)
    gc.collect()
    gc.disable()
    try:
        began = time.monotonic() + _WARM_SECONDS
        busy = [
            _busy(caller, kind.to(server), began, began + seconds, place / CONNECTIONS)
            for place, caller in enumerate(crowd)
        ]
        asked = asyncio.gather(*busy)
        await asyncio.sleep(began - time.monotonic())
        spent, began = cpu_seconds(server.pid), time.monotonic()
        lines = await asked
        took, spent = time.monotonic() - began, cpu_seconds(server.pid) - spent
    finally:
        gc.enable()
    await hang_up(crowd)
    beyond = sorted(second for line in lines for second in line)
    return Turn(beyond, len(beyond) / took, spent / len(beyond) * 1e6)


async def _busy(
    caller: Caller, raw: bytes, began: float, until: float, place: float
) -> list[float]:
    """Ask all the time; what counts are requests since `began`.

    The first one comes at its `place` in the time before that: 32 at once would be a line.
    """
    beyond: list[float] = []
    await asyncio.sleep(place * _WARM_SECONDS)
    while time.monotonic() < until:
        heard = await caller.ask(raw)
        assert heard.status == 200, bytes(heard.body[:300])
        if heard.sent >= began:
            assert heard.took_seconds, "nobody said how long the upstream took"
            beyond.append(heard.seconds - heard.took_seconds)
    return beyond
