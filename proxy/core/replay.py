"""From a stored entry to the answer that this request asked for: its form, encoding and ids."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, assert_never

import orjson

from proxy.core.chunks import NotACompletion, chunks_from_completion
from proxy.core.embeddings import ENCODINGS, FLOAT, NotAVector, encoding_of, reencoded
from proxy.core.entry import Entry, Form
from proxy.core.recording import DONE, is_usage_chunk
from proxy.core.splice import members, set_members
from proxy.core.sse import SseEvent, SseParser
from proxy.core.transcript import NotAChunk, NotAssemblable, Transcript
from proxy.core.values import value
from proxy.core.wire import Endpoint, JsonValue, header

JSON_TYPE = b"application/json"
SSE_TYPE = b"text/event-stream; charset=utf-8"

_STRANGE = ""


@value(frozen=True, slots=True)
class Wanted:
    """The form that a request asks for; `encoding` is that of vectors, None for chat."""

    stream: bool
    include_usage: bool
    encoding: str | None

    @property
    def is_deliverable(self) -> bool:
        """False for an encoding of vectors that no entry can be converted to or from."""
        return self.encoding is None or self.encoding in ENCODINGS


AS_STORED: Final = Wanted(stream=False, include_usage=False, encoding=None)


@dataclass(frozen=True, slots=True)
class FreshIds:
    """What `id` and `created` (seconds since the epoch) become where a rule wants new ones."""

    id: str
    created: int


@value(frozen=True, slots=True)
class Rendered:
    """The answer's content type and body; `content_encoding` None is none."""

    content_type: bytes
    body: bytes
    content_encoding: bytes | None = None


def wanted_from(endpoint: Endpoint, fields: Mapping[str, JsonValue]) -> Wanted:
    """The form that the body's members ask for."""
    match endpoint:
        case Endpoint.CHAT:
            options = fields.get("stream_options")
            asked = isinstance(options, dict) and options.get("include_usage") is True
            stream = fields.get("stream") is True
            return Wanted(stream=stream, include_usage=stream and asked, encoding=None)
        case Endpoint.EMBEDDINGS:
            encoding = fields.get("encoding_format")
            # What is neither absent nor a text, an upstream may read in a way of its own.
            named = encoding if isinstance(encoding, str) else _STRANGE
            wanted = FLOAT if encoding is None else named
            return Wanted(stream=False, include_usage=False, encoding=wanted)
        case Endpoint.RESOURCE:
            return AS_STORED
        case _:
            assert_never(endpoint)


def render(
    entry: Entry, endpoint: Endpoint, wanted: Wanted, *, fresh: FreshIds | None = None
) -> Rendered | None:
    """The entry in the wanted form; None where it can't be told so: that is a miss."""
    try:
        match endpoint:
            case Endpoint.EMBEDDINGS:
                return _embeddings(entry, wanted.encoding or FLOAT)
            case Endpoint.CHAT:
                return _stream(entry, wanted, fresh) if wanted.stream else _whole(entry, fresh)
            case Endpoint.RESOURCE:
                return Rendered(_stored_type(entry, JSON_TYPE), entry.payload)
            case _:
                assert_never(endpoint)
    except (NotAVector, NotACompletion, NotAChunk, NotAssemblable, orjson.JSONEncodeError):
        return None


def _embeddings(entry: Entry, encoding: str) -> Rendered | None:
    stored = encoding_of(entry.payload)
    if stored is None or encoding not in ENCODINGS:
        return None
    body = entry.payload if stored == encoding else reencoded(entry.payload, encoding)
    return Rendered(_stored_type(entry, JSON_TYPE), body)


def _whole(entry: Entry, fresh: FreshIds | None) -> Rendered:
    match entry.form:
        case Form.JSON:
            body, content_type = entry.payload, _stored_type(entry, JSON_TYPE)
        case Form.SSE:
            body, content_type = orjson.dumps(_assembled(entry.payload)), JSON_TYPE
        case _:
            assert_never(entry.form)
    return Rendered(content_type, body if fresh is None else _renamed(body, fresh))


def _stream(entry: Entry, wanted: Wanted, fresh: FreshIds | None) -> Rendered | None:
    if wanted.include_usage and entry.usage is None:
        return None
    match entry.form:
        case Form.SSE:
            body = entry.payload
            if fresh is not None or (entry.usage is not None and not wanted.include_usage):
                body = _replayed(entry.payload, fresh, with_usage=wanted.include_usage)
            return Rendered(_stored_type(entry, SSE_TYPE), body)
        case Form.JSON:
            body = entry.payload if fresh is None else _renamed(entry.payload, fresh)
            return Rendered(SSE_TYPE, _told(body, include_usage=wanted.include_usage))
        case _:
            assert_never(entry.form)


def _stored_type(entry: Entry, default: bytes) -> bytes:
    return header(entry.headers, b"content-type") or default


def _assembled(payload: bytes) -> dict[str, Any]:
    transcript = Transcript()
    for event in _events(payload):
        if event.data and event.data != DONE:
            transcript.add(event.data)
    return transcript.completion()


def _replayed(payload: bytes, fresh: FreshIds | None, *, with_usage: bool) -> bytes:
    pieces = []
    for event in _events(payload):
        if not with_usage and is_usage_chunk(event.data):
            continue
        if fresh is None or not event.data.startswith(b"{"):
            pieces.append(event.raw)
        else:
            pieces.append(_event(_renamed(event.data, fresh), event.event))
    return b"".join(pieces)


def _told(payload: bytes, *, include_usage: bool) -> bytes:
    completion = _object(payload)
    chunks = chunks_from_completion(completion, include_usage=include_usage)
    return b"".join(_event(orjson.dumps(chunk)) for chunk in chunks) + _event(DONE)


def _renamed(raw: bytes, fresh: FreshIds) -> bytes:
    """The object with `id` and `created` replaced, where it has them."""
    values: dict[str, JsonValue] = {"id": fresh.id, "created": fresh.created}
    present = {member.name for member in members(raw)}
    return set_members(raw, {name: values[name] for name in values if name in present})


def _event(data: bytes, name: bytes = b"") -> bytes:
    lines = b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
    return (b"event: " + name + b"\n" if name else b"") + lines + b"\n"


def _events(payload: bytes) -> list[SseEvent]:
    return SseParser(max_event_bytes=len(payload)).feed(payload)


def _object(payload: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise NotACompletion(str(error)) from error
    if not isinstance(value, dict):
        raise NotACompletion("a completion is a JSON object")
    return value
