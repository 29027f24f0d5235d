"""What clients ask for, and what a good answer to it is."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

import orjson

JSON = b"application/json"
SSE = b"text/event-stream"


class Kind(StrEnum):
    """One row of requests that the proxy treats alike."""

    JSON = "json"
    STREAM = "stream"
    EMBEDDINGS = "embeddings"  # a batch of two inputs
    WORK = "work"  # passes through: a POST of which nobody knows whether it can be done twice
    READ = "read"  # passes through: a GET, which can be repeated

    @property
    def is_cached(self) -> bool:
        """Whether it goes through the cache."""
        return self not in {Kind.WORK, Kind.READ}

    @property
    def is_held(self) -> bool:
        """Whether the proxy has read an answer whole before its client gets any of it."""
        return self in {Kind.JSON, Kind.EMBEDDINGS}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, whose body names the model."""

    method: str
    path: str
    body: bytes


def request_of(kind: Kind, model: str) -> Asked:
    """What the client of a cell sends."""
    chat: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "Hello."}]}
    match kind:
        case Kind.JSON:
            return Asked("POST", "/chat/completions", orjson.dumps(chat))
        case Kind.STREAM:
            return Asked("POST", "/chat/completions", orjson.dumps({**chat, "stream": True}))
        case Kind.EMBEDDINGS:
            body = {"model": model, "input": ["one", "two"], "encoding_format": "float"}
            return Asked("POST", "/embeddings", orjson.dumps(body))
        case Kind.WORK:
            return Asked("POST", "/responses", orjson.dumps({"model": model, "input": "Hello."}))
        case Kind.READ:
            return Asked("GET", "/files/file-1/content", b"")
        case _:
            assert_never(kind)


@dataclass(frozen=True, slots=True)
class Good:
    """A good answer; `pieces` together are its body, each of a stream is one event."""

    content_type: bytes
    pieces: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def good(kind: Kind, name: str) -> Good:
    """The good answer that `name` tells apart from all others."""
    match kind:
        case Kind.JSON:
            message = {"role": "assistant", "content": f"Good day, says {name}."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            return _json({"id": name, "object": "chat.completion", "choices": [choice]})
        case Kind.STREAM:
            deltas = [({"role": "assistant"}, None), ({"content": name}, None), ({}, "stop")]
            events = [_event(name, delta, reason) for delta, reason in deltas]
            return Good(SSE, (*events, b"data: [DONE]\n\n"))
        case Kind.EMBEDDINGS:
            vectors = [
                {"object": "embedding", "index": index, "embedding": [0.5, -0.25]}
                for index in range(2)
            ]
            usage = {"prompt_tokens": 2, "total_tokens": 2}
            return _json({"object": "list", "data": vectors, "model": name, "usage": usage})
        case Kind.WORK | Kind.READ:
            return _json({"id": name, "object": "something", "text": "As it is."})
        case _:
            assert_never(kind)


def _json(value: dict[str, Any]) -> Good:
    body = orjson.dumps(value)
    half = len(body) // 2
    return Good(JSON, (body[:half], body[half:]))


def _event(name: str, delta: dict[str, str], reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {"id": name, "object": "chat.completion.chunk", "choices": [choice]}
    return b"data: %s\n\n" % orjson.dumps(chunk)
