"""An answer's head and the first piece of its body in one write; uvicorn makes two of them."""

import asyncio
from typing import Any, Final

_CONTINUE: Final = b"HTTP/1.1 100 "


class OneWrite:
    """Stands before a connection's transport for one answer.

    The head waits for the body's first piece, but no longer than this turn of the event loop: so
    the system is called once, and the client woken once, for an answer that is at hand.
    """

    __slots__ = ("_has_left", "_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""
        self._has_left = False

    def write(self, data: bytes) -> None:
        """What uvicorn writes: first the head, then pieces of the body."""
        if self._has_left or data.startswith(_CONTINUE):
            self._transport.write(data)
        elif self._head:
            self._has_left = True
            self._transport.writelines((self._head, data))
        else:
            self._head = data
            self._loop.call_soon(self._leave)

    def close(self) -> None:
        """Close the connection; what was written before is sent."""
        self._leave()
        self._transport.close()

    def _leave(self) -> None:
        if self._head and not (self._has_left or self._transport.is_closing()):
            self._has_left = True
            self._transport.write(self._head)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
