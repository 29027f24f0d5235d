"""An upstream that answers piece by piece, when the test says so."""

import asyncio
from collections.abc import AsyncIterator

import orjson

from proxy.core.trailers import Trailers
from proxy.core.wire import Headers
from proxy.engine.base import Answer
from proxy.errors import UpstreamError
from proxy.upstream.base import Chain, Exchange, Outgoing
from tests.unit.engine.kit import ScriptedForwarder

SSE: Headers = ((b"Content-Type", b"text/event-stream"), (b"X-Request-Id", b"theirs"))
JSON: Headers = ((b"Content-Type", b"application/json"), (b"X-Request-Id", b"theirs"))


def event(**members: object) -> bytes:
    return b"data: " + orjson.dumps(members) + b"\n\n"


def chunk(text: str | None = None, finish: str | None = None, name: str = "c") -> bytes:
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return event(id=name, object="chat.completion.chunk", created=1, model="m", choices=[choice])


def usage_chunk() -> bytes:
    usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
    return event(
        id="c", object="chat.completion.chunk", created=1, model="m", choices=[], usage=usage
    )


DONE = b"data: [DONE]\n\n"
STREAM = [chunk("Once "), chunk("upon"), chunk(finish="stop"), DONE]


class LiveResponse:
    """One response: what is put into it arrives; None is its end, an error breaks it."""

    trailers: Trailers | None = None

    def __init__(self, status: int = 200, headers: Headers = SSE) -> None:
        self.status = status
        self.headers = headers
        self.closed = asyncio.Event()
        self.read = 0
        self._pieces: asyncio.Queue[bytes | UpstreamError | None] = asyncio.Queue()

    def say(self, *pieces: bytes | UpstreamError | None) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    def say_all(self, pieces: list[bytes]) -> None:
        self.say(*pieces, None)

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, UpstreamError):
                raise piece
            self.read += 1
            yield piece

    async def aclose(self) -> None:
        self.closed.set()


class LiveForwarder(ScriptedForwarder):
    """Each call waits until the test answers it, with a response or an error."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[asyncio.Future[LiveResponse]] = []
        self.asked = asyncio.Condition()

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        self.sent.append(outgoing)
        call: asyncio.Future[LiveResponse] = asyncio.get_running_loop().create_future()
        self.calls.append(call)
        return Exchange(await call, "main", "main", usage_requested=self.requests_usage(outgoing))

    def requests_usage(self, outgoing: Outgoing) -> bool:
        return False

    def answer(self, number: int, response: LiveResponse | UpstreamError) -> None:
        if isinstance(response, UpstreamError):
            self.calls[number].set_exception(response)
        else:
            self.calls[number].set_result(response)


class UsageForwarder(LiveForwarder):
    """The proxy asks it for usage where the client does not."""

    def requests_usage(self, outgoing: Outgoing) -> bool:
        return outgoing.request_usage


async def body_of(answer: Answer) -> bytes:
    """The whole body; whoever reads it closes it."""
    if isinstance(answer.body, bytes):
        return answer.body
    try:
        return b"".join([piece async for piece in answer.body])
    finally:
        await answer.body.aclose()


async def turns(count: int = 20) -> None:
    """Let everything that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)
