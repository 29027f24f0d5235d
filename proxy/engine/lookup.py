"""Looking a planned call up: one key, or those of several answers to the same request."""

import asyncio
import random

from proxy.clock import Clock
from proxy.core.decision import Forward, Hit, LookUp, Refuse, StaleHit, after_lookup
from proxy.core.entry import Entry
from proxy.core.key import CacheKey
from proxy.core.outcome import MissReason
from proxy.core.rules import Rule, VariantChoice
from proxy.core.values import value
from proxy.core.variants import Turns, to_fill, variant_count
from proxy.engine.entries import Entries
from proxy.engine.flights import Flights
from proxy.engine.plan import Plan


@value(frozen=True, slots=True)
class Found:
    """What a look-up means, and the store key that it is about."""

    decision: Hit | StaleHit | Forward | Refuse
    store_key: str


class LookUps:
    """Finds entries for planned calls. `key_prefix` is the start of every store key."""

    def __init__(
        self, entries: Entries, flights: Flights, clock: Clock, turns: Turns, key_prefix: str
    ) -> None:
        self._entries = entries
        self._flights = flights
        self._clock = clock
        self._turns = turns
        self._key_prefix = key_prefix

    def now(self, plan: Plan, looked: LookUp) -> Found | None:
        """What can be had without waiting: a hit, and only of a request with one answer."""
        if variant_count(plan.derivation) > 1:
            return None
        store_key = looked.key.store_key(self._key_prefix)
        entry = self._entries.get_now(store_key)
        return None if entry is None else self._found(plan, looked.key, store_key, entry)

    async def find(self, plan: Plan, looked: LookUp) -> Found:
        """What the store holds; with several answers, the one whose turn it is."""
        count = variant_count(plan.derivation)
        if count > 1:
            return await self._variant(plan, looked.key, count)
        store_key = looked.key.store_key(self._key_prefix)
        return self._found(plan, looked.key, store_key, await self._get(store_key))

    def renewed_key(self, plan: Plan, key: CacheKey) -> str:
        """The store key for an answer that the client wants anew: of several, in turn."""
        store_key = key.store_key(self._key_prefix)
        count = variant_count(plan.derivation)
        # A turn of their own: who asks and renews by turns would else renew one and the same.
        variant = self._turns.next(f"{store_key} renewed") % count if count > 1 else 0
        return key.store_key(self._key_prefix, variant)

    async def _get(self, store_key: str) -> Entry | MissReason:
        flight = self._flights.joinable(store_key)
        if flight is not None and flight.on_absent:
            return MissReason.ABSENT  # that was found out when it began
        with self._flights.watching(store_key) as watch:
            found = await self._entries.get(store_key)
            if watch.stored and not isinstance(found, Entry):
                found = await self._entries.get(store_key)
        return found

    async def _variant(self, plan: Plan, key: CacheKey, count: int) -> Found:
        keys = [key.store_key(self._key_prefix, variant) for variant in range(count)]
        entries = await asyncio.gather(*map(self._get, keys))
        found = [
            self._found(plan, key, store_key, entry)
            for store_key, entry in zip(keys, entries, strict=True)
        ]
        usable = [each for each in found if isinstance(each.decision, Hit | StaleHit)]
        turn = self._turns.next(keys[0])
        if len(usable) == count or (usable and plan.control.only_if_cached):
            return usable[self._place(plan.derivation.rule, turn, len(usable))]
        missing = [place for place, each in enumerate(found) if each not in usable]
        under_way = [self._flights.joinable(keys[place]) is not None for place in missing]
        return found[to_fill(missing, under_way, turn)]

    def _place(self, rule: Rule | None, turn: int, count: int) -> int:
        if rule is not None and rule.variant_choice is VariantChoice.RANDOM:
            return random.randrange(count)  # noqa: S311 - a sample, not a secret
        return turn % count

    def _found(self, plan: Plan, key: CacheKey, store_key: str, entry: Entry | MissReason) -> Found:
        rule = plan.derivation.rule
        assert rule is not None, "only a request with a rule is looked up"
        decision = after_lookup(key, entry, plan.control, rule, now=self._clock.wall())
        return Found(decision, store_key)
