"""What an upstream writes, byte for byte, and what it does to the connection then."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import orjson

from tests.faults.kinds import JSON, SSE, Good
from tests.integration.wire import chunked


class Then(StrEnum):
    """What comes after the last byte."""

    NEXT = "next"  # the connection waits for the next request
    CLOSE = "close"  # it is closed in order
    RESET = "reset"  # it is cut off (TCP RST)
    SILENCE = "silence"  # nothing, until the proxy closes it
    AGAIN = "again"  # the last piece again and again, until the proxy closes it


@dataclass(frozen=True, slots=True)
class Wire:
    """The pieces of one answer, `pace` seconds apart; `body` is what a client may have of it."""

    pieces: tuple[bytes, ...] = ()
    then: Then = Then.NEXT
    body: bytes = b""
    pace: float = 0.0
    is_good: bool = False

    @property
    def status(self) -> int:
        """Of the answer, past interim ones; 0 where there is none."""
        told = self._head[9:12]
        return int(told) if told.isdigit() else 0

    @property
    def headers(self) -> list[tuple[str, str]]:
        """Of the same head, names in lower case."""
        lines = (line.partition(b": ") for line in self._head.split(b"\r\n")[1:])
        return [(name.decode().lower(), value.decode()) for name, _, value in lines]

    @property
    def _head(self) -> bytes:
        parts = b"".join(self.pieces).split(b"\r\n\r\n")
        return next((part for part in parts if not part.startswith(b"HTTP/1.1 1")), b"")

    def __getitem__(self, pieces: slice) -> "Wire":
        """Some of the pieces only."""
        return replace(self, pieces=self.pieces[pieces])

    def ends(self, then: Then) -> "Wire":
        """The same, with another end."""
        return replace(self, then=then)


def head(status: int, content_type: bytes = JSON, *lines: bytes) -> bytes:
    """A status line and headers, with the blank line."""
    typed = [b"Content-Type: " + content_type] if content_type else []
    return b"\r\n".join([b"HTTP/1.1 %d Told" % status, *typed, *lines, b"", b""])


def sized(good: Good, *lines: bytes, length: int | None = None) -> Wire:
    """A good answer with its length, or another one; head and pieces apart."""
    size = len(good.body) if length is None else length
    told = head(200, good.content_type, b"Content-Length: %d" % size, *lines)
    return Wire((told, *good.pieces), body=good.body)


def in_chunks(good: Good) -> Wire:
    """A good answer in chunks; head, chunks and last chunk apart."""
    told = head(200, good.content_type, b"Transfer-Encoding: chunked")
    chunks = [chunked([piece]).removesuffix(b"0\r\n\r\n") for piece in good.pieces]
    return Wire((told, *chunks, b"0\r\n\r\n"), body=good.body)


def plain(good: Good) -> Wire:
    """A good answer as it usually comes."""
    return in_chunks(good) if good.content_type == SSE else sized(good)


def until_close(good: Good) -> Wire:
    """A good answer that ends with its connection; head and pieces apart."""
    told = head(200, good.content_type, b"Connection: close")
    return Wire((told, *good.pieces), Then.CLOSE, good.body)


def answer(status: int, body: bytes, *lines: bytes, content_type: bytes = JSON) -> Wire:
    """A whole answer of any kind."""
    told = head(status, content_type, *lines, b"Content-Length: %d" % len(body))
    return Wire((told + body,), body=body)


def refusal(status: int, code: str | None = None, *lines: bytes) -> Wire:
    """An error as OpenAI words it."""
    error = {"message": f"It is {status}.", "type": "some_error", "param": None, "code": code}
    return answer(status, orjson.dumps({"error": error}), *lines)


def events(*said: bytes) -> Wire:
    """A stream of these events, ended in order."""
    return in_chunks(Good(SSE, tuple(said)))


def joined(pieces: Sequence[bytes]) -> tuple[bytes, ...]:
    """In one write."""
    return (b"".join(pieces),)
