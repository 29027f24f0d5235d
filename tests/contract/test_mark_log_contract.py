"""What every log of purges does, over all of them: the contract of `proxy.stores.marks.MarkLog`."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.core.marks import EVERYTHING, Marks, uncovered
from proxy.core.selectors import Mark, Selector
from proxy.core.tags import normalized_tag
from proxy.stores.marks import Hearing, MarkLog
from proxy.stores.marks_combined import CombinedMarkLog
from proxy.stores.marks_disk import DiskMarkLog
from proxy.stores.marks_local import LocalMarkLog
from proxy.stores.marks_redis import RedisMarkLog
from tests.fakes import FakeClock
from tests.integration.redis_server import RedisServer, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio

KINDS = ("local", "disk", "redis", "disk+redis")
MOST = 20
HOUR_MS = 3_600_000
A, B = Selector(tag="a"), Selector(tag="b")

Make = Callable[[], Awaitable[MarkLog]]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Medium:
    """What logs of one kind share: made anew by `log`, lost by `lose`."""

    def __init__(self, kind: str, path: Path, server: RedisServer | None) -> None:
        self.kind = kind
        self.clock = FakeClock()
        self._path = path
        self._server = server
        self._local = LocalMarkLog(self.clock, most=MOST)
        self._logs: list[MarkLog] = []
        self._channels: list[RedisChannel] = []
        self.told = asyncio.Event()

    async def log(self) -> MarkLog:
        """One more worker's; of a local log there is but one."""
        if self.kind == "local":
            return self._local
        made = [await self._one(name) for name in self.kind.split("+")]
        log = made[0] if len(made) == 1 else CombinedMarkLog(made[1], made[0])
        await log.open(self.told.set)
        self._logs.append(log)
        return log

    async def _one(self, name: str) -> MarkLog:
        if name == "disk":
            return DiskMarkLog(self._path, clock=self.clock, timeout_seconds=60.0, most=MOST)
        assert self._server is not None
        channel = RedisChannel(RedisConfig(self._server.url), clock=SystemClock())
        await channel.open()
        self._channels.append(channel)
        return RedisMarkLog(
            RedisConfig(self._server.url),
            channel=channel,
            key_prefix="p:",
            clock=SystemClock(),
            timeout_seconds=60.0,
            most=MOST,
        )

    def step_back(self) -> None:
        """The clock that gives the numbers steps back by an hour."""
        self.clock.set_wall(self.clock.wall() - 3600.0)
        if "redis" in self.kind:  # whose clock goes on: let it have been an hour ahead
            assert self._server is not None
            ahead = int(self._server.command("TIME").split(b"\r\n")[2]) * 1000 + HOUR_MS
            self._server.command("ZADD", "p:marks", str(ahead), "number")

    def put(self, text: str, number: int) -> None:
        """What somebody else wrote."""
        if "redis" in self.kind:
            assert self._server is not None
            self._server.command("ZADD", "p:marks", str(number), text, str(number), "number")
            return
        file = sqlite3.connect(self._path, isolation_level=None)
        file.executemany("REPLACE INTO marks VALUES (?, ?)", [(text, number), ("number", number)])
        file.close()

    def lose(self) -> None:
        """All that the logs hold is gone; with two, the shared one's."""
        if "redis" in self.kind:
            assert self._server is not None
            self._server.command("DEL", "p:marks")
            return
        for file in self._path.parent.glob(f"{self._path.name}*"):
            file.unlink()

    async def close(self) -> None:
        for log in self._logs:
            await log.close()
        for channel in self._channels:
            await channel.close()


@pytest.fixture
async def medium(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Medium]:
    server: RedisServer | None = None
    if "redis" in kind:
        server = request.getfixturevalue("server")
        server.command("FLUSHALL")
    made = Medium(kind, tmp_path / "cache.sqlite3", server)
    yield made
    await made.close()


async def add(log: MarkLog, selector: Selector, known: int = 0) -> Mark:
    return await log.add(selector, soft=False, stored_before=None, known=known)


async def whole(log: MarkLog) -> set[Mark]:
    """The first reading."""
    reading = await log.read(0)
    assert reading is not None
    assert reading.held is not None
    assert set(reading.held) <= set(reading.new)
    return set(reading.new)


def covered(marks: Iterable[Mark], by: Sequence[Mark]) -> bool:
    return not uncovered(marks, by)


async def test_an_empty_log_is_read_once(medium: Medium) -> None:
    log = await medium.log()
    assert await whole(log) == set()
    assert await log.read(0) is None


