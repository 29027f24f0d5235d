"""Many requests at one moment, over connections that stand already, each watched to its end.

The client is the smallest that will do: a request is one write of bytes made beforehand, and an
answer costs some ten microseconds to read, so that a thousand of them don't wait for their client.
"""

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools

from bench.processes import HOST, Running

PATIENCE_SECONDS = 60.0


@dataclass(slots=True)
class Heard:
    """One answer as it came; times are monotonic seconds.

    `took_seconds` is what the upstream says that it took itself (see `bench/paced.py`), `reads`
    tells after each read how many bytes of the body had come.
    """

    sent: float = 0.0
    ended: float = 0.0
    status: int = 0
    x_cache: str = ""
    cache_status: str = ""
    took_seconds: float = 0.0
    body: bytearray = field(default_factory=bytearray)
    reads: list[tuple[float, int]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    @property
    def first_seconds(self) -> float:
        """The moment of the first bytes of the body."""
        return self.reads[0][0]

    def moment_of(self, size: int) -> float:
        """The moment at which so many bytes of the body had come."""
        return next(moment for moment, had in self.reads if had >= size)


class Caller(asyncio.Protocol):
    """One connection; `ask` sends a request and returns what is heard of its answer."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._heard = Heard()
        self._done: asyncio.Future[Heard] | None = None
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are Transports by what they do, not by class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("closed before the end"))

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-cache":
                self._heard.x_cache = value.decode()
            case b"cache-status":
                self._heard.cache_status = value.decode()
            case b"x-took-us":
                self._heard.took_seconds = int(value) / 1e6

    def on_body(self, part: bytes) -> None:
        heard = self._heard
        heard.body += part
        heard.reads.append((time.monotonic(), len(heard.body)))

    def on_message_complete(self) -> None:
        self._heard.ended = time.monotonic()
        self._heard.status = self._parser.get_status_code()
        assert self._done is not None
        if not self._done.done():
            self._done.set_result(self._heard)

    def ask(self, request: bytes) -> "asyncio.Future[Heard]":
        """Send now; the result comes when the answer has ended."""
        assert self._transport is not None
        self._heard = Heard(sent=time.monotonic())
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._done

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()


def request(
    server: Running, body: bytes, path: str = "/v1/chat/completions", *headers: str
) -> bytes:
    """The bytes of one POST; `headers` are further lines."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"host: {HOST}:{server.port}",
        "content-type: application/json",
        "authorization: Bearer sk-bench",
        f"content-length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def callers(servers: Sequence[Running], count: int) -> list[Caller]:
    """That many connections, to the servers in turn."""
    loop = asyncio.get_running_loop()
    made = []
    for at in range(count):
        server = servers[at % len(servers)]
        _, caller = await loop.create_connection(Caller, HOST, server.port)
        made.append(caller)
    # A connection stands for the server too once it has answered over it.
    await asyncio.gather(
        *(caller.ask(b"GET /healthz HTTP/1.1\r\nhost: -\r\n\r\n") for caller in made)
    )
    return made


async def all_at_once(crowd: Sequence[Caller], requests: Sequence[bytes]) -> list[Heard]:
    """Each caller sends its request, in order, without a pause."""
    gc.collect()
    gc.disable()
    try:
        asked = [caller.ask(sent) for caller, sent in zip(crowd, requests, strict=True)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await asyncio.gather(*asked)
    finally:
        gc.enable()
