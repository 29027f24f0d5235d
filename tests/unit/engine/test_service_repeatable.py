"""Which hits may be given again without asking the store."""

import pytest

from tests.unit.engine.kit import Engine, FaultyStore

pytestmark = pytest.mark.anyio


async def test_B57_an_entry_on_its_way_is_not_repeated_without_asking() -> None:
    engine = Engine(FaultyStore(instant=True))
    engine.store.stalled.add("put")
    await engine.ask()

    underway = await engine.ask()
    engine.store.gate.set()
    await engine.settled()
    stored = await engine.ask()

    assert underway.repeatable is None
    assert stored.repeatable is not None
    await engine.stop()


async def test_B57_what_no_tier_has_at_hand_is_never_answered_at_once() -> None:
    engine = Engine(FaultyStore())
    engine.store.stalled.add("put")
    await engine.ask()
    underway = await engine.ask()
    engine.store.gate.set()
    await engine.settled()
    engine.store.values.clear()

    assert underway.repeatable is None
    assert dict((await engine.ask()).headers)[b"x-cache"] == b"MISS"
    await engine.stop()