async def test_B54_what_one_adds_others_read(medium: Medium) -> None:
    one, other = await medium.log(), await medium.log()
    if medium.kind != "local":
        assert await whole(other) == set()
    marks = [
        await add(one, A),
        await one.add(A, soft=True, stored_before=None, known=0),
        await one.add(A, soft=False, stored_before=1.5, known=0),
        await one.add(A, soft=True, stored_before=2.5, known=0),
        await add(one, Selector(*"0ermtg")),
    ]
    reading = await other.read(0)
    assert reading is not None
    assert set(reading.new) == set(marks)
    assert await other.read(marks[-1].number) is None


async def test_B54_a_further_reading_brings_the_news_alone(medium: Medium) -> None:
    one, other = await medium.log(), await medium.log()
    await add(one, A)
    await whole(other)
    mark = await add(one, B)
    reading = await other.read(0)
    assert reading is not None
    assert mark in reading.new
    if medium.kind != "local":
        assert list(reading.new) == [mark]
        assert reading.held is None
    assert await other.read(0) is None


async def test_numbers_grow_whoever_adds(medium: Medium) -> None:
    logs = [await medium.log() for _ in range(3)]
    added = [await add(logs[i % 3], Selector(tag=str(i))) for i in range(12)]
    at_once = await asyncio.gather(*(add(log, A) for log in logs for _ in range(4)))
    numbers = [mark.number for mark in added]
    assert numbers == sorted(set(numbers))
    assert len({mark.number for mark in at_once}) == 12
    assert min(mark.number for mark in at_once) > numbers[-1]


async def test_numbers_grow_beyond_what_is_known(medium: Medium) -> None:
    log = await medium.log()
    known = 2_500_000_000_000
    assert (await add(log, A, known)).number == known + 1
    assert (await add(log, A)).number == known + 2


async def test_numbers_grow_over_a_clock_that_steps_back_by_an_hour(medium: Medium) -> None:
    log = await medium.log()
    before = await add(log, A)
    medium.step_back()
    numbers = [(await add(log, A)).number for _ in range(3)]
    numbers.append((await add(await medium.log(), B)).number)
    assert numbers == sorted(set(numbers))
    assert numbers[0] > before.number


async def test_B54_marks_and_numbers_outlive_a_restart(medium: Medium) -> None:
    if medium.kind == "local":
        pytest.skip("its entries are gone too")
    marks = {await add(await medium.log(), A), await add(await medium.log(), B)}
    await medium.close()
    medium.step_back()
    log = await medium.log()
    assert await whole(log) == marks
    assert (await add(log, A)).number > max(mark.number for mark in marks)


async def test_a_log_that_lost_everything_gets_it_back_from_who_knows(medium: Medium) -> None:
    if medium.kind == "local":
        pytest.skip("nobody else knows")
    log = await medium.log()
    marks = [await add(log, A), await add(log, B)]
    await whole(log)
    known = marks[-1].number
    medium.lose()
    medium.step_back()

    async def noticed() -> bool:
        medium.clock.advance(2.0)  # how often a file is looked for
        reading = await log.read(known)
        if reading is None or reading.held is None:
            return False
        assert not covered(marks, reading.held)
        return True

    await until(noticed)
    await log.keep(marks)
    fresh = await medium.log()
    assert await whole(fresh) == set(marks)
    assert (await add(fresh, A)).number > known


async def test_numbers_go_on_above_what_is_known_where_the_log_lost_it(medium: Medium) -> None:
    log, other = await medium.log(), await medium.log()
    known = 2_500_000_000_000
    await log.read(known)
    assert (await add(other, A)).number > known


async def test_B54_a_purger_that_knows_no_more_than_a_lost_log_hides_no_loss(
    medium: Medium,
) -> None:
    """Somebody who has just come adds a mark to a log that has lost others."""
    if medium.kind in {"local", "disk"}:
        pytest.skip("what loses this log loses its entries, or nobody comes")
    log = await medium.log()
    mark = await add(log, A)
    await log.read(mark.number)
    medium.lose()
    newcomer = await medium.log()
    late = await add(newcomer, B)
    reading = await log.read(mark.number)
    assert reading is not None
    assert late in reading.new
    assert reading.held is not None
    assert not covered([mark], reading.held)


async def test_marks_that_are_given_back_reach_who_has_read_beyond_them(medium: Medium) -> None:
    if medium.kind == "local":
        pytest.skip("nobody else reads")
    log, other = await medium.log(), await medium.log()
    await add(log, A)
    await other.read(0)
    old = Mark(5, B)
    await log.keep([old])
    reading = await other.read(0)
    assert reading is not None
    assert old in reading.new


