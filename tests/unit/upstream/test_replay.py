"""Answers of which a part was read before anybody was sent any."""

import pytest

from proxy.upstream.replay import read_ahead
from tests.unit.upstream.scripted import Answer

BODY = b"0123456789" * 10_000

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("limit", [1, 16_384, len(BODY), len(BODY) + 1])
async def test_B60_every_byte_comes_in_order_and_once(limit: int) -> None:
    read = await read_ahead(Answer(body=BODY), limit)
    assert b"".join([chunk async for chunk in read.aiter_raw()]) == BODY


async def test_B56_what_was_read_ahead_is_let_go_of_once_it_was_passed_on() -> None:
    read = await read_ahead(Answer(body=BODY), 16_384)
    chunks = read.aiter_raw()
    await anext(chunks)
    await anext(chunks)
    assert read.head == b""
