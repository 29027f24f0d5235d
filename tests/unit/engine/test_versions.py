"""What repeats an answer without asking for its entry notices when it has to ask again."""

from collections.abc import AsyncIterator

import pytest

from proxy.core.selectors import Selector
from proxy.engine import entries
from tests.unit.engine.kit import Engine

pytestmark = pytest.mark.anyio
NO_CACHE = (b"cache-control", b"no-cache")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    running = Engine()
    yield running
    await running.stop()


async def test_B13_a_renewal_gives_its_key_another_version_and_no_other(engine: Engine) -> None:
    await engine.ask("hi")
    await engine.settled()
    (key,) = engine.store.values
    before = engine.entries.version(key), engine.entries.version("other")

    await engine.ask_with(NO_CACHE)

    assert engine.entries.version(key) != before[0]
    assert engine.entries.version("other") == before[1]


async def test_B54_a_purge_gives_every_key_another_version(engine: Engine) -> None:
    before = engine.entries.version("k")
    await engine.generations.add(Selector(model="m"))
    assert engine.entries.version("k") != before


async def test_B56_versions_are_bounded_and_never_come_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_MOST_VERSIONS", 3)
    seen: dict[str, set[int]] = {key: {engine.entries.version(key)} for key in "abcdef"}
    for turn in range(50):
        key = "abcdef"[turn * 5 % 6]
        engine.entries._replaced(key)
        version = engine.entries.version(key)
        assert version not in seen[key]
        for other in "abcdef":
            seen[other].add(engine.entries.version(other))
        assert len(engine.entries._versions) <= 3
