"""How long an entry is fresh, and how old it is (RFC 9111 section 4.2, with our own clock)."""

from typing import Protocol

from proxy.core.control import directives, seconds
from proxy.core.rules import Rule


class Dated(Protocol):
    """Whatever has the times of an entry, in wall-clock seconds."""

    @property
    def stored_at(self) -> float: ...

    @property
    def fresh_until(self) -> float: ...


def age_seconds(entry: Dated, now: float) -> float:
    """Seconds since the entry was stored; never negative, whatever the clocks did."""
    return max(0.0, now - entry.stored_at)


def remaining_seconds(entry: Dated, now: float) -> float:
    """Seconds for which the entry is still fresh; 0 or less when it is not."""
    return entry.fresh_until - now


def is_fresh(entry: Dated, now: float) -> bool:
    """Fresh means before `fresh_until` by this machine's wall clock."""
    return now < entry.fresh_until


def upstream_lifetime_seconds(cache_control: str | None) -> float | None:
    """What an upstream's `Cache-Control` allows: None where it sets nothing, 0 for never.

    `s-maxage` counts before `max-age`: this cache is a shared one (RFC 9111 section 5.2.2.10).
    """
    found = directives(cache_control or "")
    if found.keys() & {"no-store", "no-cache", "private"}:
        return 0.0
    for name in ("s-maxage", "max-age"):
        if name in found:
            return seconds(found[name])
    return None


def lifetime_seconds(rule: Rule, *, fallback: bool, cache_control: str | None) -> float:
    """The freshness lifetime of a new entry.

    A fallback's answer stays for `fallback_ttl_seconds` at most, never above the rule's ttl; the
    upstream's own `Cache-Control` counts only where the rule honors it, and can only shorten.
    """
    lifetime = rule.ttl_seconds
    if fallback:
        lifetime = min(lifetime, rule.fallback_ttl_seconds)
    if rule.honor_upstream:
        allowed = upstream_lifetime_seconds(cache_control)
        if allowed is not None:
            lifetime = min(lifetime, allowed)
    return lifetime
