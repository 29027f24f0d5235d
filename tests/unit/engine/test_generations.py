"""Purges as a worker sees them: stamps and verdicts, news and polls, a log that is down."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from proxy.core.marks import EVERYTHING, Marks, Verdict, next_number
from proxy.core.selectors import Mark, Selector
from proxy.engine.generations import Generations
from proxy.errors import StoreUnavailable
from proxy.stores.marks import Hearing, Reading
from proxy.stores.marks_local import LocalMarkLog
from proxy.tasks import TaskGroup
from tests.fakes import FakeClock
from tests.unit.engine.kit import Witness
from tests.waiting import until

pytestmark = pytest.mark.anyio

A, B = Selector(tag="a"), Selector(tag="b")


class SteppedClock(FakeClock):
    """A clock on which who sleeps wakes when the time has been advanced that far."""

    def __init__(self, wall: float = 1_800_000_000.0) -> None:
        super().__init__(wall)
        self._sleeping: list[tuple[float, asyncio.Event]] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        woken = asyncio.Event()
        self._sleeping.append((self.monotonic() + seconds, woken))
        await woken.wait()

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        for at, woken in self._sleeping:
            if at <= self.monotonic():
                woken.set()


@dataclass(slots=True)
class Shared:
    """What logs share: the marks in order, the clock that numbers them, and who listens."""

    clock: FakeClock = field(default_factory=FakeClock)
    marks: list[Mark] = field(default_factory=list)
    listeners: list[Callable[[], None]] = field(default_factory=list)
    deaf: bool = False

    def add(self, mark: Mark) -> None:
        self.marks.append(mark)
        if not self.deaf:
            for listener in self.listeners:
                listener()


class FakeLog:
    """A `MarkLog` over `Shared` that can be down, stall, lose everything, or stumble."""

    def __init__(self, shared: Shared, hearing: Hearing = Hearing.TOLD) -> None:
        self.hearing = hearing
        self.shared = shared
        self.down = False
        self.mistake: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.reads = 0
        self.asked: list[Selector] = []
        self.adding = asyncio.Event()
        self._seen = 0
        self._whole = True

    async def open(self, heard: Callable[[], None]) -> None:
        self.shared.listeners.append(heard)

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        self.asked.append(selector)
        self.adding.set()
        await self._met()
        last = max((mark.number for mark in self.shared.marks), default=0)
        number = next_number(last, known, self.shared.clock.wall())
        mark = Mark(number, selector, soft, stored_before)
        self.shared.add(mark)
        return mark

    async def read(self, known: int) -> Reading | None:
        self.reads += 1
        await self._met()
        new, held = self.shared.marks[self._seen :], list(self.shared.marks)
        if self._seen > len(held):
            new, self._whole = held, True
        self._seen = len(held)
        if not new and not self._whole:
            return None
        whole, self._whole = self._whole, False
        return Reading(new, held if whole else None)

    async def keep(self, marks: Sequence[Mark]) -> None:
        await self._met()
        for mark in marks:
            self.shared.add(mark)

    async def close(self) -> None:
        return

    async def _met(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.mistake is not None:
            raise self.mistake
        if self.down:
            self._whole = True
            raise StoreUnavailable("no log")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a verdict looks at."""

    generation: int
    tags: tuple[str, ...] = ("a",)
    stored_at: float = 1_800_000_000.0
    key: str = "p:v1:chat:-:" + "0a" * 32
    rule: str = "r"
    model: str = "m"
    tenant: str = ""


