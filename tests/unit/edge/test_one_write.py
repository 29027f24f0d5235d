"""A head and the first piece of a body leave together, and a head without one leaves at once."""

import asyncio

import pytest

from proxy.edge.one_write import OneWrite

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Written(asyncio.Transport):
    """A transport that notes each call that would reach the system."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "nothing is written to a closed connection"
        self.calls.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


@pytest.fixture
def transport() -> Written:
    return Written()


@pytest.fixture
async def answer(transport: Written) -> OneWrite:
    return OneWrite(transport, asyncio.get_running_loop())


async def test_head_and_first_piece_are_one_write(answer: OneWrite, transport: Written) -> None:
    for piece in (HEAD, b"one", b"two", b""):
        answer.write(piece)
    await asyncio.sleep(0)
    assert transport.calls == [HEAD + b"one", b"two", b""]


async def test_B20_a_head_does_not_wait_for_a_piece_that_comes_later(
    answer: OneWrite, transport: Written
) -> None:
    answer.write(HEAD)
    assert transport.calls == []
    await asyncio.sleep(0)
    assert transport.calls == [HEAD]
    answer.write(b"one")
    assert transport.calls == [HEAD, b"one"]


async def test_an_answer_without_a_body_leaves_before_its_connection_is_closed(
    answer: OneWrite, transport: Written
) -> None:
    answer.write(HEAD)
    answer.close()
    await asyncio.sleep(0)
    assert (transport.calls, transport.closed) == ([HEAD], True)


async def test_what_tells_the_client_to_go_on_is_no_head(
    answer: OneWrite, transport: Written
) -> None:
    answer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    answer.write(HEAD)
    answer.write(b"one")
    assert transport.calls == [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"one"]


async def test_nothing_is_written_once_the_client_has_gone(
    answer: OneWrite, transport: Written
) -> None:
    answer.write(HEAD)
    transport.close()
    await asyncio.sleep(0)
    assert transport.calls == []


async def test_all_else_is_asked_of_the_transport(answer: OneWrite, transport: Written) -> None:
    assert answer.get_extra_info("peername", "nobody") == "nobody"
    assert not answer.is_closing()
