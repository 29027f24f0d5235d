"""Heads of requests that were read before: what they say, found again by their bytes.

A client says much the same head again and again; but for the length of the body, byte for byte. So
a head is looked up by all of its bytes without the digits of its `content-length`, and what it
means is what it meant when the parser read it and the client was let in under these settings:
credential, host, path and cache control are part of the bytes. Any other byte makes it unknown.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

from proxy.access.base import Identity
from proxy.core.wire import Endpoint, Headers
from proxy.engine.base import Call

_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"
# With one of these, more than the bytes decides what happens, or the connection ends.
_SPECIAL: Final = frozenset({b"connection", b"expect", b"proxy-connection", b"upgrade"})
# The parser takes the second for the first.
_CONNECTION: Final = frozenset({b"connection", b"proxy-connection"})
# What a head costs beside its bytes, which its headers repeat, and each of them beside its own.
_OVERHEAD_BYTES: Final = 2048
_HEADER_BYTES: Final = 128
_MOST_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Head:
    """Who asks for what: all of a request to a cached endpoint but its body."""

    endpoint: Endpoint
    path: str
    query: str
    headers: Headers
    identity: Identity

    def call(self, body: bytes, request_id: str) -> Call:
        """The request with this body."""
        return Call(
            self.endpoint, self.path, self.query, self.headers, body, self.identity, request_id
        )


class Known(NamedTuple):
    """A known head in front of what was received; the request is whole at `end`."""

    head: Head
    body_at: int
    end: int


class KnownHeads:
    """Up to `max_bytes` of heads, the oldest go first; all go with the settings they were under."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._heads: dict[bytes, Head] = {}
        self._bytes = 0

    def clear(self) -> None:
        """Forget all."""
        self._heads.clear()
        self._bytes = 0

    def find(self, received: bytes) -> Known | None:
        """The head that `received` begins with, where it is known."""
        cut = _cut(received)
        if cut is None:
            return None
        skeleton, body_at, length = cut
        head = self._heads.get(skeleton)
        return None if head is None else Known(head, body_at, body_at + length)

    def learn(self, request: bytes, head: Head) -> None:
        """Know the head of a whole request from now on, if it is one that can be known."""
        cut = _cut(request)
        if cut is None or not keeps_connection(head.headers):
            return
        skeleton, body_at, length = cut
        # Only what is sure to be cut where the parser cuts it.
        if body_at + length != len(request) or not _is_spelled(request[:body_at], head.headers):
            return
        size = _size(skeleton, head)
        if skeleton in self._heads or size > self._max_bytes:
            return
        self._heads[skeleton] = head
        self._bytes += size
        while self._bytes > self._max_bytes:
            oldest = next(iter(self._heads))
            self._bytes -= _size(oldest, self._heads.pop(oldest))


def keeps_connection(headers: Headers) -> bool:
    """Whether the same bytes on any other connection get the same answer, and leave it open."""
    return not any(
        name in _SPECIAL and not (name in _CONNECTION and value.lower() == b"keep-alive")
        for name, value in headers
    )


def _cut(received: bytes) -> tuple[bytes, int, int] | None:
    """The head without the digits of its length; where the body begins; and that length."""
    end = received.find(_END)
    if end < 0:
        return None
    head = received[: end + len(_END)]
    name_at = head.lower().find(_LENGTH)
    if name_at < 0:
        return None
    digits_at = name_at + len(_LENGTH)
    line_end = head.find(b"\r\n", digits_at)
    digits = head[digits_at:line_end].lstrip(b" ")
    if not digits.isdigit() or len(digits) > _MOST_DIGITS or digits[:1] == b"0" != digits:
        return None  # the parser may refuse it
    return head[: line_end - len(digits)] + head[line_end:], len(head), int(digits)


def _is_spelled(head: bytes, headers: Headers) -> bool:
    """Whether the lines of `head` are these headers, one by one and in this order."""
    lines = head[: -len(_END)].split(b"\r\n")[1:]
    split = (line.partition(b":") for line in lines)
    return headers == tuple([(name.lower(), value.strip(b" \t")) for name, _, value in split])


def _size(skeleton: bytes, head: Head) -> int:
    return 2 * len(skeleton) + _HEADER_BYTES * len(head.headers) + _OVERHEAD_BYTES