@dataclass(slots=True)
class Worker:
    """One worker's view, with all that it was built of."""

    log: FakeLog
    clock: SteppedClock
    generations: Generations
    witness: Witness

    def stored_now(self, tag: str = "a") -> Stored:
        """An entry of a call that begins now."""
        return Stored(self.generations.current, (tag,), self.clock.wall())

    def verdict(self, entry: Stored) -> Verdict:
        return self.generations.verdict(entry)

    async def polled(self, seconds: float = 5.0) -> None:
        """A poll was made, and taken in."""
        before = self.log.reads
        await until(lambda: bool(self.clock._sleeping))
        self.clock.advance(seconds)
        await until(lambda: self.log.reads > before)
        await asyncio.sleep(0)


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
async def worker(shared: Shared) -> AsyncIterator[Callable[..., Worker]]:
    made: list[Worker] = []

    def new(hearing: Hearing = Hearing.TOLD, wall: float = 1_800_000_000.0) -> Worker:
        log, clock, witness = FakeLog(shared, hearing), SteppedClock(wall), Witness()
        generations = Generations(log, clock, TaskGroup(), witness, poll_seconds=5.0)
        made.append(Worker(log, clock, generations, witness))
        return made[-1]

    yield new
    for each in made:
        each.log.gate = None
        await each.generations.close()


NewWorker = Callable[..., Worker]


async def opened(worker: Worker) -> Worker:
    await worker.generations.open()
    return worker


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="magic_proxy.purges")
    return lambda: [record.getMessage() for record in caplog.records]


async def test_B54_a_purge_is_in_force_when_it_returns(worker: NewWorker) -> None:
    one = await opened(worker())
    before, aside = one.stored_now("a"), one.stored_now("b")
    mark = await one.generations.add(A)
    assert one.generations.current == mark.number
    assert one.verdict(before) is Verdict.GONE
    assert one.verdict(aside) is Verdict.LIVE
    assert one.verdict(one.stored_now("a")) is Verdict.LIVE


async def test_B54_several_purges_are_made_at_once_whoever_goes_away(worker: NewWorker) -> None:
    one = await opened(worker())
    entries = [one.stored_now("a"), one.stored_now("b")]
    one.log.gate = asyncio.Event()
    adding = asyncio.ensure_future(one.generations.add_all([A, B]))
    await until(lambda: one.log.asked == [A, B])
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    one.log.gate.set()
    await until(lambda: all(one.verdict(entry) is Verdict.GONE for entry in entries))


async def test_B54_several_purges_that_the_log_does_not_take_are_in_force_and_one_line(
    worker: NewWorker, lines: Callable[[], list[str]]
) -> None:
    one = await opened(worker())
    entries = [one.stored_now("a"), one.stored_now("b")]
    one.log.down = True
    await one.generations.add_all([A, B])
    assert [one.verdict(entry) for entry in entries] == [Verdict.GONE] * 2
    assert len(lines()) == 1


async def test_B54_soft_and_by_age(worker: NewWorker) -> None:
    one = await opened(worker())
    old = one.stored_now()
    await one.generations.add(EVERYTHING, soft=True)
    assert one.verdict(old) is Verdict.STALE
    await one.generations.add(EVERYTHING, stored_before=old.stored_at)
    assert one.verdict(old) is Verdict.STALE
    await one.generations.add(EVERYTHING, stored_before=old.stored_at + 1)
    assert one.verdict(old) is Verdict.GONE


async def test_B54_a_purge_takes_what_a_call_under_way_will_store(worker: NewWorker) -> None:
    one = await opened(worker())
    call = one.stored_now()  # begins, and asks the upstream
    await one.generations.add(A)
    late = Stored(call.generation, call.tags, one.clock.wall() + 60.0)  # ends, and is stored
    assert one.verdict(late) is Verdict.GONE


async def test_B54_a_worker_that_has_not_heard_stores_what_is_purged_already(
    shared: Shared, worker: NewWorker
) -> None:
    one, other = await opened(worker()), await opened(worker())
    shared.deaf = True
    await one.generations.add(A)
    unaware = other.stored_now()
    assert one.verdict(unaware) is Verdict.GONE
    await other.polled()
    await until(lambda: other.verdict(unaware) is Verdict.GONE)
    assert one.verdict(other.stored_now()) is Verdict.LIVE


