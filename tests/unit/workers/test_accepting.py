"""Which worker takes a connection."""

import asyncio
import socket
from collections.abc import Iterator

import pytest

from proxy.tasks import TaskGroup
from proxy.workers.accepting import Acceptor, Crowd
from tests.waiting import until

pytestmark = pytest.mark.anyio


def test_a_connection_is_for_whoever_has_the_fewest() -> None:
    crowd = Crowd(3)
    for number, connections in ((1, 4), (2, 3), (3, 3)):
        crowd.put(number, connections)

    assert [crowd.has_fewest(number) for number in (1, 2, 3)] == [False, True, True]


def test_nobody_waits_for_a_worker_that_accepts_none() -> None:
    crowd = Crowd(3)
    crowd.put(1, 100)
    assert crowd.has_fewest(1), "the others have not begun"

    crowd.put(2, 5)
    assert not crowd.has_fewest(1)
    crowd.away(2)
    assert crowd.has_fewest(1)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


class Accepted:
    """An acceptor of a worker that may or may not accept."""

    def __init__(self, listener: socket.socket, *, may: bool = True) -> None:
        self.address = listener.getsockname()
        self.may = may
        self.asked = 0
        self.made: list[asyncio.Protocol] = []
        self.tasks = TaskGroup()
        self.acceptor = Acceptor(listener, self._make, self._may_accept, self.tasks)

    def _make(self) -> asyncio.Protocol:
        self.made.append(asyncio.Protocol())
        return self.made[-1]

    def _may_accept(self) -> bool:
        self.asked += 1
        return self.may


async def test_each_connection_is_asked_for_by_itself(listener: socket.socket) -> None:
    accepted = Accepted(listener)
    clients = [socket.create_connection(accepted.address) for _ in range(5)]
    await until(lambda: len(accepted.made) == 5)

    assert accepted.asked >= 5
    accepted.acceptor.close()
    for client in clients:
        client.close()
    await accepted.tasks.cancel()


async def test_one_that_is_left_to_others_is_taken_in_the_end(listener: socket.socket) -> None:
    accepted = Accepted(listener, may=False)
    clients = [socket.create_connection(accepted.address) for _ in range(2)]
    await until(lambda: len(accepted.made) == 2)

    assert accepted.asked >= 2
    accepted.acceptor.close()
    for client in clients:
        client.close()
    await accepted.tasks.cancel()


@pytest.mark.parametrize("may", [True, False])
async def test_nobody_gets_in_once_it_is_closed(listener: socket.socket, may: bool) -> None:
    accepted = Accepted(listener, may=may)
    if not may:  # it pauses
        client = socket.create_connection(accepted.address)
        await until(lambda: accepted.asked > 0)
        client.close()
    accepted.acceptor.close()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(accepted.address)
    await asyncio.sleep(0)
    await accepted.tasks.cancel()
