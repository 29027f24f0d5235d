"""A copy at hand serves while the store that all share is out of reach."""

from collections.abc import Sequence

import pytest

from proxy.core.rules import Rule
from proxy.errors import StoreUnavailable, UpstreamUnreachable
from tests.unit.engine.freshness import SIE, SWR, Ageing
from tests.unit.engine.kit import COMPLETION, FaultyStore, going, told
from tests.unit.engine.upstreams import body_of, turns

pytestmark = pytest.mark.anyio


class CopiesAlone(FaultyStore):
    """What it holds are copies: the store they came from is down."""

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        raise StoreUnavailable("out of reach")


async def grown_old(rule: Rule) -> Ageing:
    here = Ageing(rule, CopiesAlone())
    asked = going(here.engine.ask())
    await turns()
    here.answer(COMPLETION)
    await body_of(await asked)
    await here.engine.settled()
    here.engine.clock.advance(rule.ttl_seconds + 1)
    return here


async def test_B50_B15_a_stale_copy_serves_where_store_and_upstream_are_down() -> None:
    here = await grown_old(SIE)

    asked = going(here.engine.ask())
    await turns()
    here.upstream.answer(1, UpstreamUnreachable("refused"))
    answer = await asked

    assert (answer.status, told(answer, b"x-cache")) == (200, "STALE")
    assert await body_of(answer) == COMPLETION
    await here.engine.stop()


async def test_B50_B15_a_stale_copy_serves_at_once_where_the_store_is_down() -> None:
    here = await grown_old(SWR)

    answer = await here.engine.ask()

    assert told(answer, b"x-cache") == "STALE"
    await here.engine.stop()


async def test_B50_a_batch_keeps_its_stale_copies_where_the_store_is_down() -> None:
    here = await grown_old(SIE)
    (key,) = here.engine.store.values

    (single, (several,)) = (
        await here.engine.entries.get(key),
        await here.engine.entries.get_batch([key]),
    )

    assert single == several
    assert not isinstance(several, str)
    await here.engine.stop()