@pytest.mark.parametrize("skew_seconds", [-3600.0, -30.0, 30.0, 3600.0])
async def test_B54_clocks_that_differ_make_no_difference(
    worker: NewWorker, skew_seconds: float
) -> None:
    one = await opened(worker())
    other = await opened(worker(wall=one.clock.wall() + skew_seconds))
    entry = other.stored_now()
    await one.generations.add(A)
    await until(lambda: other.verdict(entry) is Verdict.GONE)
    assert one.verdict(entry) is Verdict.GONE
    again = other.stored_now()
    assert one.verdict(again) is other.verdict(again) is Verdict.LIVE
    await other.generations.add(A)
    await until(lambda: one.verdict(again) is Verdict.GONE)


async def test_B54_a_worker_that_is_told_of_a_purge_has_it_in_force_when_that_returns(
    shared: Shared, worker: NewWorker
) -> None:
    one, other = await opened(worker(Hearing.UNTOLD)), await opened(worker(Hearing.UNTOLD))
    entry = other.stored_now("a")
    shared.deaf = True
    mark = await one.generations.add(A)
    assert other.verdict(entry) is Verdict.LIVE

    await other.generations.told(mark)

    assert other.verdict(entry) is Verdict.GONE
    assert other.generations.current == mark.number


async def test_B54_a_purge_that_the_log_does_not_take_is_told_all_the_same(
    shared: Shared, worker: NewWorker
) -> None:
    one, other = await opened(worker()), await opened(worker())
    told: list[Mark] = []

    async def tell(mark: Mark) -> None:
        told.append(mark)
        await other.generations.told(mark)

    one.generations._tell = tell
    entry = other.stored_now("a")
    one.log.down = other.log.down = True
    with pytest.raises(StoreUnavailable):
        await one.generations.add(A)
    assert len(told) == 1
    assert other.verdict(entry) is Verdict.GONE

    one.log.down = other.log.down = False
    other.generations.heard()
    await until(lambda: len(shared.marks) == 2)  # each hands in what it owes
    assert other.verdict(entry) is Verdict.GONE
    await until(lambda: other.verdict(other.stored_now("a")) is Verdict.LIVE)


async def test_B54_a_worker_with_entries_of_its_own_numbers_what_it_is_told_by_itself() -> None:
    told: list[Mark] = []

    async def tell(mark: Mark) -> None:
        told.append(mark)

    clock, tasks = SteppedClock(1_800_000_000.0), TaskGroup()
    one = Generations(LocalMarkLog(clock), clock, tasks, Witness(), tell=tell)
    other = Generations(LocalMarkLog(clock), clock, tasks, Witness())
    for each in (one, other):
        await each.open()
    for _ in range(3):  # its numbers are ahead of the other's
        await other.add(B)
    mark = await one.add(A, soft=True)
    assert told == [mark]

    before = other.current
    await other.told(mark)

    assert other.current > max(before, mark.number)
    assert told == [mark], "what one is told is not told on"
    for each in (one, other):
        await each.close()


async def test_B54_what_was_purged_meanwhile_is_known_after_own_purges(
    shared: Shared, worker: NewWorker
) -> None:
    """One's own mark has a higher number than one that was not heard of."""
    one, other = await opened(worker()), await opened(worker())
    entry = one.stored_now("b")
    shared.deaf = True
    await other.generations.add(B)
    await one.generations.add(A)
    await one.polled()
    await until(lambda: one.verdict(entry) is Verdict.GONE)


async def test_B54_changes_grow_with_every_change_and_with_nothing_else(worker: NewWorker) -> None:
    one, other = await opened(worker()), await opened(worker())
    seen = [other.generations.changes]
    for selector in (A, B, EVERYTHING):
        await one.generations.add(selector)
        await until(lambda: other.generations.changes > seen[-1])
        seen.append(other.generations.changes)
    await other.polled()
    await other.polled()
    assert other.generations.changes == seen[-1]


