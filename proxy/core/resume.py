"""Going on with a stream that broke off, where a second answer begins just as the first did.

A follower of a leader that died has handed on some events. The new answer is the same stream to
its clients if its first events say the same, but for what names the one call: then those are left
out, and what follows is handed on under the first one's name.
"""

from typing import Any, Final

import orjson

from proxy.core.splice import set_members
from proxy.core.sse import EventTooLarge, SseEvent, SseParser
from proxy.errors import UpstreamProtocolError

# What differs between two answers that say the same.
_NAMES: Final = ("id", "created", "system_fingerprint", "service_tier", "obfuscation", "usage")
_RENAMED: Final = ("id", "created")


class Resumption:
    """Takes the new stream, and gives what comes after the part that was handed on.

    `begun` are the bytes handed on. Raises `UpstreamProtocolError` where they end inside an event.
    """

    def __init__(self, begun: bytes) -> None:
        parser = SseParser(max_event_bytes=max(len(begun), 1))
        events = parser.feed(begun)
        if not parser.at_boundary:
            raise UpstreamProtocolError(
                "The worker that asked for this answer died in the middle of an event."
            )
        # Comments come when they come: what keeps a connection alive is no part of an answer.
        self._expected = [event for event in events if event.data or event.event]
        self._names = _names(self._expected)
        self._parser = SseParser()
        self._met = 0

    def feed(self, plain: bytes) -> bytes:
        """The bytes that go on after `begun`; `UpstreamProtocolError` where the answers differ."""
        try:
            events = self._parser.feed(plain)
        except EventTooLarge as error:
            raise UpstreamProtocolError("An event of the new answer is too long.") from error
        return b"".join([self._next(event) for event in events])

    def finish(self) -> bytes:
        """What is left when the new stream is at its end.

        `UpstreamProtocolError` where that came before all that was handed on.
        """
        if self._met < len(self._expected):
            raise _differs()
        return self._parser.pending

    def _next(self, event: SseEvent) -> bytes:
        if self._met == len(self._expected):
            return self._renamed(event)
        if event.data or event.event:
            expected = self._expected[self._met]
            self._met += 1
            if (event.event, _said(event.data)) != (expected.event, _said(expected.data)):
                raise _differs()
        return b""

    def _renamed(self, event: SseEvent) -> bytes:
        chunk = _object(event.data)
        if chunk is None or event.data not in event.raw:  # data over several lines stays as it is
            return event.raw
        names = {name: value for name, value in self._names.items() if name in chunk}
        return event.raw.replace(event.data, set_members(event.data, names), 1)


def _differs() -> UpstreamProtocolError:
    return UpstreamProtocolError(
        "The worker that asked for this answer died, and a new answer differs."
    )


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
