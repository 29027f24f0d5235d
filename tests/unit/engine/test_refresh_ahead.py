"""Popular entries are replaced before their time, so that nobody meets them stale (B15)."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from proxy.engine.base import Repeatable
from tests.unit.engine.freshness import Ageing, ageing, saying
from tests.unit.engine.kit import COMPLETION, RULE, FaultyStore, told
from tests.unit.engine.upstreams import turns

pytestmark = pytest.mark.anyio
AHEAD = replace(RULE, refresh_ahead=1.0)
TOOK_SECONDS = 2.0
TICK_SECONDS = 0.125


@pytest.fixture(autouse=True)
def draws() -> Iterator[None]:
    """The same draws in each run."""
    before = random.getstate()
    random.seed(20)
    yield
    random.setstate(before)


class Load:
    """Requests for one key, `step` seconds apart, at an upstream that takes 2 s for each answer.

    With `hot` a request is answered as the hot path does: unasked, for as long as it may be.
    """

    def __init__(self, here: Ageing, *, step: float, hot: bool = False) -> None:
        self.here = here
        self.told: Counter[str] = Counter()
        self.unasked = 0
        self.called_at: list[float] = []
        self.most_at_once = 0
        self._step = step
        self._hot = hot
        self._repeats_until = 0.0
        self._answered = 0

    async def run(self, seconds: float) -> None:
        clock = self.here.engine.clock
        until = clock.wall() + seconds
        while clock.wall() < until:
            await self._ask()
            await self._pass(self._step)

    async def _ask(self) -> None:
        now = self.here.engine.clock.wall()
        if self._hot and now < self._repeats_until:
            self.unasked += 1
            return
        asked = asyncio.get_running_loop().create_task(self._one())
        await turns(5)
        self._note_calls()
        while not asked.done():  # a miss: nobody asks before it is answered
            await self._pass(TICK_SECONDS)
        repeatable = await asked
        self._repeats_until = repeatable.repeats_until if repeatable is not None else 0.0

    async def _one(self) -> Repeatable | None:
        answer = await self.here.engine.ask()
        self.told[told(answer, b"x-cache")] += 1
        return answer.repeatable

    def _note_calls(self) -> None:
        while len(self.called_at) < self.here.calls:
            self.called_at.append(self.here.engine.clock.monotonic())
        self.most_at_once = max(self.most_at_once, len(self.called_at) - self._answered)

    async def _pass(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK_SECONDS)):
            self.here.pass_time(TICK_SECONDS)
            await self._answer_in_time()

    async def _answer_in_time(self) -> None:
        now = self.here.engine.clock.monotonic()
        while self._answered < len(self.called_at):
            if now < self.called_at[self._answered] + TOOK_SECONDS - 1e-6:
                break
            self.here.answer(COMPLETION, call=self._answered)
            self._answered += 1
            await turns(10)


@pytest.mark.parametrize("hot", [False, True], ids=["asked", "hot"])
async def test_B15_a_popular_key_is_never_a_miss_nor_stale_and_refreshed_once_a_lifetime(
    hot: bool,
) -> None:
    here = Ageing(AHEAD, FaultyStore(instant=True))
    load = Load(here, step=0.125, hot=hot)

    await load.run(1_200.0)

    hits = load.told.pop("HIT")
    assert load.told == {"MISS": 1}, "the first one"
    assert load.most_at_once == 1
    lifetimes = [
        after - before for before, after in zip(load.called_at, load.called_at[1:], strict=False)
    ]
    assert len(lifetimes) >= 20
    # An answer is fresh for 60 s from when it came, 2 s after it was asked for; the next one has to
    # be asked for 2 s before that ends. Draws that reach over 20 s further come once in 20,000 hits.
    assert all(40.0 <= lifetime <= 60.0 for lifetime in lifetimes)
    assert here.engine.witness.unattended == [("refresh", "stored")] * len(lifetimes)
    if hot:
        assert load.unasked > hits > 0, "most are answered unasked, and none too long"
    else:
        assert hits > 9_000
    await here.engine.stop()


async def test_B15_an_unpopular_key_is_not_refreshed() -> None:
    here = Ageing(AHEAD)
    load = Load(here, step=35.0)

    await load.run(2_000.0)

    assert set(load.told) == {"MISS", "HIT"}
    assert load.told["MISS"] == here.calls >= 20
    assert here.engine.witness.unattended == []
    await here.engine.stop()


async def test_B15_without_the_setting_each_lifetime_ends_in_a_miss() -> None:
    here = Ageing(RULE)
    load = Load(here, step=0.5)

    await load.run(300.0)

    assert load.told["MISS"] == here.calls == 5
    await here.engine.stop()


async def test_B15_an_eager_rule_refreshes_earlier() -> None:
    means = []
    for eagerness in (0.5, 1.0, 3.0):
        here = Ageing(replace(AHEAD, refresh_ahead=eagerness))
        load = Load(here, step=0.25)
        await load.run(600.0)
        means.append((load.called_at[-1] - load.called_at[0]) / (len(load.called_at) - 1))
        assert load.told["MISS"] == 1
        await here.engine.stop()

    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 5.0


@pytest.mark.parametrize("said", [b"no-store", b"only-if-cached"])
async def test_B13_who_wants_nothing_fetched_or_stored_refreshes_nothing_ahead(said: bytes) -> None:
    async with ageing(replace(AHEAD, refresh_ahead=1e9)) as here:
        # So eager that every hit would refresh: the entry took no time at all, so give it some.
        await renewed(here)
        for _ in range(20):
            answer = await here.engine.ask_with((b"cache-control", said))
            assert told(answer, b"x-cache") == "HIT"
        await turns()
        assert here.calls == 2

        await here.engine.ask()
        await turns()
        assert here.calls == 3


async def renewed(here: Ageing) -> None:
    """Store a new answer, for which the upstream takes its time."""
    asked = asyncio.get_running_loop().create_task(
        here.engine.ask_with((b"cache-control", b"no-cache"))
    )
    await turns()
    here.pass_time(TOOK_SECONDS)
    here.answer(saying("new"))
    await asked
    await here.engine.settled()
    await turns()


async def test_B15_a_hit_is_repeated_unasked_only_while_it_would_refresh_nothing() -> None:
    async with ageing(AHEAD, FaultyStore(instant=True)) as here:
        await renewed(here)

        early = (await here.engine.ask()).repeatable
        here.pass_time(37.9)
        late = (await here.engine.ask()).repeatable
        here.pass_time(0.1)
        too_late = (await here.engine.ask()).repeatable

        assert early is not None
        assert late is not None
        assert early.repeats_until == late.repeats_until == pytest.approx(early.fresh_until - 22)
        assert early.fresh_until == early.stored_at + 60
        assert too_late is None


async def test_B15_without_refreshes_a_hit_is_repeated_to_its_end() -> None:
    async with ageing(RULE, FaultyStore(instant=True)) as here:
        repeatable = (await here.engine.ask()).repeatable
        assert repeatable is not None
        assert repeatable.repeats_until == repeatable.fresh_until
