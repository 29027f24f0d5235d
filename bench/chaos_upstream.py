"""An upstream of an hour of chaos: it says what is right for a request, or fails as it is told."""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from aiohttp import web

from bench.chaos_ledger import Call, Ledger
from bench.chaos_refusals import refusal
from bench.chaos_rules import KEYS
from bench.chaos_weather import REFUSALS, Trouble, Window
from bench.stamped import Stamp, chat_digest, item_digest, through_answer, through_digest
from bench.stamped_answers import completion, embeddings, items_of, stream_events

HOST = "127.0.0.1"
# Longer than the proxy waits for anything.
_STALLED_SECONDS = 12.0
_EVENT_SECONDS = 0.008
_TRICKLE_SECONDS, _TRICKLED_BYTES = 0.4, 16
_SLOWER = 5.0
# The last bytes of a call that has ended may not have left.
_LEAVING_SECONDS = 0.3
_STATUSES = (500, 503, 529)
_HINTS: Sequence[Mapping[str, str]] = (
    {},
    {},
    {},
    {"x-should-retry": "false"},
    {"retry-after": "1"},
)


class ChaosUpstream:
    """Listens on a port that it keeps. `share` of the calls run into `window`, if there is one."""

    def __init__(self, name: str, ledger: Ledger, seed: int) -> None:
        self.name = name
        self.window: Window | None = None
        self.share = 0.0
        # What is wrong with a key.
        self.keys: dict[str, Window] = {}
        self._ledger = ledger
        self._chance = random.Random(f"{seed}:{name}")
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """What the proxy takes as its `base_url`."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def connections(self) -> int:
        """Open ones."""
        server = self._runner.server if self._runner is not None else None
        return len(server.connections) if server is not None else 0

    async def start(self) -> None:
        """Listen on a free port."""
        app = web.Application(client_max_size=4 * 1024 * 1024)
        app.router.add_route("*", "/v1/{path:.*}", self._answered)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        await self.listen()
        self._port = self._runner.addresses[0][1]

    async def listen(self) -> None:
        """Take connections, again."""
        assert self._runner is not None
        self._site = web.TCPSite(self._runner, HOST, self._port, shutdown_timeout=1.0)
        await self._site.start()

    async def refuse(self, window: Window) -> None:
        """Take no connections, and close those that there are, whatever is under way on them."""
        assert self._runner is not None
        assert self._site is not None
        await self._site.stop()
        now = time.monotonic()
        for call in self._ledger.at(self.name, now - _LEAVING_SECONDS):
            if call.trouble in {None, Trouble.SLOW}:
                call.hits(window, now)
        server = self._runner.server
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()

    async def stop(self) -> None:
        """Let go of the port."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body: dict[str, Any] = orjson.loads(raw) if raw else {}
        path = request.path.removeprefix("/v1")
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        call = self._ledger.called(self.name, key, _digests(path, body), time.monotonic())
        try:
            return await self._answer(request, path, body, call)
        except ConnectionError:
            return web.Response()  # nobody gets it: the proxy went away
        finally:
            now = time.monotonic()
            call.end(now)
            self._ledger.weather.late(call.began, now, call.late)

    async def _answer(
        self, request: web.Request, path: str, body: dict[str, Any], call: Call
    ) -> web.StreamResponse:
        if self.window is not None and self._chance.random() < self.share:
            call.hits(self.window, time.monotonic())
        trouble = call.trouble
        usual = 0.02 + int(call.digests[0][:2], 16) / 4_000
        if trouble is Trouble.STALL:
            await asyncio.sleep(_STALLED_SECONDS)
        if trouble in {Trouble.STALL, Trouble.RESET}:
            return _aborted(request)
        await _pause(call, usual * (_SLOWER if trouble is Trouble.SLOW else 1.0))
        if trouble is Trouble.STATUS:
            status = self._chance.choice(_STATUSES)
            return _error(call, status, "server_error", self._chance.choice(_HINTS))
        if (refused := self._refused(call)) is not None:
            return refused
        call.status = 200
        if body.get("stream"):
            return await _stream(request, body, call)
        return await _whole(request, orjson.dumps(_answer_to(path, body, call)), call)

    def _refused(self, call: Call) -> web.Response | None:
        """What a key that is in trouble gets."""
        window = self.keys.get(call.key)
        if window is None:
            if call.key in KEYS[self.name]:
                return None
            self._ledger.strangers += 1
            return _error(call, 401, "invalid_api_key", {})
        now = time.monotonic()
        call.hits(window, now)
        answer = refusal(window.trouble, self._chance, time.time())
        if window.trouble not in REFUSALS:
            window.rests = max(window.rests, now + answer.rests)
            self._ledger.rests(call.key, now, now + answer.rests)
        return _error(call, answer.status, answer.code, answer.headers)


