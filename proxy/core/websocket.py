"""WebSockets on their way through: which requests ask for one, and where frames end. Pure.

The frames themselves are not this proxy's: client and upstream speak to each other (RFC 6455).
"""

from enum import StrEnum
from typing import Final

from proxy.core.wire import Headers

# Browsers can't set headers: OpenAI's API takes a key among the subprotocols they offer.
KEY_PREFIX: Final = b"openai-insecure-api-key."

GOING_AWAY: Final = 1001
NO_CODE: Final = 1005  # stands for a close frame that carries none (section 7.1.5)

_PROTOCOLS = b"sec-websocket-protocol"
_CLOSE = 0x8
_LONGEST_CONTROL_PAYLOAD = 125
_MASKED = 0x80
_CODE_BYTES = 2
# How many bytes more the length takes, by what stands in its seven bits.
_LONG_LENGTHS = {126: 2, 127: 8}


class SocketEnd(StrEnum):
    """How a WebSocket came to its end."""

    CLOSED = "closed"  # a close frame went by
    CLIENT_GONE = "client-gone"  # the client's connection ended without one
    UPSTREAM_GONE = "upstream-gone"  # the upstream's did
    IDLE = "idle"  # nothing went by for `server.websocket_idle_seconds`
    SHUTDOWN = "shutdown"  # this proxy stops


def asks_for_websocket(method: str, http_version: str, headers: Headers) -> bool:
    """True for the opening handshake; names in lower case. Upgrades in HTTP/1.0 do not count."""
    if method != "GET" or http_version != "1.1":
        return False
    return b"websocket" in _tokens(headers, b"upgrade") and b"upgrade" in _tokens(
        headers, b"connection"
    )


def offered_key(headers: Headers) -> bytes | None:
    """The credential among the subprotocols that a client offers."""
    for name, value in headers:
        if name == _PROTOCOLS:
            for token in value.split(b","):
                if token.strip().startswith(KEY_PREFIX):
                    return token.strip()[len(KEY_PREFIX) :]
    return None


def without_offered_key(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The same headers, but for a credential among the subprotocols."""
    kept = []
    for name, value in headers:
        if name.lower() == _PROTOCOLS:
            tokens = [token.strip() for token in value.split(b",")]
            shown = [token for token in tokens if not token.startswith(KEY_PREFIX)]
            if shown:
                kept.append((name, b", ".join(shown)))
        else:
            kept.append((name, value))
    return kept


def close_frame(code: int, reason: str) -> bytes:
    """What a server sends to close; `reason` in at most 123 bytes of UTF-8."""
    payload = code.to_bytes(2) + reason.encode()
    assert len(payload) <= _LONGEST_CONTROL_PAYLOAD
    return bytes((_MASKED | _CLOSE, len(payload))) + payload  # that bit says FIN here


class FrameWatch:
    """Follows the frames of one direction, in whatever pieces they come.

    What is no WebSocket is followed somewhere, and harms nobody: nothing is held or changed.
    """

    def __init__(self) -> None:
        self.close_code: int | None = None
        self._head = bytearray()
        self._left = 0
        self._code: bytearray | None = None

    @property
    def at_boundary(self) -> bool:
        """True where a frame of somebody else can go in between."""
        return not self._head

    def feed(self, data: bytes) -> int:
        """Take the next bytes; up to which of them they belong to frames that have ended."""
        position = ended = 0
        while position < len(data):
            if self._left == 0:
                self._head.append(data[position])
                position += 1
                if len(self._head) < _head_size(self._head):
                    continue
                self._begin()
            else:
                taken = data[position : position + self._left]
                if self._code is not None:
                    self._code += taken
                position += len(taken)
                self._left -= len(taken)
            if self._left == 0:
                self._end()
                ended = position
        return ended

    def _begin(self) -> None:
        extra = _LONG_LENGTHS.get(self._head[1] & 0x7F, 0)
        self._left = int.from_bytes(self._head[2 : 2 + extra]) if extra else self._head[1] & 0x7F
        is_close = self._head[0] & 0x0F == _CLOSE and self._left <= _LONGEST_CONTROL_PAYLOAD
        self._code = bytearray() if is_close else None

    def _end(self) -> None:
        if self._code is not None and self.close_code is None:
            mask = self._head[-4:] if self._head[1] & _MASKED else bytes(_CODE_BYTES)
            code = bytes(a ^ b for a, b in zip(self._code[:_CODE_BYTES], mask, strict=False))
            self.close_code = int.from_bytes(code) if len(code) == _CODE_BYTES else NO_CODE
        self._head.clear()
        self._code = None


def _head_size(head: bytearray) -> int:
    """How long the head is, as far as what is there of it tells."""
    if len(head) < 2:  # noqa: PLR2004  # the byte with the length
        return 2
    return 2 + _LONG_LENGTHS.get(head[1] & 0x7F, 0) + (4 if head[1] & _MASKED else 0)


def _tokens(headers: Headers, name: bytes) -> set[bytes]:
    return {
        token.strip().lower()
        for key, value in headers
        if key == name
        for token in value.split(b",")
    }
