"""The client of the soak: it sends one request and says what came, whole, broken or wrong."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import aiohttp
import orjson

from bench.soak_content import Said, Stamp, Wrong, check_chat, check_embeddings

CHAT_PATH = "/v1/chat/completions"
EMBEDDINGS_PATH = "/v1/embeddings"
LONGEST_SECONDS = 30.0
# Shorter than any server's, so that none closes a connection that is about to be used.
_KEEP_ALIVE_SECONDS = 2.0
_BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError)


class Came(StrEnum):
    """How a request ended, as its client saw it."""

    WHOLE = "whole"  # the right answer, all of it
    WRONG = "wrong"  # an answer, but not the right one
    SHORTENED = "shortened"  # a stream that ends in good order before its end
    BROKEN = "broken"  # an answer that broke off, and was seen to
    STATUS = "status"  # an error with a status
    NO_ANSWER = "no answer"  # no connection, or none that brought an answer
    HUNG = "hung"  # nothing for too long
    LEFT = "left"  # the client itself went away


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to be sent. `leaves_after` seconds the client goes away, answered or not."""

    kind: str
    proxy: str
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
    leaves_after: float | None = None

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def is_chat(self) -> bool:
        return "messages" in self.body

    @property
    def items(self) -> list[str]:
        """The inputs of an embeddings request."""
        given = self.body["input"]
        return [given] if isinstance(given, str) else list(given)


@dataclass(slots=True)
class Result:
    """What came of an `Ask`; times are monotonic seconds."""

    ask: Ask
    began: float
    ended: float = 0.0
    came: Came = Came.LEFT
    status: int = 0
    x_cache: str = ""
    cache_status: str = ""
    stamps: tuple[Stamp, ...] = ()
    note: str = ""

    @property
    def collapsed(self) -> bool:
        return "; collapsed" in self.cache_status


class SoakClient:
    """Sends to the proxies by their names; one pool of connections for each."""

    def __init__(self) -> None:
        self._urls: Mapping[str, str] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        self.under_way = 0

    async def open(self, urls: Mapping[str, str]) -> None:
        """Get ready to send to these."""
        self._urls = urls
        for name in urls:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_SECONDS)
            self._sessions[name] = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=LONGEST_SECONDS)
            )

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()

    async def send(self, ask: Ask) -> Result:
        """Send, read to the end, and check; never raises for what a server does."""
        result = Result(ask, began=time.monotonic())
        self.under_way += 1
        try:
            async with asyncio.timeout(ask.leaves_after):
                await self._exchange(result)
        except TimeoutError:
            result.came = Came.LEFT
        finally:
            self.under_way -= 1
            result.ended = time.monotonic()
        return result

    async def ask(
        self,
        method: str,
        proxy: str,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> tuple[int, bytes]:
        """Status and body of any other request; an empty body is none. Raises what aiohttp does."""
        url = self._urls[proxy] + path
        content = {"content-type": "application/json", **headers}
        async with self._sessions[proxy].request(
            method, url, data=orjson.dumps(body) if body else None, headers=content
        ) as response:
            return response.status, await response.read()

    async def get(self, proxy: str, path: str) -> str:
        """The body of a GET. Raises what aiohttp does."""
        async with self._sessions[proxy].get(self._urls[proxy] + path) as response:
            return await response.text()

    async def _exchange(self, result: Result) -> None:
        ask = result.ask
        path = CHAT_PATH if ask.is_chat else EMBEDDINGS_PATH
        headers = {"content-type": "application/json", **ask.headers}
        try:
            response = await self._sessions[ask.proxy].post(
                self._urls[ask.proxy] + path, data=orjson.dumps(ask.body), headers=headers
            )
        except TimeoutError:
            _note(result, Came.HUNG, "no headers")
            return
        except _BROKEN as error:
            _note(result, Came.NO_ANSWER, f"{type(error).__name__}: {error}")
            return
        async with response:
            result.status = response.status
            result.x_cache = response.headers.get("x-cache", "")
            result.cache_status = response.headers.get("cache-status", "")
            content = b""
            try:
                async for chunk in response.content.iter_any():
                    content += chunk
            except TimeoutError:
                _note(result, Came.HUNG, f"after {len(content)} bytes")
            except _BROKEN as error:
                _note(result, Came.BROKEN, f"{type(error).__name__} after {len(content)} bytes")
            else:
                _judge(result, content, response.content_type)


def _note(result: Result, came: Came, note: str) -> None:
    result.came, result.note = came, note


def _judge(result: Result, content: bytes, content_type: str) -> None:
    """What an answer that came to its end is."""
    ask = result.ask
    if result.status != 200:
        _note(result, Came.STATUS, content[:200].decode(errors="replace"))
        return
    try:
        if not ask.is_chat:
            result.stamps = tuple(check_embeddings(ask.body, orjson.loads(content)))
        elif ask.body.get("stream"):
            said = read_stream(content, content_type)
            wanted = bool((ask.body.get("stream_options") or {}).get("include_usage"))
            result.stamps = (check_chat(ask.body, said, usage_wanted=wanted),)
        else:
            said = _read_completion(content, content_type)
            result.stamps = (check_chat(ask.body, said, usage_wanted=True),)
        result.came = Came.WHOLE
    except Shortened as short:
        _note(result, Came.SHORTENED, str(short))
    except BrokenOff as broken:
        _note(result, Came.BROKEN, str(broken))
    except Wrong as wrong:
        _note(result, Came.WRONG, str(wrong))
    except (KeyError, TypeError, IndexError, ValueError) as shape:
        _note(result, Came.WRONG, f"{type(shape).__name__} {shape}: {content[:200]!r}")


class Shortened(Exception):
    """A stream that ends in good order, without its last event."""


class BrokenOff(Exception):
    """A stream that says itself that it broke off."""


def read_stream(content: bytes, content_type: str) -> Said:
    """A whole stream, put together. Raises Shortened, BrokenOff, and Wrong for what is none."""
    if content_type != "text/event-stream":
        raise Wrong(f"{content_type} for a stream")
    events = [event.removeprefix("data: ") for event in content.decode().split("\n\n")]
    if "[DONE]" not in events:
        if any(event.startswith('{"error"') for event in events):
            raise BrokenOff(f"an error event: {events[-2:]}")
        raise Shortened(f"{len(events)} events, no [DONE]")
    if events[-2:] != ["[DONE]", ""]:
        raise Wrong(f"{events[-2:]} at the end")
    text, finish, usage = "", None, None
    for event in events[:-2]:
        chunk = orjson.loads(event)
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice["finish_reason"] or finish
    return Said(text, finish, usage)


def _read_completion(content: bytes, content_type: str) -> Said:
    if content_type != "application/json":
        raise Wrong(f"{content_type} for a completion")
    answer = orjson.loads(content)
    (choice,) = answer["choices"]
    return Said(choice["message"]["content"], choice["finish_reason"], answer["usage"])
