"""Batches of embeddings, answered item by item (B30 to B34).

What the cache has is not asked for again; what another batch asks for just now is waited for; the
rest goes upstream in one request, each item once.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from proxy.clock import Clock
from proxy.core.batches import Opener
from proxy.core.decision import Forward, may_refresh
from proxy.core.entry import Entry
from proxy.core.items import Items
from proxy.core.outcome import Forwarded, MissReason
from proxy.engine.base import Answer, Observer
from proxy.engine.batch import Batch
from proxy.engine.batch_answers import BatchAnswers
from proxy.engine.entries import Entries
from proxy.engine.item_asking import Asked, Asking, Want, in_thread_if_long
from proxy.engine.item_fetch import Fetch
from proxy.engine.item_fetches import Fetches
from proxy.engine.outcomes import is_failing
from proxy.engine.patience import Patience
from proxy.engine.plan import Plan
from proxy.engine.refresh import Refreshes, ahead_of_time
from proxy.errors import (
    NotCached,
    ProxyError,
    UpstreamError,
    UpstreamFailing,
    UpstreamProtocolError,
)
from proxy.upstream.base import Forwarder


class Batches:
    """Answers calls with several inputs, under one configuration.

    `key_prefix` is the start of every store key.
    """

    def __init__(
        self,
        entries: Entries,
        fetches: Fetches,
        forwarder: Forwarder,
        clock: Clock,
        observer: Observer,
        key_prefix: str,
        refreshes: Refreshes,
        max_refreshes: int,
    ) -> None:
        self._entries = entries
        self._refreshes = refreshes
        self._max_refreshes = max_refreshes
        self._fetches = fetches
        self._asking = Asking(forwarder, clock)
        self._clock = clock
        self._key_prefix = key_prefix
        self._opener = Opener()
        self._answers = BatchAnswers(clock, observer)

    async def answer(self, plan: Plan, items: Items, *, with_key: bool) -> Answer:
        """The answer to a call that may use the cache; its outcome is told.

        Raises `UpstreamError`, and `NotCached` where the client wants a cached answer only.
        """
        batch = Batch(plan, items, items.store_keys(self._key_prefix), with_key=with_key)
        with ExitStack() as aboard:
            with self._fetches.watching() as landed:
                await self._look_up(batch)
                await self._take(batch, self._missed(batch, landed))
                batch.looked_up()
                self._refresh_ahead(batch)
                if batch.serves_stale and (stale := await self._served_stale(batch)) is not None:
                    return stale
                if (stale := await self._spared(batch)) is not None:
                    return stale
                if batch.missing and plan.control.only_if_cached:
                    raise _not_cached(batch)
                own, joined = self._set_out(batch, aboard)
            patience = Patience(plan.call.headers, self._clock, plan.started)
            try:
                async with patience.beginning():
                    answer = await self._fetched(batch, own)
                    if answer is None and joined:
                        again = await self._join(batch, joined, aboard)
                        answer = await self._fetched(batch, again)
            except UpstreamError as error:
                if not await self._take_stale(batch):
                    raise
                return await self._answers.stale(batch, error)
            if answer is not None:
                return answer
        return await self._answers.joined(batch)

    async def _look_up(self, batch: Batch) -> None:
        keys = batch.distinct
        if batch.plan.control.no_cache:
            reason = MissReason.NO_CACHE
            for key in keys:
                batch.missing[key] = Forward(batch.key_of(key), Forwarded.REQUEST, reason)
            return
        found = await self._entries.get_batch(keys)
        await self._take(batch, batch.decide(keys, found, self._clock.wall()))

    def _refresh_ahead(self, batch: Batch) -> None:
        """Have popular items replaced before their time (B15)."""
        plan = batch.plan
        eagerness = plan.derivation.rule.refresh_ahead if plan.derivation.rule else 0.0
        if not eagerness or not may_refresh(plan.control):
            return
        now = self._clock.wall()
        due = [
            batch.want(key)
            for key, entry in batch.entries.items()
            if ahead_of_time(entry, now, eagerness=eagerness)
        ]
        if due:
            self._refresh(plan, due)

    def _refresh(self, plan: Plan, wants: Sequence[Want]) -> bool:
        most = self._max_refreshes
        return self._refreshes.start_items(self._fetches, self._asking, plan, wants, most=most)

    async def _served_stale(self, batch: Batch) -> Answer | None:
        """The answer with what is stale as it is, and new vectors fetched in the background."""
        wants = [batch.want(key) for key in batch.missing]
        if not await self._take_stale(batch):
            return None
        # What the client says counts for all its items alike.
        wanted = all(batch.servable[want.store_key].revalidate for want in wants)
        fetched = wanted and self._refresh(batch.plan, wants)
        return await self._answers.revalidating(batch, fetched=fetched)

    async def _spared(self, batch: Batch) -> Answer | None:
        """The answer with what is stale, where an open circuit stands before the upstream."""
        if not batch.missing or not batch.missing.keys() <= batch.stale.keys():
            return None
        refusal = self._asking.forwarder.spared(batch.plan.chain)
        wants = [batch.want(key) for key in batch.missing]
        if refusal is None or not await self._take_stale(batch):
            return None
        if not refusal.seconds:
            self._refreshes.probe_items(self._fetches, self._asking, batch.plan, wants)
        return await self._answers.stale(batch, refusal)

    def _missed(self, batch: Batch, landed: Mapping[str, Entry]) -> list[Entry]:
        """What landed while it was looked up, unless it was asked for before a purge."""
        found = [landed[key] for key in batch.missing if key in landed]
        return [entry for entry in found if self._entries.is_live(entry)]

    async def _take(self, batch: Batch, entries: Sequence[Entry]) -> None:
        size = sum(len(entry.payload) for entry in entries)
        pieces = await in_thread_if_long(size, batch.opened, entries, self._opener)
        batch.take(entries, pieces)

    def _set_out(self, batch: Batch, aboard: ExitStack) -> tuple[Fetch | None, dict[str, Fetch]]:
        """Begin to fetch what nobody else does, and find who does for the rest."""
        joined: dict[str, Fetch] = {}
        for key in batch.missing:
            if (fetch := self._fetches.under_way(batch.plan, key)) is not None:
                joined[key] = fetch
        for fetch in dict.fromkeys(joined.values()):
            aboard.enter_context(self._fetches.aboard(fetch, owns=False))
        own = [key for key in batch.missing if key not in joined]
        return self._start(batch, own, aboard, joinable=True), joined

    def _start(
        self, batch: Batch, keys: Iterable[str], aboard: ExitStack, *, joinable: bool
    ) -> Fetch | None:
        wants = [batch.want(key) for key in sorted(keys, key=batch.places.__getitem__)]
        if not wants:
            return None
        whole = len(wants) == len(batch)
        fetch = self._fetches.start(self._asking, batch.plan, wants, whole=whole, joinable=joinable)
        aboard.enter_context(self._fetches.aboard(fetch, owns=True))
        return fetch

    async def _fetched(self, batch: Batch, fetch: Fetch | None) -> Answer | None:
        """Take what this call's own fetch brought; or the answer, where the upstream gave it."""
        if fetch is None:
            return None
        failure = await fetch.ended()
        if isinstance(failure, ProxyError):
            raise failure
        if failure is not None:
            await self._replace(batch, fetch, failure)
            return self._answers.passed(batch, fetch, failure)
        if fetch.whole and len(fetch.asked) == 1 and fetch.asked[0].passes:
            return self._answers.passed(batch, fetch, fetch.asked[0])
        landed = [await fetch.landed(key) for key in fetch.wants]
        entries = [entry for entry in landed if entry is not None]
        if len(entries) < len(landed):
            raise UpstreamError("The request was given up.")
        await self._take(batch, entries)
        if any(key in batch.missing for key in fetch.wants):
            raise UpstreamProtocolError("The vectors have no form in the encoding asked for.")
        batch.account(fetch)
        return None

    async def _replace(self, batch: Batch, fetch: Fetch, failure: Asked) -> None:
        """Raise `UpstreamFailing` where stale entries serve better than what the upstream says."""
        status, replaced = failure.exchange.response.status, True
        try:
            replaced = is_failing(status) and await self._take_stale(batch)
        finally:
            if replaced and failure.rest is not None:
                await failure.exchange.response.aclose()
        if replaced:
            batch.account(fetch)
            failing = UpstreamFailing(f"The upstream answered {status}.")
            failing.answered = status
            raise failing

    async def _take_stale(self, batch: Batch) -> bool:
        """Whether stale entries serve for all that is missing, as they do from now on."""
        if not batch.missing.keys() <= batch.stale.keys():
            return False
        entries = [batch.stale[key] for key in batch.missing]
        size = sum(len(entry.payload) for entry in entries)
        pieces = await in_thread_if_long(size, batch.opened, entries, self._opener)
        if None in pieces:
            return False
        batch.take(entries, pieces)
        return True

    async def _join(
        self, batch: Batch, joined: Mapping[str, Fetch], aboard: ExitStack
    ) -> Fetch | None:
        """Wait for others' items; what they don't bring is asked for here, once, and alone."""
        landed = [await fetch.landed(key) for key, fetch in joined.items()]
        found = [MissReason.ABSENT if entry is None else entry for entry in landed]
        await self._take(batch, batch.decide(joined, found, self._clock.wall()))
        left = [key for key in joined if key in batch.missing]
        return self._start(batch, left, aboard, joinable=False)


def _not_cached(batch: Batch) -> NotCached:
    reason = next(iter(batch.missing.values())).reason
    return NotCached(
        f"Only a cached answer was asked for, and there is none for {len(batch.missing)} of the"
        f" {len(batch.places)} inputs: {reason.value}."
    )
