"""The sweep: deletes, slowly and in the background, what purges have named for good.

Nothing depends on it: what it has not reached is not served either, and expires. It gives the
space back sooner. Its judgement is that of every look-up, so that it can stop anywhere.
"""

import logging
from collections.abc import Sequence
from typing import Final

from proxy.clock import Clock
from proxy.core.marks import Marks, Verdict
from proxy.core.selectors import Mark
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.generations import Generations
from proxy.engine.surveying import survey
from proxy.errors import StoreUnavailable
from proxy.stores.base import Store
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.purges")

# Purges often come several at once: one sweep does for all of them.
_COLLECT_SECONDS: Final = 2.0
# After each 100 entries: 2,000 a second at most, for a few hundredths of one core.
_PAUSE_SECONDS: Final = 0.05


class Sweeps:
    """One sweep at a time; purges that come meanwhile wait for the next.

    Each of `tiers` is swept by itself: a copy in one may be older than the entry in another.
    """

    def __init__(
        self,
        tiers: Sequence[Store],
        generations: Generations,
        clock: Clock,
        tasks: TaskGroup,
        dictionaries: Dictionaries,
    ) -> None:
        self._tiers = tiers
        self._dictionaries = dictionaries
        self._generations = generations
        self._clock = clock
        self._tasks = tasks
        self._marks = Marks()
        self._prefixes: set[str] = set()
        self._under_way = False

    def start(self, mark: Mark, key_prefix: str) -> None:
        """Sweep what the mark names, soon."""
        self._marks.add(mark)
        self._prefixes.add(key_prefix)
        if not self._under_way:
            self._under_way = True
            self._tasks.start(self._run(), name="purge-sweep")

    async def _run(self) -> None:
        try:
            while self._prefixes:
                await self._clock.sleep(_COLLECT_SECONDS)
                marks, self._marks = self._marks, Marks()
                prefixes, self._prefixes = self._prefixes, set()
                for tier in self._tiers:
                    for prefix in prefixes:
                        await self._sweep(tier, prefix, marks)
        finally:
            self._under_way = False

    async def _sweep(self, tier: Store, key_prefix: str, marks: Marks) -> None:
        removed = 0
        try:
            async for entries in survey(tier, key_prefix, lambda _: True, self._dictionaries):
                # Both: the marks in force may be about more for a while than they will be in the
                # end, and those collected here may have been folded.
                gone = [
                    entry.key
                    for entry in entries
                    if marks.verdict(entry) is Verdict.GONE
                    and self._generations.verdict(entry) is Verdict.GONE
                ]
                # A new entry may have come under such a key since: that costs one miss.
                removed += await tier.delete_many(gone)
                await self._clock.sleep(_PAUSE_SECONDS)
        except StoreUnavailable as error:
            log.info("the sweep of %s stopped: %s", tier.name, error.message)
        if removed:
            log.info("%d purged entries were swept from %s", removed, tier.name)
