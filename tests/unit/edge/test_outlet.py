"""A long body goes out in pieces, each when the transport takes it."""

from typing import Any, cast

import pytest

from proxy.edge.outlet import AT_ONCE, Outlet


class Transport:
    def __init__(self) -> None:
        self.pieces: list[memoryview] = []

    def write(self, piece: memoryview) -> None:
        self.pieces.append(piece)


@pytest.mark.parametrize("size", [0, 1, AT_ONCE, AT_ONCE + 1, 3 * AT_ONCE - 1, 3 * AT_ONCE])
def test_B43_a_body_is_written_whole_in_pieces_of_which_none_is_long(size: int) -> None:
    transport = Transport()
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    outlet = Outlet(cast("Any", transport), body)

    while not outlet.done:
        outlet.write()

    assert b"".join(transport.pieces) == body
    assert len(transport.pieces) == -(-size // AT_ONCE)
    assert all(0 < len(piece) <= AT_ONCE for piece in transport.pieces)
    assert all(piece.obj is body for piece in transport.pieces), "nothing was copied"
