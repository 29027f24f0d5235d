"""Answers to HTTP/1.0, which knows no chunks (RFC 9112 section 6.1), though uvicorn writes them."""

import asyncio
import socket
import struct
from typing import Any, Final

# With the line before it: a header of another name may end likewise.
_CHUNKED: Final = b"\r\ntransfer-encoding: chunked\r\n"


class Unchunked:
    """Stands before a connection's transport for one answer; its body ends with the connection.

    A body that breaks off is reset: an end in order would make a whole one of it.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = False
        self._awaits_end = False

    def write(self, data: bytes) -> None:
        """What the server writes: the head first, then whole chunks where that announces them."""
        if not self._begun:
            self._begun = True
            head, said, rest = data.partition(_CHUNKED)
            data, self._awaits_end = (head + b"\r\n" + rest if said else head), bool(said)
        elif self._awaits_end:
            data = self._content(data)
        self._transport.write(data)

    def _content(self, chunks: bytes) -> bytes:
        content = []
        while chunks:
            size, _, rest = chunks.partition(b"\r\n")
            length = int(size, 16)
            self._awaits_end = length > 0
            content.append(rest[:length])
            chunks = rest[length + 2 :]
        return b"".join(content)

    def close(self) -> None:
        """The answer has ended, or is not gone on with."""
        if self._awaits_end and not self._transport.is_closing():
            # What is closed without lingering is reset.
            connection = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
