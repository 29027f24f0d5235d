"""Purges: one mark, whatever it covers; a dry run counts what a mark would cover."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from proxy.clock import Clock
from proxy.core.entry import EntryMeta
from proxy.core.key import CacheKey
from proxy.core.marks import Marks, Verdict
from proxy.core.purge import Purge
from proxy.core.selectors import Mark, Selector
from proxy.core.wire import JsonValue
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.generations import Generations
from proxy.engine.surveying import survey
from proxy.engine.sweeping import Sweeps
from proxy.errors import PurgeIncomplete, StoreUnavailable
from proxy.stores.base import Store

log = logging.getLogger("magic_proxy.purges")

_ABOVE_EVERY_NUMBER: Final = 2**62


class PurgeObserver(Protocol):
    """Is told of each purge, dry runs excepted."""

    def purged(self, kind: str) -> None:
        """`kind` is what it selected by: a member's name, or `several`."""
        ...


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What came of a purge.

    `number` is its mark's, None for a dry run. `matched` counts entries, where it is known: those
    that a dry run found, or that were deleted under a whole key.
    """

    purge: Purge
    number: int | None
    matched: int | None

    def as_dict(self) -> dict[str, JsonValue]:
        """The same as JSON values."""
        return {
            "purged": self.purge.as_dict(),
            "number": self.number,
            "matched": self.matched,
            "soft": self.purge.soft,
            "dry_run": self.purge.dry_run,
        }


class Purging:
    """Purges for all configurations of one process; dry runs take turns."""

    def __init__(
        self,
        generations: Generations,
        store: Store,
        sweeps: Sweeps,
        clock: Clock,
        observer: PurgeObserver,
        dictionaries: Dictionaries,
    ) -> None:
        self._generations = generations
        self._store = store
        self._sweeps = sweeps
        self._clock = clock
        self._observer = observer
        self._dictionaries = dictionaries
        self._counting = asyncio.Lock()

    async def purge(self, purge: Purge, *, key_prefix: str) -> PurgeReport:
        """Purge, or count what a purge would; entries are those under `key_prefix`.

        Raises `PurgeIncomplete`, which says what has taken effect all the same.
        """
        if purge.dry_run:
            return PurgeReport(purge, None, await self._count(purge, key_prefix))
        self._observer.purged(purge.kind)
        told = orjson.dumps({"soft": purge.soft, **purge.as_dict()}).decode()
        try:
            mark = await self._generations.add(
                purge.selector, soft=purge.soft, stored_before=self._stored_before(purge)
            )
        except StoreUnavailable as error:
            log.warning("purge in force here alone: %s (%s)", told, error.message)
            raise PurgeIncomplete(
                "The purge is in force in this process, but those that share its store could not "
                f"be told yet ({error.message}). They will be as soon as that is possible, if this "
                "process lives; to be sure, send it again then."
            ) from error
        log.info("purge %d: %s", mark.number, told)
        removed = await self._remove(purge, mark, key_prefix)
        return PurgeReport(purge, mark.number, removed)

    async def purge_all(self, purges: Sequence[Purge], *, key_prefix: str) -> list[PurgeReport]:
        """The same for each in turn: also for those after one that raised, which is told last."""
        reports: list[PurgeReport] = []
        failure: PurgeIncomplete | None = None
        for purge in purges:
            try:
                reports.append(await self.purge(purge, key_prefix=key_prefix))
            except PurgeIncomplete as error:
                failure = error
        if failure is not None:
            raise failure
        return reports

    def _stored_before(self, purge: Purge) -> float | None:
        if purge.older_than_seconds is None:
            return None
        return self._clock.wall() - purge.older_than_seconds

    async def _remove(self, purge: Purge, mark: Mark, key_prefix: str) -> int | None:
        """Delete what lies under a whole key, now; leave all else to the sweep."""
        if purge.soft:
            return None
        if purge.store_key is None or purge.kind != "key":
            self._sweeps.start(mark, key_prefix)
            return None
        first = CacheKey.parse(purge.store_key, key_prefix).store_key(key_prefix)
        try:
            return await self._store.delete_many(list({first, purge.store_key}))
        except StoreUnavailable:
            return None  # it is not served any more, wherever it still lies

    async def _count(self, purge: Purge, key_prefix: str) -> int:
        # The very judgement that a purge now would bring about.
        trial = Marks()
        stored_before = self._stored_before(purge)
        trial.add(Mark(_ABOVE_EVERY_NUMBER, purge.selector, purge.soft, stored_before))
        count = 0
        async with self._counting:
            try:
                async for entries in survey(
                    self._store,
                    key_prefix,
                    lambda key: _may_fit(key, purge.selector),
                    self._dictionaries,
                ):
                    count += sum(
                        trial.verdict(entry) is not Verdict.LIVE and self._has_effect(purge, entry)
                        for entry in entries
                    )
            except StoreUnavailable as error:
                raise PurgeIncomplete(
                    f"The entries could not be counted: {error.message}. Nothing was purged.",
                    code="store_unavailable",
                ) from error
        return count

    def _has_effect(self, purge: Purge, entry: EntryMeta) -> bool:
        """Whether the entry is not yet what the purge would make of it."""
        verdict = self._generations.verdict(entry)
        return verdict is Verdict.LIVE or (verdict is Verdict.STALE and not purge.soft)


def _may_fit(key: CacheKey, selector: Selector) -> bool:
    """What a key tells without its entry."""
    fits_endpoint = selector.endpoint in {None, key.endpoint}
    return fits_endpoint and selector.digest in {None, key.digest}
