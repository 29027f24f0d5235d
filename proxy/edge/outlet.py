"""A body that is too long to be written at once, written as fast as the client reads it."""

import asyncio
from typing import Final

# As much is written without asking whether it is taken: the transport's own bound, too.
AT_ONCE: Final = 64 * 1024


class Outlet:
    """Hands a transport so much of a body as it takes; the body is shared, not copied."""

    def __init__(self, transport: asyncio.Transport, body: bytes) -> None:
        self._transport = transport
        self._left = memoryview(body)

    def write(self) -> None:
        """Write a piece; call again as long as the transport takes more and this is not `done`."""
        piece, self._left = self._left[:AT_ONCE], self._left[AT_ONCE:]
        self._transport.write(piece)

    @property
    def done(self) -> bool:
        """Whether all was handed over."""
        return not self._left
