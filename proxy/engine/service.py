"""The service: drives the pure decisions, and does what they say."""

import asyncio
from dataclasses import dataclass, replace
from typing import assert_never

from proxy.clock import Clock
from proxy.core.decision import (
    Bypass,
    Forward,
    Hit,
    LookUp,
    Refuse,
    StaleHit,
    before_lookup,
    may_refresh,
    unservable,
)
from proxy.core.entry import Entry
from proxy.core.freshness import certain_until
from proxy.core.items import Items
from proxy.core.key import CacheKey
from proxy.core.matching import RuleSet
from proxy.core.outcome import CLIENT_GONE, Forwarded, MissReason, Outcome, XCache
from proxy.core.replay import Rendered
from proxy.core.variants import Turns, variant_count
from proxy.engine.answers import error_answer, hit_answer
from proxy.engine.base import Answer, Call, Observer
from proxy.engine.batching import Batches
from proxy.engine.entries import Entries
from proxy.engine.explaining import Explained, explained
from proxy.engine.flights import Errand, Flights
from proxy.engine.generations import Generations
from proxy.engine.item_fetches import Fetches
from proxy.engine.leading import Leader
from proxy.engine.lookup import Found, LookUps
from proxy.engine.outcomes import outcome_of, stale_outcome
from proxy.engine.patience import Patience
from proxy.engine.plan import Plan, make_plan
from proxy.engine.refresh import Refreshes, ahead_of_time
from proxy.engine.rendering import INLINE_BYTES, put_into_form, rendered_now
from proxy.engine.sharing import Sharing
from proxy.errors import CircuitOpen, NotCached, ProxyError, UpstreamError
from proxy.upstream.base import Forwarder


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What the operator set for the cache as a whole; `tags_header` is in lower case."""

    rules: RuleSet
    enabled: bool = True
    key_prefix: str = "magic_proxy:cache:"
    expose_key: bool = False
    tags_header: bytes | None = None
    max_refreshes: int = 16


@dataclass(frozen=True, slots=True)
class Lasting:
    """What the services of one process share, whatever the configuration in force."""

    entries: Entries
    generations: Generations
    flights: Flights
    fetches: Fetches
    refreshes: Refreshes
    turns: Turns


class CacheService:
    """Answers calls to cacheable endpoints, under one configuration."""

    def __init__(
        self,
        policy: CachePolicy,
        lasting: Lasting,
        forwarder: Forwarder,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._policy = policy
        self._entries = lasting.entries
        self._generations = lasting.generations
        self._refreshes = lasting.refreshes
        self._forwarder = forwarder
        self._clock = clock
        self._observer = observer
        self._leader = Leader(lasting.entries, forwarder, clock)
        self._lookups = LookUps(
            lasting.entries, lasting.flights, clock, lasting.turns, policy.key_prefix
        )
        self._batches = Batches(
            lasting.entries,
            lasting.fetches,
            forwarder,
            clock,
            observer,
            policy.key_prefix,
            lasting.refreshes,
            policy.max_refreshes,
        )
        self._sharing = Sharing(lasting.flights, self._leader, clock, observer)

    def version(self, key: str) -> int:
        """Another number when an answer from the entry under `key` may be out of date."""
        return self._entries.version(key)

    def is_at_hand(self, key: str, stored_at: float) -> bool:
        """Whether the entry under `key` can be had without waiting."""
        return self._entries.is_at_hand(key, stored_at)

    async def begin(self, call: Call) -> Answer | Plan:
        """The answer, if it is a hit that needs no waiting; else the plan for `finish`.

        Waits only where the body is so long that it is read in a thread. Raises `RequestError`.
        """
        if len(call.body) <= INLINE_BYTES:
            return self.begin_now(call)
        return self._begun(await asyncio.to_thread(self._plan, call))

    def begin_now(self, call: Call) -> Answer | Plan:
        """The same at once, for a body that is not long."""
        return self._begun(self._plan(call))

    def _plan(self, call: Call) -> Plan:
        return make_plan(
            call,
            self._forwarder,
            self._policy.rules,
            started=self._clock.monotonic(),
            generation=self._generations.current,
            tags_header=self._policy.tags_header,
        )

    def _begun(self, plan: Plan) -> Answer | Plan:
        looked = self._before_lookup(plan)
        if isinstance(looked, LookUp) and plan.batch is None:
            found = self._lookups.now(plan, looked)
            if found is not None and isinstance(hit := found.decision, Hit):
                now, ready = self._clock.wall(), self._entries.ready
                told = rendered_now(plan, hit.entry, now, ready)
                if told is not None:
                    return self._hit(plan, hit, found.store_key, told, at_once=True)
        return plan

    async def finish(self, plan: Plan) -> Answer:
        """The answer to a planned call; a proxy error becomes its envelope."""
        found: Found | Items | Bypass | None = None
        try:
            found = await self._find(plan)
            if isinstance(found, Items):
                with_key = self._shows_key(plan.call)
                answer = await self._batches.answer(plan, found, with_key=with_key)
            else:
                answer = await self._answer(plan, found)
            is_whole = isinstance(answer.body, bytes)
            return answer if is_whole else self._patience(plan).bounded(answer)
        except asyncio.CancelledError:
            gone = self._outcome(plan, XCache.ERROR)
            gone = replace(gone, status=CLIENT_GONE, detail="client-gone", complete=False)
            self._observer.told(gone)
            raise
        except ProxyError as error:
            outcome = replace(
                self._outcome(plan, XCache.ERROR),
                status=error.status,
                forwarded=_way_of(found, error),
                detail=error.error_code,
            )
            self._observer.told(outcome)
            return error_answer(error, outcome, with_key=self._shows_key(plan.call))

    async def explain(self, call: Call) -> Explained:
        """What would happen to the call, without doing it. Raises `RequestError`."""
        return await self.explain_plan(await asyncio.to_thread(self._plan, call))

    async def explain_plan(self, plan: Plan) -> Explained:
        """The same for a planned call."""
        return await explained(
            plan.derivation,
            self._entries,
            enabled=self._policy.enabled,
            deliverable=plan.wanted.is_deliverable,
            key_prefix=self._policy.key_prefix,
            now=self._clock.wall(),
            items=plan.batch,
        )

    def store_key(self, key: CacheKey) -> str:
        """The full store key under this configuration's prefix."""
        return key.store_key(self._policy.key_prefix)

    def _before_lookup(self, plan: Plan) -> LookUp | Forward | Bypass | Refuse:
        return before_lookup(
            plan.derivation,
            plan.control,
            enabled=self._policy.enabled,
            deliverable=plan.wanted.is_deliverable,
        )

    async def _find(self, plan: Plan) -> Found | Items | Bypass:
        looked = self._before_lookup(plan)
        if plan.batch is not None and isinstance(looked, LookUp | Forward):
            return plan.batch
        match looked:
            case LookUp():
                return await self._lookups.find(plan, looked)
            case Forward(key=key):
                return Found(looked, self._lookups.renewed_key(plan, key))
            case Refuse(reason=reason):
                raise _not_cached(reason.value)
            case Bypass():
                return looked
            case _:
                assert_never(looked)

    async def _answer(self, plan: Plan, found: Found | Bypass) -> Answer:
        if isinstance(found, Bypass):
            outcome = self._forwarded_outcome(plan, XCache.BYPASS, found, found.detail)
            return await self._forwarded(plan, outcome, None, Errand.BYPASS)
        decision, store_key = found.decision, found.store_key
        match decision:
            case Hit() | StaleHit():
                rendered = await self._put_into_form(plan, decision.entry)
                if rendered is None:
                    again = unservable(decision.key, plan.control)
                    return await self._answer(plan, Found(again, store_key))
                if isinstance(decision, Hit):
                    return self._hit(plan, decision, store_key, rendered, at_once=False)
                return self._stale_hit(plan, decision, store_key, rendered)
            case Forward():
                return await self._forward(plan, decision, store_key)
            case Refuse(reason=reason):
                raise _not_cached(reason.value)
            case _:
                assert_never(decision)

    async def _forward(self, plan: Plan, decision: Forward, store_key: str) -> Answer:
        outcome = self._forwarded_outcome(plan, XCache.MISS, decision, decision.reason.value)
        errand = _errand(decision.reason)
        stale, rendered = decision.stale, None
        if stale is not None:
            # Before it is needed: an error that nothing can replace is passed on as it came.
            rendered = await self._put_into_form(plan, stale)
        if stale is None or rendered is None:
            return await self._forwarded(plan, outcome, store_key, errand)
        failure: UpstreamError | None = self._spared(plan, store_key)
        if failure is None:
            try:
                return await self._forwarded(plan, outcome, store_key, errand, replaceable=True)
            except UpstreamError as error:
                failure = error
        hit = StaleHit.of(decision.key, stale, self._clock.wall())
        outcome = stale_outcome(plan, outcome, self._clock.monotonic(), hit, failure)
        self._observer.told(outcome)
        return hit_answer(
            stale, rendered, outcome, repeats=False, with_key=self._shows_key(plan.call)
        )

    def _spared(self, plan: Plan, store_key: str) -> CircuitOpen | None:
        """Why who has a stale answer does not wait for the upstream, which is probed beside."""
        refusal = self._forwarder.spared(plan.chain)
        if refusal is not None and not refusal.seconds:
            self._refreshes.probe(self._leader, plan, store_key)
        return refusal

    async def _forwarded(
        self,
        plan: Plan,
        outcome: Outcome,
        store_key: str | None,
        errand: Errand,
        *,
        replaceable: bool = False,
    ) -> Answer:
        async with self._patience(plan).beginning():
            return await self._sharing.answer(
                plan,
                outcome,
                store_key,
                errand,
                with_key=self._shows_key(plan.call),
                replaceable=replaceable,
            )

    def _patience(self, plan: Plan) -> Patience:
        return Patience(plan.call.headers, self._clock, plan.started)

    async def _put_into_form(self, plan: Plan, entry: Entry) -> Rendered | None:
        return await put_into_form(plan, entry, self._clock.wall(), self._entries.ready)

    def _hit(
        self, plan: Plan, hit: Hit, store_key: str, rendered: Rendered, *, at_once: bool
    ) -> Answer:
        """`at_once`: nothing was waited for since the look-up, so that it may be repeated."""
        rule = plan.derivation.rule
        assert rule is not None
        now, repeats_until = self._clock.wall(), hit.entry.fresh_until - rule.refresh_before_seconds
        if hit.ttl_seconds <= rule.refresh_before_seconds and may_refresh(plan.control):
            self._refresh(plan, store_key)
        if rule.refresh_ahead and may_refresh(plan.control):
            eagerness = rule.refresh_ahead
            if ahead_of_time(hit.entry, now, eagerness=eagerness):
                self._refresh(plan, store_key)
            repeats_until = min(repeats_until, certain_until(hit.entry, eagerness=eagerness))
        outcome = outcome_of(plan, XCache.HIT, self._clock.monotonic(), hit)
        self._observer.told(outcome)
        is_same = at_once and not plan.renews_ids and variant_count(plan.derivation) == 1
        return hit_answer(
            hit.entry,
            rendered,
            outcome,
            repeats=is_same and now < repeats_until and self._entries.is_stored(store_key),
            repeats_until=repeats_until,
            version=self._entries.version(store_key),
            with_key=self._shows_key(plan.call),
        )

    def _stale_hit(self, plan: Plan, hit: StaleHit, store_key: str, rendered: Rendered) -> Answer:
        if hit.revalidate and not self._refresh(plan, store_key):
            hit = replace(hit, revalidate=False)
        outcome = outcome_of(plan, XCache.STALE, self._clock.monotonic(), hit)
        self._observer.told(outcome)
        return hit_answer(
            hit.entry, rendered, outcome, repeats=False, with_key=self._shows_key(plan.call)
        )

    def _refresh(self, plan: Plan, store_key: str) -> bool:
        most = self._policy.max_refreshes
        return self._refreshes.start(self._leader, plan, store_key, most=most)

    def _forwarded_outcome(
        self, plan: Plan, x_cache: XCache, decision: Forward | Bypass, detail: str
    ) -> Outcome:
        now = self._clock.monotonic()
        return outcome_of(plan, x_cache, now, forwarded=decision.forwarded, detail=detail)

    def _outcome(self, plan: Plan, x_cache: XCache) -> Outcome:
        return outcome_of(plan, x_cache, self._clock.monotonic())

    def _shows_key(self, call: Call) -> bool:
        return self._policy.expose_key or call.identity.admin


def _errand(reason: MissReason) -> Errand:
    match reason:
        case MissReason.NO_CACHE:
            return Errand.RENEWAL
        case MissReason.MAX_AGE | MissReason.FORM:
            return Errand.BETTER
        case _:
            return Errand.MISS


def _way_of(found: Found | Items | Bypass | None, error: ProxyError) -> Forwarded | None:
    """Why a request went upstream that ended in an error; None where it did not go."""
    match found:
        case Found(decision=Forward(forwarded=forwarded)):
            return forwarded
        case Bypass():
            return Forwarded.BYPASS
        case Items() if isinstance(error, UpstreamError):
            return Forwarded.MISS
        case _:
            return None


def _not_cached(reason: str) -> NotCached:
    return NotCached(f"Only a cached answer was asked for, and there is none: {reason}.")
