"""Following on a server that takes leases, but lets nobody read streams."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from proxy.errors import StoreUnavailable
from tests.contract.coalescers import follow, lead, story
from tests.integration.redis_server import redis_server
from tests.unit.coalesce.replicas import Replicas, replicas_over

pytestmark = pytest.mark.anyio


@pytest.fixture
async def frail() -> AsyncIterator[Replicas]:
    with redis_server() as server:
        async with replicas_over(server) as made:
            yield made


@pytest.mark.parametrize("live", [False, True], ids=["end", "live"])
@pytest.mark.parametrize("refused", ["xread", "@blocking"])
async def test_B50_followers_hear_that_reading_is_refused(
    frail: Replicas, refused: str, live: bool
) -> None:
    frail.server.command("ACL", "SETUSER", "default", f"-{refused}")
    one, other = await frail.start(), await frail.start()
    lease = await lead(one)
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable):
            await story(await follow(other), live=live)
    assert not lease.lost
