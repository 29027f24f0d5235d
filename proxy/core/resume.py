"""Going on with a stream that broke off, where a second answer begins just as the first did.

A follower of a leader that died has handed on some events. The new answer is the same stream to
its clients if its first events say the same, but for what names the one call: then those are left
out, and what follows is handed on under the first one's name.
"""

from typing import Any, Final

import orjson

from proxy.core.sse import SseEvent, SseParser
from proxy.errors import UpstreamProtocolError

# What differs between two answers that say the same.
_NAMES: Final = ("id", "created", "system_fingerprint", "service_tier", "obfuscation", "usage")
_RENAMED: Final = ("id", "created")


class Resumption:
    """Takes the new stream, and gives what comes after the part that was handed on.

    `begun` are the bytes handed on, which may end inside an event.
    """

    def __init__(self, begun: bytes) -> None:
        parser = SseParser(max_event_bytes=max(len(begun), 1))
        self._expected = parser.feed(begun)
        self._cut = parser.pending
        self._names = _names(self._expected)
        self._parser = SseParser()
        self._met = 0

    def feed(self, plain: bytes) -> bytes:
        """The bytes that go on after `begun`; `UpstreamProtocolError` where the answers differ."""
        return b"".join([self._next(event) for event in self._parser.feed(plain)])

    def _next(self, event: SseEvent) -> bytes:
        if self._met < len(self._expected):
            expected = self._expected[self._met]
            self._met += 1
            if (event.event, _said(event.data)) != (expected.event, _said(expected.data)):
                raise UpstreamProtocolError(
                    "The worker that asked for this answer died, and a new answer differs."
                )
            return b""
        raw = self._renamed(event)
        if self._cut:
            cut, self._cut = self._cut, b""
            if not raw.startswith(cut):
                raise UpstreamProtocolError(
                    "The worker that asked for this answer died in the middle of an event."
                )
            return raw[len(cut) :]
        return raw

    def _renamed(self, event: SseEvent) -> bytes:
        chunk = _object(event.data)
        if chunk is None or not self._names:
            return event.raw
        chunk.update({name: value for name, value in self._names.items() if name in chunk})
        name = b"event: " + event.event + b"\n" if event.event else b""
        return name + b"data: " + orjson.dumps(chunk) + b"\n\n"


def _names(events: list[SseEvent]) -> dict[str, Any]:
    for event in events:
        if (chunk := _object(event.data)) is not None:
            return {name: chunk[name] for name in _RENAMED if name in chunk}
    return {}


def _said(data: bytes) -> object:
    chunk = _object(data)
    if chunk is None:
        return data
    return {name: value for name, value in chunk.items() if name not in _NAMES}


def _object(data: bytes) -> dict[str, Any] | None:
    if not data.startswith(b"{"):
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None
