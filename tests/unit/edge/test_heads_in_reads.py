"""What counts as a head where requests are cut into reads, and reads hold parts of two."""

from pathlib import Path

import pytest

from proxy.edge.http_protocol import LONGEST_HEAD_BYTES
from tests.guard.served import request, served

pytestmark = pytest.mark.anyio

RAW = request(0)
LONG = request(0, blanks=LONGEST_HEAD_BYTES + 1)


@pytest.mark.parametrize("begun", [0, 3, 60])
async def test_B73_a_body_between_the_ends_of_two_heads_belongs_to_neither(
    begun: int, tmp_path: Path
) -> None:
    async with served(tmp_path) as proxy:
        await proxy.begin()

        proxy.receive(LONG[:begun])
        proxy.receive(LONG[begun:] + RAW[:2])
        proxy.receive(RAW[2:])

        assert await proxy.answers(2) == [b"HIT", b"HIT"]


async def test_B73_a_head_that_does_not_end_is_too_long_at_any_cut(tmp_path: Path) -> None:
    async with served(tmp_path) as proxy:
        await proxy.begin()
        head = RAW.partition(b"\r\n\r\n")[0] + b"\r\nx-long: "

        proxy.receive(head[:3])
        proxy.receive(head[3:] + b"a" * (LONGEST_HEAD_BYTES // 2))
        proxy.receive(b"a" * (LONGEST_HEAD_BYTES // 2))

        assert proxy.is_closed
