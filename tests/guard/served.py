"""The proxy as it is served, between a client's connection that is none and a real upstream.

Requests are fed to the protocol that the server is configured with, and what it writes is taken
from it. Towards the upstream stands the real client, over loopback. All of it runs on one loop, so
that what happens is the same each time.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast

import orjson
import yaml
from uvicorn.server import ServerState

from proxy.edge.app import create_app
from proxy.settings.load import load_settings
from proxy.workers.server import server_config
from tests.integration.hotpath import SteadyClock

EVENTS: Final = 16
_HIT: Final = b"x-cache: HIT\r\n"
_MISS: Final = b"x-cache: MISS\r\n"
_PASSED: Final = b"HTTP/1.1 200 OK\r\n"
_TURNS: Final = 50  # more than it takes to store an answer and to let go of a request
_CONTENT: Final = "The quick brown fox jumps over the lazy dog; then it rests. " * 21
_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def request(
    topic: int, *, blanks: int = 0, stream: bool = False, path: str = "/v1/chat/completions"
) -> bytes:
    """2 KB of chat as a client writes it; the same question for all numbers of `blanks`."""
    body = orjson.dumps(
        {
            "model": "gpt-4o",
            "temperature": 0,
            "max_tokens": 400,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": f"{topic:08d} " + "word " * 362},
            ],
            **({"stream": True} if stream else {}),
        }
    )
    body += b" " * blanks
    return (
        b"POST %b HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n"
        b"authorization: Bearer sk-guard\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (path.encode(), len(body), body)
    )


class Client(asyncio.Transport):
    """The server's end of a connection; what is written to it is kept until it is taken."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8080)})
        self._came = bytearray()
        self._waits: tuple[Callable[[bytearray], bool], asyncio.Future[None]] | None = None
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._came += data
        if self._waits is not None and self._waits[0](self._came):
            self._waits[1].set_result(None)
            self._waits = None

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True

    def abort(self) -> None:
        self._closed = True

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    async def until(self, holds: Callable[[bytearray], bool]) -> bytearray:
        """All that was written and not forgotten, once this holds for it."""
        if not holds(self._came):
            came = asyncio.get_running_loop().create_future()
            self._waits = (holds, came)
            await came
        return self._came

    def forget(self) -> None:
        self._came.clear()


def is_whole(response: bytearray) -> bool:
    """Whether this is a response to its end."""
    head, found, body = response.partition(b"\r\n\r\n")
    if not found:
        return False
    _, sized, rest = head.lower().partition(b"content-length: ")
    return len(body) == int(rest.split(b"\r\n")[0]) if sized else body.endswith(b"0\r\n\r\n")


class Upstream(asyncio.Protocol):
    """Answers at once, each answer in one write; a stream is written by `say`."""

    def __init__(self) -> None:
        message = {"role": "assistant", "content": _CONTENT}
        usage = {"prompt_tokens": 380, "completion_tokens": 300, "total_tokens": 680}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._answer = orjson.dumps(
            {
                "id": "chatcmpl-1",
                "created": 1,
                "model": "gpt-4o",
                "choices": [choice],
                "usage": usage,
            }
        )
        self._came = bytearray()
        self._transport: asyncio.Transport | None = None

    def __call__(self) -> "Upstream":
        """One for all connections: requests come one after the other."""
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._came += data
        if not is_whole(self._came):
            return
        streams = b'"stream":true' in self._came
        self._came.clear()
        if streams:
            self._transport.write(_STREAM_HEAD)
        else:
            self._transport.write(_HEAD % len(self._answer) + self._answer)

    def say(self, event: bytes) -> None:
        """The next event of the stream, or its end where there is none."""
        assert self._transport is not None
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))


def event(number: int) -> bytes:
    """One of `EVENTS` chunks, and the terminal event after the last one."""
    if number == EVENTS:
        return b"data: [DONE]\n\n"
    last = number == EVENTS - 1
    delta = {} if last else {"content": f" word {number}"}
    choice = {"index": 0, "delta": delta, "finish_reason": "stop" if last else None}
    chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
    return b"data: %b\n\n" % orjson.dumps({**chunk, "choices": [choice]})


