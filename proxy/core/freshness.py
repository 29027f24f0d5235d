"""How long an entry is fresh, and how old it is (RFC 9111 section 4.2, with our own clock)."""

from math import log
from typing import Protocol

from proxy.core.control import directives, seconds
from proxy.core.rules import Rule

_UNLIKELY = 10.0  # -log of 1 in 22,000


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


def is_stale_within(entry: Dated, seconds: float, now: float) -> bool:
    """Whether the entry is past its freshness, by less than `seconds`."""
    return entry.fresh_until <= now < entry.fresh_until + seconds


class Refreshable(Dated, Protocol):
    """An entry that says how long the upstream took for it."""

    @property
    def took_seconds(self) -> float: ...


def refreshes_ahead(entry: Refreshable, now: float, *, eagerness: float, draw: float) -> bool:
    """Whether this hit is the one that has a fresh entry replaced before its time.

    `draw` is random, in (0, 1]. The sooner the end and the longer the upstream takes, the likelier:
    so the more often an entry is asked for, the surer it is replaced in time, once (XFetch:
    Vattani, Chierichetti and Lowenstein, Optimal Probabilistic Cache Stampede Prevention, 2015).
    Here the new answer is to be there before the end, so the time that it takes is added.
    """
    return now + entry.took_seconds * (1.0 - eagerness * log(draw)) >= entry.fresh_until


def certain_until(entry: Refreshable, *, eagerness: float) -> float:
    """Until when a hit is as good as never the one that refreshes ahead (less than 1 in 20,000)."""
    return entry.fresh_until - entry.took_seconds * (1.0 + eagerness * _UNLIKELY)


def jittered(lifetime: float, jitter: float, digest: str) -> float:
    """The lifetime, shortened by a share of up to `jitter` that the key's digest decides.

    Entries that are stored at one moment so expire at many, the same on every replica.
    """
    if not jitter:
        return lifetime
    return lifetime * (1.0 - jitter * int(digest[:8], 16) / 0xFFFFFFFF)


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