async def test_a_burst_of_news_is_one_reading(worker: NewWorker) -> None:
    one = await opened(worker())
    one.log.gate = asyncio.Event()
    before = one.log.reads
    one.generations.heard()
    await until(lambda: one.log.reads == before + 1)
    for _ in range(1_000):
        one.generations.heard()
        await asyncio.sleep(0)
    one.log.gate.set()
    await until(lambda: one.log.reads == before + 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert one.log.reads == before + 2


async def test_B54_what_nobody_told_is_found_by_polling(shared: Shared, worker: NewWorker) -> None:
    one, other = await opened(worker()), await opened(worker())
    shared.deaf = True
    entry = other.stored_now()
    await one.generations.add(A)
    assert other.verdict(entry) is Verdict.LIVE
    await other.polled(5.0)
    await until(lambda: other.verdict(entry) is Verdict.GONE)


@pytest.mark.parametrize(
    ("hearing", "poll_seconds", "sleeps"),
    [
        (Hearing.TOLD, 5.0, [5.0]),
        (Hearing.TOLD, 0.1, [0.1]),
        (Hearing.UNTOLD, 5.0, [0.5]),
        (Hearing.UNTOLD, 0.1, [0.1]),
        (Hearing.ALONE, 5.0, []),
    ],
)
async def test_how_often_is_polled(
    worker: NewWorker, hearing: Hearing, poll_seconds: float, sleeps: list[float]
) -> None:
    one = worker(hearing)
    one.generations.poll_seconds = poll_seconds
    await opened(one)
    await asyncio.sleep(0)
    assert one.clock.slept == sleeps


async def test_a_new_pause_between_polls_counts_from_the_next_on(worker: NewWorker) -> None:
    one = await opened(worker())
    await asyncio.sleep(0)
    one.generations.poll_seconds = 1.0
    await one.polled()
    await until(lambda: one.clock.slept == [5.0, 1.0])


async def test_B54_a_purge_that_the_log_does_not_take_is_in_force_here_and_taken_later(
    worker: NewWorker, lines: Callable[[], list[str]]
) -> None:
    one, other = await opened(worker()), await opened(worker())
    await other.generations.add(B)
    current = one.generations.current
    one.log.down = True
    changes = one.generations.changes
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await one.generations.add(A)
    assert one.generations.changes > changes
    # Also what somebody stored who knows later purges than this worker.
    assert one.verdict(Stored(generation=current + 10**9)) is Verdict.GONE
    assert one.verdict(one.stored_now()) is Verdict.GONE, "until the log tells where it stands"
    assert one.verdict(one.stored_now("c")) is Verdict.LIVE
    assert one.generations.current == current, "nobody else knows that number"
    entry = other.stored_now()
    assert other.verdict(entry) is Verdict.LIVE
    one.log.down = False
    await one.polled()
    await until(lambda: other.verdict(entry) is Verdict.GONE)
    await until(lambda: one.verdict(one.stored_now()) is Verdict.LIVE)
    assert one.verdict(entry) is Verdict.GONE
    assert one.witness.failed == ["purge", "purge"]
    assert lines() == [
        "a purge is in force here alone, until its log takes it (no log)",
        "the log has taken all purges",
    ]


async def test_B56_purges_that_wait_for_the_log_are_bounded(worker: NewWorker) -> None:
    one = await opened(worker())
    one.log.down = True
    for i in range(1_001):
        with pytest.raises(StoreUnavailable):
            await one.generations.add(Selector(tag=str(i)))
    assert one.verdict(one.stored_now("never purged")) is Verdict.GONE, "too much, not too little"
    one.log.down = False
    await one.polled()
    await until(lambda: one.verdict(one.stored_now("1")) is Verdict.LIVE)
    assert one.log.shared.marks[-1].selector == EVERYTHING


async def test_B54_a_log_that_is_down_at_the_start_brings_nothing_back(
    shared: Shared, worker: NewWorker, lines: Callable[[], list[str]]
) -> None:
    """What was purged before must not be served because nobody knows that it was."""
    shared.marks = [Mark(7, A)]
    one = worker()
    one.log.down = True
    await one.generations.open()
    purged, valid = Stored(3, stored_at=1.0), Stored(9, stored_at=1.0)
    assert one.verdict(purged) is one.verdict(valid) is Verdict.GONE
    assert one.verdict(one.stored_now()) is Verdict.LIVE
    for _ in range(3):
        await one.polled()
    one.log.down = False
    changes = one.generations.changes
    await one.polled()
    await until(lambda: one.verdict(valid) is Verdict.LIVE)
    assert one.verdict(purged) is Verdict.GONE
    assert one.generations.changes > changes
    assert one.generations.current == 7
    assert lines() == [
        "the purges could not be read: nothing stored before is served until then",
        "the purges are read: what was stored before is served again",
    ]


async def test_B50_a_log_that_is_down_later_costs_nothing_but_the_news(worker: NewWorker) -> None:
    one = await opened(worker())
    await one.generations.add(A)
    one.log.down = True
    for _ in range(3):
        await one.polled()
    assert one.verdict(one.stored_now()) is Verdict.LIVE
    assert set(one.witness.failed) == {"purge-read"}


async def test_B54_what_the_log_has_lost_is_given_back(shared: Shared, worker: NewWorker) -> None:
    one = await opened(worker())
    marks = [await one.generations.add(selector) for selector in (A, B)]
    await one.polled()
    shared.marks = []
    await one.polled()
    await until(lambda: set(shared.marks) == set(marks))
    newcomer = await opened(worker())
    assert newcomer.verdict(Stored(1)) is Verdict.GONE


async def test_B54_a_caller_that_goes_away_stops_no_purge(worker: NewWorker) -> None:
    one = await opened(worker())
    entry = one.stored_now()
    one.log.gate = asyncio.Event()
    adding = asyncio.ensure_future(one.generations.add(A))
    await one.log.adding.wait()
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    one.log.gate.set()
    await until(lambda: one.verdict(entry) is Verdict.GONE)


async def test_a_mistake_in_a_log_does_not_end_the_following(
    worker: NewWorker, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = await opened(worker()), await opened(worker())
    one.log.mistake = KeyError("rubbish")
    await one.polled()
    await until(lambda: any("could not be read" in line for line in caplog.messages))
    one.log.mistake = None
    entry = one.stored_now()
    await other.generations.add(A)
    await until(lambda: one.verdict(entry) is Verdict.GONE)


async def test_many_marks_come_in_turns_with_everything_else(
    shared: Shared, worker: NewWorker
) -> None:
    one = await opened(worker())
    shared.marks = [Mark(i + 1, Selector(tag=str(i))) for i in range(5_000)]
    turns = 0
    one.generations.heard()
    while one.generations.current < 5_000:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 5
    assert one.verdict(Stored(0, ("4999",))) is Verdict.GONE


async def test_a_worker_alone_purges_for_itself() -> None:
    clock, tasks = SteppedClock(), TaskGroup()
    generations = Generations(LocalMarkLog(clock), clock, tasks, Witness())
    await generations.open()
    entry = Stored(generations.current)
    mark = await generations.add(A)
    assert mark.number == int(clock.wall() * 1000)
    assert generations.verdict(entry) is Verdict.GONE
    assert clock.slept == []
    await generations.close()
    assert len(tasks) == 0


async def test_closing_ends_the_tasks_and_may_come_twice(worker: NewWorker) -> None:
    before = asyncio.all_tasks()
    one = await opened(worker())
    await one.generations.close()
    await one.generations.close()
    assert asyncio.all_tasks() == before


async def test_the_verdict_of_many_marks_is_that_of_the_marks(
    shared: Shared, worker: NewWorker
) -> None:
    shared.marks = [Mark(i + 1, Selector(tag=str(i % 9)), soft=bool(i % 2)) for i in range(50)]
    one = await opened(worker())
    marks = Marks()
    for mark in shared.marks:
        marks.add(mark)
    entries = [Stored(generation, (str(tag),)) for generation in range(51) for tag in range(10)]
    assert [one.verdict(entry) for entry in entries] == [marks.verdict(e) for e in entries]
