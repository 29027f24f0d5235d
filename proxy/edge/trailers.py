"""Trailers on their way to a client: uvicorn writes none over HTTP/1."""

import inspect
from typing import Any, Final, Self

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from proxy.core.trailers import Trailers
from proxy.edge.asgi import Send
from proxy.edge.lines import header_lines

# No content, whatever the method (RFC 9110 section 6.4.1). A 304 may tell the length of what it
# leaves out, but the server under this would wait for as many bytes.
BODILESS: Final = frozenset({204, 304})
_LAST_CHUNK: Final = b"0\r\n\r\n"


class Trailing:
    """Stands before a connection's transport for the end of one answer.

    Where the server writes the last chunk, the trailers are written into it. A server that frames
    its answers in another way goes unnoticed here, and there are none.
    """

    def __init__(self, cycle: RequestResponseCycle, trailers: Trailers) -> None:
        self.header = (b"trailer", b", ".join(trailers.names))
        self._cycle = cycle
        self._trailers = trailers
        self._transport = cycle.transport

    @classmethod
    def behind(cls, send: Send, trailers: Trailers | None, status: int) -> Self | None:
        """None where nothing was announced, or nothing can follow an answer by `send`."""
        if trailers is None or status in BODILESS:
            return None
        cycle = getattr(inspect.unwrap(send), "__self__", None)
        if not isinstance(cycle, RequestResponseCycle):
            return None
        asked = cycle.scope
        follows = asked["http_version"] == "1.1" and asked["method"] != "HEAD"
        return cls(cycle, trailers) if follows else None

    def begin(self) -> None:
        """The answer's end is next."""
        self._cycle.transport = self  # type: ignore[assignment]  # it is all that is used of one
        del self._cycle  # else they hold each other

    def write(self, data: bytes) -> None:
        """What the server writes, with what follows the last chunk."""
        if data == _LAST_CHUNK:
            data = b"0\r\n%b\r\n" % header_lines(self._trailers.came())
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
