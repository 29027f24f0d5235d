"""Generations: which purges this worker knows, and what they say of an entry.

Every call is stamped, before it asks the upstream, with the number of the last purge known then.
Whatever it stores is purged by every fitting mark with a higher number: also by one that came while
the call was under way, and whatever the clocks of two replicas say. A worker that has not heard of
a purge stamps too small a number, so that its entries are purged too much, never too little.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.core.marks import EVERYTHING, Marks, Verdict, uncovered
from proxy.core.selectors import Mark, Selector, Tagged
from proxy.engine.base import StorageObserver
from proxy.errors import StoreUnavailable
from proxy.stores.marks import Hearing, MarkLog
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.purges")

# Above every number: a purge without one is about all entries that fit, the youngest included.
_UNNUMBERED: Final = 2**62
_UNTOLD_POLL_SECONDS: Final = 0.5
_MOST_OWED: Final = 1_000
_INLINE_MARKS: Final = 500  # then the loop has its turn


class Generations:
    """The purges in force in this worker, from `log` and to it.

    Where the log does not take a purge, it is in force here at once, for all that fits it, until
    the log has taken it. Where the log could not be read at the start, what was stored before is
    not served until it could. `poll_seconds` may be changed at any time. `tell` has the purges of
    this worker in force in those beside it, at once.
    """

    def __init__(
        self,
        log: MarkLog,
        clock: Clock,
        tasks: TaskGroup,
        observer: StorageObserver,
        *,
        poll_seconds: float = 5.0,
        tell: Callable[[Mark], Awaitable[None]] | None = None,
    ) -> None:
        self._log = log
        self._clock = clock
        self._tasks = tasks
        self._observer = observer
        self.poll_seconds = poll_seconds
        self._tell = tell
        self.changes = 0
        """Grows with every change of the marks: what was found LIVE before has to be asked anew."""
        self._marks = Marks()
        self._owed: list[Mark] = []
        self._blind = False  # the purges could not be read yet
        self._unnumbered: Marks | None = None  # what is owed, or not known
        self._news = asyncio.Event()
        self._one_reader = asyncio.Lock()
        self._following = TaskGroup()

    @property
    def current(self) -> int:
        """The number to stamp on a call that begins now."""
        return self._marks.latest

    def verdict(self, tagged: Tagged) -> Verdict:
        """What the purges say of an entry, or of a call under way."""
        verdict = self._marks.verdict(tagged)
        if self._unnumbered is None or verdict is Verdict.GONE:
            return verdict
        other = self._unnumbered.verdict(tagged)
        return verdict if other is Verdict.LIVE else other

    async def open(self) -> None:
        """Read the purges, and begin to follow; a log that is down does not make this fail."""
        await self._log.open(self.heard)
        if not await self._read():
            self._blind = True
            blind = Mark(_UNNUMBERED, EVERYTHING, stored_before=self._clock.wall())
            self._put_unnumbered([blind])
            log.warning("the purges could not be read: nothing stored before is served until then")
        self._following.start(self._follow(), name="purges-follow")
        if self._log.hearing is not Hearing.ALONE:
            self._following.start(self._poll(), name="purges-poll")

    async def add(
        self, selector: Selector, *, soft: bool = False, stored_before: float | None = None
    ) -> Mark:
        """Purge: when this returns the mark is in force here, and in the log.

        Raises StoreUnavailable where the log did not take it: then it is in force here, and the log
        gets it later. A caller that goes away stops nothing.
        """
        adding = self._begin(Mark(_UNNUMBERED, selector, soft, stored_before))
        outcome = await asyncio.shield(adding)
        if isinstance(outcome, StoreUnavailable):
            raise outcome
        return outcome

    async def add_all(self, selectors: Iterable[Selector]) -> None:
        """Purge what fits any of them, all at once: it is in force here when this returns.

        What the log did not take it gets later. A caller that goes away stops nothing.
        """
        adding = [self._begin(Mark(_UNNUMBERED, selector)) for selector in selectors]
        if adding:
            await asyncio.wait(adding)
        for each in adding:
            each.result()

    async def told(self, mark: Mark) -> None:
        """Have in force what a worker beside this one purged, when this returns."""
        if self._log.hearing is Hearing.ALONE:  # each has entries, and marks, of its own
            await self._number(mark)
        elif mark.number == _UNNUMBERED:
            self._owe(mark, "told by a worker")
        else:
            await self._read()

    def heard(self) -> None:
        """Others may have added marks: read soon; many calls are one reading."""
        self._news.set()

    async def close(self) -> None:
        """Stop following and let go of the log; safe to call twice."""
        await self._following.cancel()
        await self._log.close()

    async def _follow(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._read()
            except Exception:  # boundary: whatever a log stumbles over, the next reading is made
                log.exception("the purges could not be read")

    async def _poll(self) -> None:
        while True:
            seconds = self.poll_seconds
            if self._log.hearing is Hearing.UNTOLD:
                seconds = min(seconds, _UNTOLD_POLL_SECONDS)
            await self._clock.sleep(seconds)
            self.heard()

    async def _read(self) -> bool:
        """Take what is new, and give the log what it lacks; False where it did not answer."""
        async with self._one_reader:
            return await self._read_alone()

    async def _read_alone(self) -> bool:
        try:
            reading = await self._log.read(self.current)
            if reading is not None:
                await self._take(reading.new)
            self._see()
            if reading is not None and reading.held is not None:
                await self._give_back(reading.held)
            await self._pay()
        except StoreUnavailable:
            self._observer.store_failed("purge-read")
            return False
        return True

    async def _take(self, marks: Sequence[Mark]) -> None:
        for at in range(0, len(marks), _INLINE_MARKS):
            if at:
                await asyncio.sleep(0)
            changed = [self._marks.add(mark) for mark in marks[at : at + _INLINE_MARKS]]
            self.changes += any(changed)

    async def _give_back(self, held: Sequence[Mark]) -> None:
        """Give the log what it has lost, or never had."""
        mine = tuple(self._marks)
        if len(mine) > _INLINE_MARKS:
            lost = await asyncio.to_thread(uncovered, mine, held)
        else:
            lost = uncovered(mine, held)
        if lost:
            await self._log.keep(lost)

    def _begin(self, mark: Mark) -> "asyncio.Task[Mark | StoreUnavailable]":
        return self._tasks.start(self._add(mark), name="purge", awaited=True)

    async def _add(self, mark: Mark) -> Mark | StoreUnavailable:
        outcome: Mark | StoreUnavailable
        try:
            outcome = mark = await self._number(mark)
        except StoreUnavailable as error:
            self._observer.store_failed("purge")
            self._owe(mark, error)
            outcome = error
        if self._tell is not None:
            await self._tell(mark)
        return outcome

    async def _number(self, mark: Mark) -> Mark:
        added = await self._log.add(
            mark.selector, soft=mark.soft, stored_before=mark.stored_before, known=self.current
        )
        await self._take([added])
        return added

    def _owe(self, mark: Mark, why: object) -> None:
        if not self._owed:
            log.warning("a purge is in force here alone, until its log takes it (%s)", why)
        if mark not in self._owed:
            self._owed.append(mark)
        if len(self._owed) > _MOST_OWED:
            self._owed = [Mark(_UNNUMBERED, EVERYTHING)]
        self._put_unnumbered(self._owed[-1:])

    async def _pay(self) -> None:
        """Give the log the purges that it did not take."""
        if not self._owed:
            return
        try:
            while self._owed:
                mark = self._owed[0]
                await self._number(mark)
                # Meanwhile others may have come behind it, or one on everything instead of all.
                self._owed = [owed for owed in self._owed if owed is not mark]
        finally:
            self._unnumbered = None
            self._put_unnumbered(self._owed)
        log.info("the log has taken all purges")

    def _see(self) -> None:
        if self._blind:
            self._blind = False
            self._unnumbered = None
            self._put_unnumbered(self._owed)
            log.info("the purges are read: what was stored before is served again")

    def _put_unnumbered(self, marks: Sequence[Mark]) -> None:
        if self._unnumbered is None and marks:
            self._unnumbered = Marks()
        for mark in marks:
            assert self._unnumbered is not None
            self._unnumbered.add(mark)
        self.changes += 1