class Served:
    """A proxy and one connection to it. `burden` runs before each read, to see what that does."""

    def __init__(
        self,
        protocol: asyncio.Protocol,
        upstream: Upstream,
        clock: SteadyClock,
        burden: Callable[[], None],
    ) -> None:
        self._protocol = protocol
        self._upstream = upstream
        self._clock = clock
        self._burden = burden
        self._client = Client()
        self._topic = 0
        self._blanks = 0
        protocol.connection_made(self._client)

    async def begin(self) -> None:
        """Have the answer that is to be hit."""
        await self._asked(request(0), _MISS)
        self._clock.advance(0.25)  # a head is good for the rest of a second

    async def hot(self) -> None:
        """A hit, of a request repeated byte for byte."""
        await self._asked(request(0), _HIT)

    async def warm(self) -> None:
        """A hit, of a request with the same key but other bytes."""
        self._blanks += 1
        await self._asked(request(0, blanks=self._blanks), _HIT)

    async def miss(self) -> None:
        """A new request, answered by the upstream and stored in memory."""
        self._topic += 1
        await self._asked(request(self._topic), _MISS)

    async def passed(self) -> None:
        """A request that only passes through."""
        await self._asked(request(0, path="/v1/responses"), _PASSED)

    async def stream(self) -> None:
        """A new request, answered by a stream of events that come one by one."""
        self._topic += 1
        self._send(request(self._topic, stream=True))
        await self._client.until(lambda came: b"\r\n\r\n" in came)
        for number in range(EVENTS + 1):
            said = event(number)
            self._upstream.say(said)
            await self._client.until(lambda came, said=said: said in came)  # type: ignore[misc]
        self._upstream.say(b"")
        await self._answered(_MISS)

    def receive(self, data: bytes) -> None:
        """One read of the connection."""
        if data:
            self._protocol.data_received(data)

    async def answers(self, count: int) -> list[bytes]:
        """The outcomes of so many answers, once they have come."""
        came = await self._client.until(lambda came: came.count(b"\r\nx-cache: ") == count)
        return re.findall(rb"\r\nx-cache: ([A-Z]+)\r\n", came)

    @property
    def is_closed(self) -> bool:
        """Whether the server has ended the connection."""
        return self._client.is_closing()

    async def _asked(self, raw: bytes, says: bytes) -> None:
        self._send(raw)
        await self._answered(says)

    def _send(self, raw: bytes) -> None:
        self._burden()
        self._protocol.data_received(raw)

    async def _answered(self, says: bytes) -> None:
        response = await self._client.until(is_whole)
        assert says in response, response[:500]
        self._client.forget()
        loop = asyncio.get_running_loop()
        for _ in range(_TURNS):  # what comes after the answer belongs to the request too
            turn: asyncio.Future[None] = loop.create_future()
            loop.call_soon(turn.set_result, None)
            await turn


@asynccontextmanager
async def served(
    directory: Path, burden: Callable[[], None] = lambda: None
) -> AsyncIterator[Served]:
    """A proxy with a memory store and the defaults else, as `magic-proxy serve` puts it together."""
    upstream = Upstream()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    file = directory / "proxy_config.yaml"
    given: dict[str, Any] = {
        "server": {"access_log": False},
        "upstreams": {"guard": {"base_url": f"http://127.0.0.1:{port}/v1"}},
        "store": {"tiers": ["memory"]},
    }
    file.write_text(yaml.safe_dump(given))
    settings = load_settings(file, env={})
    # It stands still: what is done once a second would be counted or not, by chance.
    clock = SteadyClock()
    app = create_app(settings, clock=clock)
    config = server_config(app, settings)
    config.load()
    await app.runtime.start()
    try:
        made: Any = config.http_protocol_class
        state = ServerState()
        protocol = made(config=config, server_state=state, app_state={}, _loop=loop)
        yield Served(protocol, upstream, clock, burden)
    finally:
        await app.runtime.stop()
        server.close()
