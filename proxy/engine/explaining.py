"""Why was this a miss? The decision on a call, told instead of carried out."""

from dataclasses import dataclass

from proxy.core.control import NO_CONTROL
from proxy.core.decision import Bypass, Hit, LookUp, StaleHit, after_lookup, before_lookup
from proxy.core.entry import Entry
from proxy.core.explain import explain
from proxy.core.freshness import age_seconds, remaining_seconds
from proxy.core.items import Items
from proxy.core.key import Derivation, NoKey
from proxy.core.matching import RuleSet
from proxy.core.outcome import BypassReason, MissReason, XCache
from proxy.core.request import CacheableRequest
from proxy.core.rules import Rule
from proxy.core.wire import Endpoint, JsonValue
from proxy.engine.entries import Entries

_HIT = "hit"


@dataclass(frozen=True, slots=True)
class Explained:
    """What would happen to a request now, why, and what the store holds for it."""

    verdict: XCache
    reason: str | None
    derivation: dict[str, JsonValue]
    stored: dict[str, JsonValue] | None

    def as_dict(self) -> dict[str, JsonValue]:
        """The same as JSON values."""
        return {
            "would_be": self.verdict.value,
            "reason": self.reason,
            **self.derivation,
            "stored": self.stored,
        }


async def explained(
    derivation: Derivation,
    entries: Entries,
    *,
    enabled: bool,
    deliverable: bool,
    key_prefix: str,
    now: float,
    items: Items | None = None,
) -> Explained:
    """The decision for a derivation, with the entry looked at but neither served nor touched.

    Several `items` are each looked up; then the request as a whole has no key.
    """
    told = explain(derivation, key_prefix).as_dict()
    looked = before_lookup(derivation, NO_CONTROL, enabled=enabled, deliverable=deliverable)
    if isinstance(looked, Bypass):
        return Explained(XCache.BYPASS, looked.detail, told, None)
    assert isinstance(looked, LookUp)
    assert derivation.rule is not None, "a key comes of a rule"
    if items is not None and len(items) > 1:
        told |= dict.fromkeys(("canonical", "digest", "store_key"))
        return await _batch(items, derivation.rule, entries, told, key_prefix=key_prefix, now=now)
    store_key = looked.key.store_key(key_prefix)
    found = await entries.get(store_key)
    decision = after_lookup(looked.key, found, NO_CONTROL, derivation.rule, now=now)
    stored = _entry(found, now) if isinstance(found, Entry) else None
    if isinstance(decision, Hit):
        return Explained(XCache.HIT, None, told, stored)
    if isinstance(decision, StaleHit):
        return Explained(XCache.STALE, MissReason.EXPIRED.value, told, stored)
    reason = found if isinstance(found, MissReason) else MissReason.EXPIRED
    return Explained(XCache.MISS, reason.value, told, stored)


def passing(endpoint: Endpoint, reason: BypassReason) -> Explained:
    """A request that passes through, unread."""
    derivation = Derivation(CacheableRequest(endpoint, "", {}), RuleSet(), reason=NoKey.NO_RULE)
    return Explained(XCache.BYPASS, reason.value, explain(derivation, "").as_dict(), None)


async def _batch(
    items: Items,
    rule: Rule,
    entries: Entries,
    told: dict[str, JsonValue],
    *,
    key_prefix: str,
    now: float,
) -> Explained:
    """Each item's state: `hit`, or why it is none; what is not a hit would be asked for."""
    keys = items.store_keys(key_prefix)
    distinct = list(dict.fromkeys(keys))
    found = dict(zip(distinct, await entries.get_batch(distinct), strict=True))
    states: list[JsonValue] = []
    reasons: list[str] = []
    for key, store_key in zip(items.keys, keys, strict=True):
        entry = found[store_key]
        decision = after_lookup(key, entry, NO_CONTROL, rule, now=now)
        state = _HIT
        if not isinstance(decision, Hit):
            state = (entry if isinstance(entry, MissReason) else MissReason.EXPIRED).value
            reasons.append(state)
        ttl = round(remaining_seconds(entry, now), 3) if isinstance(entry, Entry) else None
        states.append({"state": state, "ttl_seconds": ttl, "store_key": store_key})
    told["items"] = states
    if not reasons:
        return Explained(XCache.HIT, None, told, None)
    hits = len(keys) - len(reasons)
    partial = f"{MissReason.PARTIAL.value}:{hits}/{len(keys)}"
    return Explained(XCache.MISS, partial if hits else reasons[0], told, None)


def _entry(entry: Entry, now: float) -> dict[str, JsonValue]:
    usage = entry.usage
    return {
        "rule": entry.rule,
        "form": entry.form.value,
        "age_seconds": round(age_seconds(entry, now), 3),
        "ttl_seconds": round(remaining_seconds(entry, now), 3),
        "payload_bytes": len(entry.payload),
        "profile": entry.profile,
        "fallback": entry.fallback,
        "usage": None
        if usage is None
        else {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }
