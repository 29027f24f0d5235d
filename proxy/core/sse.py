"""Server-sent events, read incrementally from bytes: all parsing state of a stream is here.

Source: the WHATWG HTML standard, "Server-sent events", without the fields that only matter to a
browser that reconnects (`id`, `retry`).
"""

import re
from collections.abc import Callable
from typing import NamedTuple

DEFAULT_MAX_EVENT_BYTES = 8 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"
# `\r(?!\n)` keeps the search from taking one CRLF for two line ends.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLarge(ValueError):
    """One event is longer than the parser was told to hold; `unread` was handed out in no event."""

    def __init__(self, unread: bytes) -> None:
        super().__init__("an event of the stream is too long")
        self.unread = unread


class SseEvent(NamedTuple):
    """One block of the stream, up to and including its blank line.

    `data` is its data lines joined by `\\n`, `event` its event name. A block of comments has
    neither. `raw` is every byte of the block, so that the `raw` of all events tile the stream.
    """

    data: bytes
    event: bytes
    raw: bytes


class SseParser:
    """Takes the bytes of a stream in any pieces and gives back the events that they finish.

    Line ends are LF, CRLF or CR. A `\\r` that is the last byte read finishes an event at once,
    unless the event has used CRLF: then its `\\n` is waited for.
    """

    __slots__ = ("_held", "_held_bytes", "_max_event_bytes", "_started", "_tail")

    def __init__(self, *, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._held: list[bytes] = []  # joined only when a blank line may be there
        self._held_bytes = 0
        self._tail = b""  # the last byte held
        self._started = False

    @property
    def at_boundary(self) -> bool:
        """True if no unfinished event is pending; stray line ends between events are none."""
        return not self._held or not self.pending.strip(b"\r\n")

    @property
    def pending(self) -> bytes:
        """The bytes that belong to no finished event yet."""
        return b"".join(self._held)

    def feed(self, raw: bytes) -> list[SseEvent]:
        """The events that `raw` finishes. Raises `EventTooLarge`, and is of no use after that."""
        if not raw:
            return []
        if self._started and not self._held and (blank := _one_data_line(raw)):
            if len(raw) > self._max_event_bytes:
                raise EventTooLarge(raw)
            return [SseEvent(raw[6:-blank], b"", raw)]
        if self._may_finish(raw):
            return self._split(raw)
        self._hold(raw)
        if self._held_bytes > self._max_event_bytes:
            raise EventTooLarge(self.pending)
        return []

    def _may_finish(self, raw: bytes) -> bool:
        if b"\n\n" in raw or b"\r" in raw:
            return True
        return self._tail in (b"\n", b"\r") and raw.startswith(b"\n")

    def _hold(self, raw: bytes) -> None:
        self._held.append(raw)
        self._held_bytes += len(raw)
        self._tail = raw[-1:]

    def _split(self, raw: bytes) -> list[SseEvent]:
        if self._held:
            raw = b"".join((*self._held, raw))
            self._held, self._held_bytes, self._tail = [], 0, b""
        if b"\r" not in raw:
            events, rest = self._split_on(raw, b"\n\n")
        elif raw.count(b"\r\n") == raw.count(b"\r") == raw.count(b"\n"):
            events, rest = self._split_on(raw, b"\r\n\r\n")
        else:
            events, rest = self._split_any(raw)
        if max(len(rest), *(len(event.raw) for event in events), 0) > self._max_event_bytes:
            raise EventTooLarge(raw)
        if rest:
            self._hold(rest)
        return events

    def _split_on(self, raw: bytes, blank_line: bytes) -> tuple[list[SseEvent], bytes]:
        *blocks, rest = raw.split(blank_line)
        return [self._event(block + blank_line, block) for block in blocks], rest

    def _split_any(self, raw: bytes) -> tuple[list[SseEvent], bytes]:
        events = []
        start = 0
        for match in _BLANK_LINE.finditer(raw):
            end = match.end()
            if end == len(raw) and raw.endswith(b"\r") and raw.find(b"\r\n", start) >= 0:
                break
            events.append(self._event(raw[start:end], raw[start : match.start()]))
            start = end
        return events, raw[start:]

    def _event(self, raw: bytes, block: bytes) -> SseEvent:
        if not self._started:
            self._started = True
            block = block.removeprefix(_BOM)
        if block.startswith(b"data: ") and b"\n" not in block and b"\r" not in block:
            return SseEvent(block[6:], b"", raw)
        data: list[bytes] = []
        event = b""
        for line in _LINE_END.split(block):
            name, _, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif name == b"event":
                event = value.removeprefix(b" ")
        return SseEvent(b"\n".join(data), event, raw)


class WholeEvents:
    """Passes a stream byte for byte, but only up to the end of an event.

    Events whose data `drops` picks are left out. The end of a stream that breaks off inside an
    event comes by `flush`.
    """

    def __init__(self, *, drops: Callable[[bytes], bool] | None = None) -> None:
        self._parser: SseParser | None = SseParser()
        self._drops = drops

    def feed(self, raw: bytes) -> bytes:
        """The bytes of the events that `raw` finishes."""
        if self._parser is None:
            return raw
        try:
            events = self._parser.feed(raw)
        except EventTooLarge as error:
            # No more is to be held back: what is to be left out, or gone on with, is not that long.
            self._parser = None
            return error.unread
        if (drops := self._drops) is not None:
            events = [event for event in events if not drops(event.data)]
        return events[0].raw if len(events) == 1 else b"".join([event.raw for event in events])

    def flush(self) -> bytes:
        """What is held of an event that did not end."""
        return b"" if self._parser is None else self._parser.pending


def _one_data_line(raw: bytes) -> int:
    """By far the most common read: one event of one line of data. The length of its blank line."""
    if raw.startswith(b"data: "):
        first = raw.find(b"\n")
        if first == len(raw) - 2 and raw.endswith(b"\n") and b"\r" not in raw:
            return 2
        if first == len(raw) - 3 and raw.endswith(b"\r\n\r\n") and raw.find(b"\r") == first - 1:
            return 4
    return 0
