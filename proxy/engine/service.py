"""The service: drives the pure decisions, and does what they say."""

import asyncio
from dataclasses import dataclass, replace
from typing import assert_never

from proxy.clock import Clock
from proxy.core.coding import gzipped, wants_gzip
from proxy.core.decision import (
    Bypass,
    Decision,
    Forward,
    Hit,
    LookUp,
    Refuse,
    after_lookup,
    before_lookup,
    unservable,
)
from proxy.core.entry import Usage
from proxy.core.key import CacheKey
from proxy.core.matching import RuleSet
from proxy.core.outcome import CLIENT_GONE, Forwarded, Outcome, XCache
from proxy.core.replay import FreshIds, Rendered, render
from proxy.engine.answers import error_answer, hit_answer
from proxy.engine.base import Answer, Call, Observer
from proxy.engine.entries import Entries
from proxy.engine.explaining import Explained, explained
from proxy.engine.forwarding import Forwarding
from proxy.engine.plan import Plan, make_plan
from proxy.errors import NotCached, ProxyError
from proxy.upstream.base import Forwarder

# A longer body is read, and a longer payload put into another form, in a thread.
_INLINE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What the operator set for the cache as a whole."""

    rules: RuleSet
    enabled: bool = True
    key_prefix: str = "magic_proxy:cache:"
    expose_key: bool = False


class CacheService:
    """Answers calls to cacheable endpoints, under one configuration."""

    def __init__(
        self,
        policy: CachePolicy,
        entries: Entries,
        forwarder: Forwarder,
        clock: Clock,
        observer: Observer,
    ) -> None:
        self._policy = policy
        self._entries = entries
        self._forwarder = forwarder
        self._clock = clock
        self._observer = observer
        self._forwarding = Forwarding(entries, forwarder, clock, observer)

    @property
    def replacements(self) -> int:
        """Changes when an entry was replaced before its time: answers given may be out of date."""
        return self._entries.replacements

    async def begin(self, call: Call) -> Answer | Plan:
        """The answer, if it is a hit that needs no waiting; else the plan for `finish`.

        Waits only where the body is so long that it is read in a thread. Raises `RequestError`.
        """
        if len(call.body) <= _INLINE_BYTES:
            return self._begun(self._plan(call))
        return self._begun(await asyncio.to_thread(self._plan, call))

    def _plan(self, call: Call) -> Plan:
        return make_plan(call, self._forwarder, self._policy.rules, started=self._clock.monotonic())

    def _begun(self, plan: Plan) -> Answer | Plan:
        looked = self._before_lookup(plan)
        if isinstance(looked, LookUp):
            found = self._entries.get_now(self.store_key(looked.key))
            if found is not None and len(found.payload) <= _INLINE_BYTES:
                decision = after_lookup(looked.key, found, plan.control, now=self._clock.wall())
                if isinstance(decision, Hit):
                    rendered = self._rendered(plan, decision)
                    return plan if rendered is None else self._hit(plan, decision, rendered)
        return plan

    async def finish(self, plan: Plan) -> Answer:
        """The answer to a planned call; a proxy error becomes its envelope."""
        decision: Decision | None = None
        try:
            decision = await self._decide(plan)
            return await self._answer(plan, decision)
        except asyncio.CancelledError:
            gone = self._outcome(plan, XCache.ERROR, status=CLIENT_GONE, detail="client-gone")
            self._observer.told(replace(gone, complete=False))
            raise
        except ProxyError as error:
            went = decision.forwarded if isinstance(decision, Forward | Bypass) else None
            outcome = self._outcome(
                plan, XCache.ERROR, status=error.status, forwarded=went, detail=error.error_code
            )
            self._observer.told(outcome)
            return error_answer(error, outcome, with_key=self._shows_key(plan.call))

    async def explain(self, call: Call) -> Explained:
        """What would happen to the call, without doing it. Raises `RequestError`."""
        plan = await asyncio.to_thread(self._plan, call)
        return await explained(
            plan.derivation,
            self._entries,
            enabled=self._policy.enabled,
            deliverable=plan.wanted.is_deliverable,
            key_prefix=self._policy.key_prefix,
            now=self._clock.wall(),
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

    async def _decide(self, plan: Plan) -> Decision:
        looked = self._before_lookup(plan)
        if not isinstance(looked, LookUp):
            return looked
        store_key = self.store_key(looked.key)
        found = await self._entries.get(store_key)
        return after_lookup(looked.key, found, plan.control, now=self._clock.wall())

    async def _answer(self, plan: Plan, decision: Decision) -> Answer:
        with_key = self._shows_key(plan.call)
        match decision:
            case Hit(key=key):
                if len(decision.entry.payload) <= _INLINE_BYTES:
                    rendered = self._rendered(plan, decision)
                else:
                    rendered = await asyncio.to_thread(self._rendered, plan, decision)
                if rendered is None:
                    return await self._answer(plan, unservable(key, plan.control))
                return self._hit(plan, decision, rendered)
            case Forward():
                outcome = self._outcome(
                    plan,
                    XCache.MISS,
                    forwarded=decision.forwarded,
                    detail=decision.reason.value,
                )
                store_key = self.store_key(decision.key)
                return await self._forwarding.forward(plan, outcome, store_key, with_key=with_key)
            case Bypass():
                outcome = self._outcome(
                    plan,
                    XCache.BYPASS,
                    forwarded=decision.forwarded,
                    detail=decision.detail,
                )
                return await self._forwarding.forward(plan, outcome, None, with_key=with_key)
            case Refuse(reason=reason):
                raise NotCached(
                    f"Only a cached answer was asked for, and there is none: {reason.value}."
                )
            case _:
                assert_never(decision)

    def _rendered(self, plan: Plan, hit: Hit) -> Rendered | None:
        """The entry in the form that the request wants, or None where it can't be put into it."""
        fresh = None
        if plan.renews_ids:
            created = int(self._clock.wall())
            fresh = FreshIds(id=f"chatcmpl-{plan.call.request_id}", created=created)
        rendered = render(hit.entry, plan.call.endpoint, plan.wanted, fresh=fresh)
        if rendered is not None and wants_gzip(plan.call.headers):
            return replace(rendered, body=gzipped(rendered.body), content_encoding=b"gzip")
        return rendered

    def _hit(self, plan: Plan, hit: Hit, rendered: Rendered) -> Answer:
        call = plan.call
        outcome = self._outcome(
            plan,
            XCache.HIT,
            status=hit.entry.status,
            ttl_seconds=hit.ttl_seconds,
            age_seconds=hit.age_seconds,
            usage=hit.entry.usage,
        )
        self._observer.told(outcome)
        return hit_answer(
            hit.entry,
            rendered,
            outcome,
            repeats=not plan.renews_ids and self._entries.is_stored(self.store_key(hit.key)),
            with_key=self._shows_key(call),
        )

    def _outcome(
        self,
        plan: Plan,
        x_cache: XCache,
        *,
        status: int = 0,
        forwarded: Forwarded | None = None,
        detail: str | None = None,
        ttl_seconds: float | None = None,
        age_seconds: float | None = None,
        usage: Usage | None = None,
    ) -> Outcome:
        call, derivation = plan.call, plan.derivation
        return Outcome(
            x_cache=x_cache,
            endpoint=call.endpoint.value,
            status=status,
            model=plan.chain.model,
            rule=derivation.rule.name if derivation.rule is not None else None,
            digest=derivation.key.digest if derivation.key is not None else None,
            forwarded=forwarded,
            ttl_seconds=ttl_seconds,
            age_seconds=age_seconds,
            detail=detail,
            usage=usage,
            stream=plan.wanted.stream,
            client=call.identity.client,
            request_id=call.request_id,
            duration_seconds=self._clock.monotonic() - plan.started,
        )

    def _shows_key(self, call: Call) -> bool:
        return self._policy.expose_key or call.identity.admin
