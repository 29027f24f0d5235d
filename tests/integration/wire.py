"""HTTP over a bare socket: what arrives when, and how a connection ends."""

import socket
from collections.abc import Iterable
from typing import Self
from urllib.parse import urlsplit

import orjson

from tests.integration.contract import Pairs


class Wire:
    """One connection. Times out after `timeout` seconds without a byte."""

    def __init__(
        self, url: str, timeout: float = 10.0, *, receive_buffer: int | None = None
    ) -> None:
        parts = urlsplit(url)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self._socket.connect((parts.hostname, parts.port or 80))
        except BaseException:
            self._socket.close()
            raise
        self._host = parts.netloc
        self.received = b""
        self.ended = self.was_reset = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, raw: bytes, /) -> None:
        """Bytes as they are."""
        self._socket.sendall(raw)

    def pace(self, seconds: float) -> None:
        """From now on, so long does one read wait."""
        self._socket.settimeout(seconds)

    def send_if_open(self, raw: bytes, /) -> None:
        """Bytes as they are; that nobody takes them any more is no error."""
        try:
            self._socket.sendall(raw)
        except ConnectionError:
            self.ended = True

    def look(self) -> None:
        """Read what comes within one read's time, if anything does."""
        try:
            self._more()
        except TimeoutError:
            return

    def request(
        self,
        method: str,
        target: str,
        body: object = None,
        headers: Pairs = (),
    ) -> None:
        """A whole request; `body` is bytes, or a value to be sent as JSON."""
        raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        lines = [f"{method} {target} HTTP/1.1", f"host: {self._host}"]
        given = headers.items() if hasattr(headers, "items") else headers
        lines += [f"{name}: {value}" for name, value in given]
        if raw:
            lines += [f"content-length: {len(raw)}", "content-type: application/json"]
        self.send("\r\n".join([*lines, "", ""]).encode("latin-1") + raw)

    def read_until(self, *marks: bytes) -> bytes:
        """All received so far, as soon as each mark is in it, or the connection has ended."""
        while not all(mark in self.received for mark in marks) and self._more():
            pass
        return self.received

    def read_all(self) -> bytes:
        """All that comes until the other side closes or resets."""
        while self._more():
            pass
        return self.received

    def read_body(self) -> bytes:
        """The body of an answer that says its length."""
        self.read_until(b"\r\n\r\n")
        length = int(self.head["content-length"][0])
        while len(self.rest) < length and self._more():
            pass
        return self.rest

    @property
    def status(self) -> int:
        return int(self.received.split(b" ", 2)[1])

    @property
    def head(self) -> dict[str, list[str]]:
        """The response's headers, names in lower case."""
        found: dict[str, list[str]] = {}
        for line in self.received.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            found.setdefault(name.lower(), []).append(value.strip())
        return found

    @property
    def rest(self) -> bytes:
        """What was received after the head, still in its chunks."""
        return self.received.partition(b"\r\n\r\n")[2]

    def _more(self) -> bool:
        try:
            self.ended = not self._receive()
        except ConnectionError:
            self.ended = self.was_reset = True
        return not self.ended

    def _receive(self) -> bool:
        """One read more; False when the other side has closed in order."""
        read = self._socket.recv(65_536)
        self.received += read
        return bool(read)


def unchunked(rest: bytes) -> tuple[bytes, bool]:
    """The bytes in the chunks, and whether the last chunk came: a body without it is cut off."""
    body = b""
    while True:
        size, found, after = rest.partition(b"\r\n")
        if not found:
            return body, False
        length = int(size, 16)
        if length == 0:
            return body, after == b"\r\n"
        if len(after) < length + 2:
            return body + after[:length], False
        body += after[:length]
        rest = after[length + 2 :]


def chunked(pieces: Iterable[bytes]) -> bytes:
    """A body in the chunked coding."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
