"""What stands before a transport where trailers follow an answer."""

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from proxy.core.trailers import Trailers
from proxy.edge.asgi import Message
from proxy.edge.trailers import Trailing

CAME = b"0\r\nX-Late: 1\r\n\r\n"


class Written:
    """A transport that keeps what is written, and whether it was closed."""

    def __init__(self) -> None:
        self.all: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.all.append(data)

    def close(self) -> None:
        self.closed = True


class Cycle(RequestResponseCycle):
    def __init__(self, transport: Any) -> None:
        self.transport = transport


def test_B60_only_a_last_chunk_as_this_server_writes_it_is_followed_by_trailers() -> None:
    trailers = Trailers([b"x-late"])
    trailers.feed(b"3\r\nabc\r\n" + CAME)
    written = Written()
    cycle = Cycle(written)

    Trailing(cycle, trailers).begin()
    for piece in (b"3\r\nabc\r\n", b"0\r\n\r\n", b"", b"3\r\nabc\r\n0\r\n\r\n"):
        cycle.transport.write(piece)
    cycle.transport.close()

    assert written.all == [b"3\r\nabc\r\n", CAME.lower(), b"", b"3\r\nabc\r\n0\r\n\r\n"]
    assert written.closed


def test_B60_behind_a_server_that_is_not_known_there_are_none() -> None:
    async def send(message: Message) -> None:
        """As some other server's."""

    assert Trailing.behind(send, Trailers([b"x-late"]), 200) is None