def _digests(path: str, body: Mapping[str, Any]) -> tuple[str, ...]:
    match path:
        case "/chat/completions":
            return (chat_digest(body),)
        case "/embeddings":
            return tuple(item_digest(body["model"], item) for item in items_of(body))
        case _:
            return (through_digest(path, body),)


def _stamp(call: Call, digest: str) -> Stamp:
    return Stamp(digest, 1, call.number, round(call.began, 3))


def _answer_to(path: str, body: Mapping[str, Any], call: Call) -> dict[str, Any]:
    match path:
        case "/chat/completions":
            return completion(body, _stamp(call, call.digests[0]))
        case "/embeddings":
            return embeddings(body, [_stamp(call, digest) for digest in call.digests])
        case _:
            return through_answer(_stamp(call, call.digests[0]))


async def _pause(call: Call, seconds: float) -> None:
    """Sleep, and note how much longer it took: on a busy machine that adds up."""
    began = time.monotonic()
    await asyncio.sleep(seconds)
    call.late += time.monotonic() - began - seconds


async def _stream(request: web.Request, body: Mapping[str, Any], call: Call) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    events = stream_events(body, _stamp(call, call.digests[0]))
    trickles = call.trouble is Trouble.TRICKLE
    slower = _SLOWER if call.trouble is Trouble.SLOW else 1.0
    pause = _TRICKLE_SECONDS if trickles else _EVENT_SECONDS * slower
    for at, event in enumerate(events):
        if at == len(events) // 2 and await _broke(request, response, call):
            return response
        if event is events[-1]:
            # Whoever has the last bytes may ask for the end of this call.
            call.end(time.monotonic())
        await response.write(event)
        await _pause(call, pause)
    await response.write_eof()
    return response


async def _broke(request: web.Request, response: web.StreamResponse, call: Call) -> bool:
    """In the middle of a stream: whether it ends here."""
    match call.trouble:
        case Trouble.BREAK:
            _aborted(request)
        case Trouble.TRUNCATE:
            _closed(request)
        case Trouble.SHORT:
            await response.write_eof()
        case Trouble.ERROR:
            await response.write(b"data: " + _ERROR_BODY + b"\n\n")
            await response.write_eof()
        case _:
            return False
    return True


async def _whole(request: web.Request, body: bytes, call: Call) -> web.StreamResponse:
    """An answer with its length, or what becomes of it."""
    half = len(body) // 2
    match call.trouble:
        case Trouble.SHORT:
            return web.Response(body=body[:half], content_type="application/json")
        case Trouble.ERROR:
            return web.Response(body=_ERROR_BODY, content_type="application/json")
        case Trouble.BREAK | Trouble.TRUNCATE | Trouble.TRICKLE:
            response = web.StreamResponse(headers={"content-type": "application/json"})
            response.content_length = len(body)
            await response.prepare(request)
            if call.trouble is Trouble.TRICKLE:
                for at in range(0, len(body), _TRICKLED_BYTES):
                    await response.write(body[at : at + _TRICKLED_BYTES])
                    await asyncio.sleep(_TRICKLE_SECONDS)
                return response
            await response.write(body[:half])
            return (_aborted if call.trouble is Trouble.BREAK else _closed)(request, response)
        case _:
            call.end(time.monotonic())
            return web.Response(body=body, content_type="application/json")


_ERROR_BODY = orjson.dumps(
    {"error": {"message": "As arranged.", "type": "server_error", "param": None, "code": None}}
)


def _error(call: Call, status: int, code: str, headers: Mapping[str, str]) -> web.Response:
    call.status = status
    error = {"message": "As arranged.", "type": code, "param": None, "code": code}
    return web.json_response({"error": error}, status=status, headers=headers)


def _aborted(
    request: web.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    """The connection is reset."""
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


def _closed(request: web.Request, response: web.StreamResponse | None = None) -> web.StreamResponse:
    """The connection is closed, and what was written goes out before."""
    if request.transport is not None:
        request.transport.close()
    return response or web.Response()
