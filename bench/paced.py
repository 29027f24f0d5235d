"""An upstream with a pace, that counts its calls: for what is measured in milliseconds.

    python -m bench.paced --port 9000 [--wait-seconds 0.2] [--spread 0] [--events 200]
        [--event-seconds 0.02] [--numbers 4]

A chat answer, 1.6 KB, comes after the wait; a stream's events come after it, one in each interval.
Vectors of embeddings, of `--numbers`, come at once. Any other path under `/v1` gets 2 KB after the
wait. With a spread of 0.2 a wait is anything from 0.8 to 1.2 times as long. What an answer itself
took from the last byte of its request, in microseconds, stands in its `x-took-us`: timers are
coarser than what is measured. `GET /calls` tells when (monotonic seconds)
there were requests with which body, by the SHA-256 of the body; `GET /counts` how many requests and
events there were.
"""

import argparse
import asyncio
import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import uvloop
from aiohttp import web

HOST = "127.0.0.1"
TOOK = "x-took-us"
CONTENT = "The quick brown fox jumps over the lazy dog; then it rests. " * 21
_OTHER = {"object": "response", "text": "The quick brown fox jumps over the lazy dog. " * 44}
_TOKEN = "four words of it "


@dataclass(slots=True)
class Paced:
    """The application; times in seconds. Vectors have so many `numbers`."""

    wait: float
    events: int
    event: float
    numbers: int
    spread: float = 0.0
    calls: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    requests: int = 0
    events_sent: int = 0

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/embeddings", self._embeddings)
        app.router.add_route("*", "/v1/{rest:.*}", self._other)
        app.router.add_get("/calls", self._calls)
        app.router.add_get("/counts", self._counts)
        return app

    async def _calls(self, request: web.Request) -> web.Response:  # noqa: ARG002 - the interface
        return web.json_response(dict(self.calls))

    async def _counts(self, request: web.Request) -> web.Response:  # noqa: ARG002 - the interface
        return web.json_response({"requests": self.requests, "events": self.events_sent})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        loop = asyncio.get_running_loop()
        began, wait = time.monotonic(), self._wait()
        begins = loop.time() + wait
        await asyncio.sleep(wait)
        if not body.get("stream"):
            message = {"role": "assistant", "content": CONTENT}
            return _json(_answer(body) | _choice({"message": message}, "stop"), began)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for at in range(self.events):
            # By the clock: a late event does not make all that follow late.
            await asyncio.sleep(begins + at * self.event - loop.time())
            await response.write(_event(body, {"content": _TOKEN}, None))
            self.events_sent += 1
        self.events_sent += 1
        await response.write(_event(body, {}, "stop") + b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._body(request)
        began = time.monotonic()
        given = body["input"]
        count = len(given) if isinstance(given, list) else 1
        vector = [(at + 0.5) / self.numbers for at in range(self.numbers)]
        rows = [{"object": "embedding", "index": at, "embedding": vector} for at in range(count)]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return _json(
            {"object": "list", "data": rows, "model": body["model"], "usage": usage}, began
        )

    async def _other(self, request: web.Request) -> web.StreamResponse:
        async for _ in request.content.iter_any():
            pass
        began = time.monotonic()
        self.requests += 1
        await asyncio.sleep(self._wait())
        return _json(_OTHER, began)

    def _wait(self) -> float:
        return self.wait * random.uniform(1.0 - self.spread, 1.0 + self.spread)

    async def _body(self, request: web.Request) -> Any:
        content = await request.read()
        self.requests += 1
        self.calls[hashlib.sha256(content).hexdigest()].append(time.monotonic())
        return orjson.loads(content)


def _answer(body: Mapping[str, Any]) -> dict[str, Any]:
    usage = {"prompt_tokens": 500, "completion_tokens": 300, "total_tokens": 800}
    return {
        "id": "chatcmpl-paced",
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": body["model"],
        "usage": usage,
    }


def _choice(said: Mapping[str, Any], finish: str | None) -> dict[str, Any]:
    return {"choices": [{"index": 0, **said, "finish_reason": finish}]}


def _event(body: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None) -> bytes:
    chunk = _answer(body) | {"object": "chat.completion.chunk", "usage": None}
    return b"data: " + orjson.dumps(chunk | _choice({"delta": delta}, finish)) + b"\n\n"


def _json(answer: Mapping[str, Any], began: float) -> web.Response:
    body = orjson.dumps(answer)
    took = {TOOK: f"{1e6 * (time.monotonic() - began):.0f}"}
    return web.Response(body=body, headers=took, content_type="application/json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--wait-seconds", type=float, default=0.0)
    parser.add_argument("--spread", type=float, default=0.0)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--event-seconds", type=float, default=0.02)
    parser.add_argument("--numbers", type=int, default=4)
    given = parser.parse_args()
    paced = Paced(
        given.wait_seconds, given.events, given.event_seconds, given.numbers, given.spread
    )
    web.run_app(
        paced.app(),
        host=HOST,
        port=given.port,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
