"""The upstream of the soak: it stamps what it says, keeps a list of calls, and fails on command."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from aiohttp import web

from bench.stamped import Stamp, chat_digest, chat_words, item_digest
from bench.stamped_answers import completion, embeddings, items_of, stream_events

HOST = "127.0.0.1"
PROXY_HEADER = "x-soak-proxy"
# A message that begins so is answered after a while, and slowly: for crowds to gather.
SLOW_MARK = "slowly: "
SLOW_SECONDS, SLOW_EVENT_SECONDS = 0.3, 0.02
EVENT_SECONDS = 0.008
# One that begins so too gets the same answer again, by name and time.
STEADY_MARK = SLOW_MARK + "steadily: "
MOST_INPUTS = 16


class Ending(StrEnum):
    """How a call ended, as the upstream saw it."""

    OPEN = "open"  # it has not yet
    WHOLE = "whole"
    ERROR = "error"  # answered with the status of the announced fault
    BROKEN = "broken"  # cut by the upstream, as announced
    CUT = "cut"  # the proxy went away
    REFUSED = "refused"  # a request that no proxy should send


@dataclass(slots=True)
class UpstreamCall:
    """One request that arrived; times are monotonic seconds.

    `digests` are those of the chat request, or of each input of an embeddings request.
    """

    number: int
    version: int
    proxy: str
    digests: tuple[str, ...]
    began: float
    ended: float = 0.0
    ending: Ending = Ending.OPEN


@dataclass(slots=True)
class Mood:
    """What is wrong at the moment."""

    slower: float = 1.0
    status: int | None = None
    breaks_streams: bool = False


@dataclass(slots=True)
class SoakUpstream:
    """Answers chat and embeddings; `version` goes up with every purge that is to be proved."""

    version: int = 1
    mood: Mood = field(default_factory=Mood)
    calls: list[UpstreamCall] = field(default_factory=list)
    by_digest: Counter[str] = field(default_factory=Counter)
    port: int = 0
    _steady: dict[str, Stamp] = field(default_factory=dict)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """What the proxies take as their `base_url`."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def under_way(self) -> int:
        """Calls that have not ended."""
        # They are among the last ones: no answer takes longer than some seconds.
        return sum(call.ending is Ending.OPEN for call in self.calls[-2_000:])

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, HOST, 0, shutdown_timeout=1.0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Let go of the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        call = self._called(request, (chat_digest(body),))
        stamp = _stamp(call, call.digests[0])
        content = body["messages"][-1]["content"]
        if content.startswith(STEADY_MARK):
            stamp = self._steady.setdefault(stamp.digest, stamp)
        slowly = content.startswith(SLOW_MARK)
        usual = SLOW_SECONDS if slowly else 0.02 + int(stamp.digest[:2], 16) / 4_000
        try:
            await asyncio.sleep(usual * self.mood.slower)
            if (failure := self._failure(call)) is not None:
                return failure
            if not body.get("stream"):
                return _json(call, completion(body, stamp))
            pause = SLOW_EVENT_SECONDS if slowly else EVENT_SECONDS
            return await self._stream(request, body, call, stamp, pause)
        except (asyncio.CancelledError, ConnectionError):
            _end(call, Ending.CUT)
            raise

    async def _stream(
        self,
        request: web.Request,
        body: Mapping[str, Any],
        call: UpstreamCall,
        stamp: Stamp,
        pause: float,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        events, words = stream_events(body, stamp), len(chat_words(stamp))
        for at, event in enumerate(events[:words]):
            if self.mood.breaks_streams and at == words // 2:
                _end(call, Ending.BROKEN)
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(event)
            await asyncio.sleep(pause * self.mood.slower)
        # Before the last bytes leave: whoever has them all may ask for the end of this call.
        _end(call, Ending.WHOLE)
        await response.write(b"".join(events[words:]))
        await response.write_eof()
        return response

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        items, model = items_of(body), body["model"]
        call = self._called(request, tuple(item_digest(model, item) for item in items))
        if len(items) > MOST_INPUTS or len(set(items)) < len(items):
            _end(call, Ending.REFUSED)
            return web.json_response({"error": {"message": "too many, or twice"}}, status=400)
        try:
            await asyncio.sleep(0.05 * self.mood.slower)
        except asyncio.CancelledError:
            _end(call, Ending.CUT)
            raise
        if (failure := self._failure(call)) is not None:
            return failure
        return _json(call, embeddings(body, [_stamp(call, digest) for digest in call.digests]))

    def _called(self, request: web.Request, digests: tuple[str, ...]) -> UpstreamCall:
        call = UpstreamCall(
            number=len(self.calls) + 1,
            version=self.version,
            proxy=request.headers.get(PROXY_HEADER, ""),
            digests=digests,
            began=time.monotonic(),
        )
        self.calls.append(call)
        self.by_digest.update(digests)
        return call

    def _failure(self, call: UpstreamCall) -> web.Response | None:
        if self.mood.status is None:
            return None
        _end(call, Ending.ERROR)
        error = {"message": "As announced.", "type": "server_error", "param": None, "code": None}
        return web.json_response({"error": error}, status=self.mood.status)


def _stamp(call: UpstreamCall, digest: str) -> Stamp:
    return Stamp(digest, call.version, call.number, round(call.began, 3))


def _end(call: UpstreamCall, ending: Ending) -> None:
    if call.ending is Ending.OPEN:
        call.ended, call.ending = time.monotonic(), ending


def _json(call: UpstreamCall, answer: Mapping[str, Any]) -> web.Response:
    _end(call, Ending.WHOLE)
    return web.Response(body=orjson.dumps(answer), content_type="application/json")