async def test_what_the_log_covers_already_changes_nothing(medium: Medium) -> None:
    log = await medium.log()
    mark = await add(log, A)
    everything = await add(log, EVERYTHING)
    late = await add(log, B)
    await whole(log)
    await log.keep([Mark(everything.number - 1, Selector(model="m")), mark, late, everything])
    assert await log.read(0) is None


async def test_of_one_selector_and_kind_the_latest_counts(medium: Medium) -> None:
    log = await medium.log()
    marks = [await add(log, A) for _ in range(30)]
    soft = await log.add(A, soft=True, stored_before=None, known=0)
    assert await whole(await medium.log()) == {marks[-1], soft}


async def test_a_purge_of_everything_covers_what_came_before(medium: Medium) -> None:
    log = await medium.log()
    for tag in "abcdef":
        await add(log, Selector(tag=tag))
    everything = await add(log, EVERYTHING)
    after = await add(log, A)
    assert await whole(await medium.log()) == {everything, after}


async def test_B56_marks_beyond_the_bound_fold_into_one_on_everything(medium: Medium) -> None:
    log = await medium.log()
    marks = []
    for i in range(10 * MOST):
        marks.append(await add(log, Selector(tag=str(i))))
        if i == 5 * MOST:
            await log.read(0)
    held = await whole(fresh) if (fresh := await medium.log()) is not log else set()
    if medium.kind == "local":
        reading = await log.read(0)
        assert reading is not None
        held = set(reading.new)
    assert MOST // 2 < len(held) <= MOST + 1
    assert covered(marks, list(held)), "nothing comes back"
    assert set(marks[-MOST // 2 :]) <= held, "the young ones are as they were"
    assert (await add(log, A)).number > marks[-1].number


async def test_B56_what_is_given_back_beyond_the_bound_folds_too(medium: Medium) -> None:
    log = await medium.log()
    marks = [Mark(i, Selector(tag=str(i))) for i in range(1, 5 * MOST)]
    await log.keep(marks)
    held = await whole(await medium.log())
    assert len(held) <= MOST + 1
    assert covered(marks, list(held))


@pytest.mark.parametrize(
    "value", ['"', "\\", "\n\x00\x1b", "größe 😀", "number", "{}", "' OR 1=1 --", "x" * 1024]
)
async def test_any_name_comes_back_as_it_was(medium: Medium, value: str) -> None:
    log = await medium.log()
    tag = normalized_tag(value)
    mark = await add(log, Selector(rule=value, model=value, tenant=value, tag=tag))
    assert await whole(await medium.log()) == {mark}


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("rubbish", Mark(7, EVERYTHING)),
        ("[1]", Mark(7, EVERYTHING)),
        ('{"tag":1}', Mark(7, EVERYTHING)),
        ('{"region":"eu","tag":"a"}', Mark(7, A)),
        ('{"before":"x","soft":1,"tag":"a"}', Mark(7, A)),
    ],
)
async def test_B54_what_cannot_be_read_purges_more(medium: Medium, text: str, mark: Mark) -> None:
    if medium.kind == "local":
        pytest.skip("nobody else writes")
    log = await medium.log()
    await log.keep([Mark(1, B)])
    medium.put(text, 7)
    assert await whole(await medium.log()) == {Mark(1, B), mark}


async def test_it_tells_how_it_hears_of_others(medium: Medium) -> None:
    log = await medium.log()
    if log.hearing is Hearing.TOLD:
        await add(await medium.log(), A)
        await asyncio.wait_for(medium.told.wait(), 15.0)
    else:
        assert log.hearing is (Hearing.ALONE if medium.kind == "local" else Hearing.UNTOLD)


async def test_a_caller_that_goes_away_leaves_the_log_in_order(medium: Medium) -> None:
    log = await medium.log()
    adding = [asyncio.ensure_future(add(log, Selector(tag=str(i)))) for i in range(10)]
    reading = asyncio.ensure_future(log.read(0))
    await asyncio.sleep(0)
    for task in (*adding[::2], reading):
        task.cancel()
    outcomes = await asyncio.gather(*adding, reading, return_exceptions=True)
    added = [mark for mark in outcomes if isinstance(mark, Mark)]
    assert len(added) >= 5
    read = await log.read(0)
    if read is not None or medium.kind != "local":
        assert read is not None
        assert covered(added, list(read.new))


async def test_what_is_read_goes_into_force(medium: Medium) -> None:
    log = await medium.log()
    added = [await add(log, Selector(tag=str(i % 7))) for i in range(30)]
    marks = Marks()
    for mark in await whole(await medium.log()):
        marks.add(mark)
    assert len(marks) == 7
    assert marks.latest == added[-1].number


async def test_closing_twice_is_fine(medium: Medium) -> None:
    log = await medium.log()
    await add(log, A)
    await log.close()
    await log.close()
