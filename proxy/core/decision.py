"""What to do with a request: pure, closed, and explained by enum members.

`before_lookup` says whether the cache is asked at all, `after_lookup` what the answer means.
"""

from dataclasses import dataclass
from typing import Final, assert_never

from proxy.core.control import NO_CONTROL, ClientControl
from proxy.core.entry import Entry
from proxy.core.freshness import age_seconds, is_fresh, is_stale_within, remaining_seconds
from proxy.core.key import CacheKey, Derivation, NoKey
from proxy.core.outcome import BypassReason, Forwarded, MissReason
from proxy.core.rules import Rule
from proxy.core.values import value

# Names that mean something are shorter; a header or a log line must not take any length.
_SHOWN_CHARACTERS: Final = 80


@value(frozen=True, slots=True)
class Hit:
    """Serve this entry."""

    key: CacheKey
    entry: Entry
    age_seconds: float
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class StaleHit:
    """Serve this entry, although its time is over; `revalidate` says to fetch a new one beside.

    `ttl_seconds` is negative: for so long it has not been fresh.
    """

    key: CacheKey
    entry: Entry
    age_seconds: float
    ttl_seconds: float
    revalidate: bool = False

    @classmethod
    def of(cls, key: CacheKey, entry: Entry, now: float) -> "StaleHit":
        """The entry at wall time `now`, served because nothing better can be had."""
        return cls(key, entry, age_seconds(entry, now), remaining_seconds(entry, now))


@value(frozen=True, slots=True)
class LookUp:
    """Ask the store for this key."""

    key: CacheKey


@dataclass(frozen=True, slots=True)
class Forward:
    """Ask the upstream; the answer may become an entry under `key`.

    `stale` is what may be served where the upstream fails.
    """

    key: CacheKey
    forwarded: Forwarded
    reason: MissReason
    stale: Entry | None = None


@dataclass(frozen=True, slots=True)
class Bypass:
    """Ask the upstream as if there were no cache; `field` names what stood in the way."""

    reason: BypassReason
    field: str | None = None

    @property
    def forwarded(self) -> Forwarded:
        """Always `bypass`, as in the header."""
        return Forwarded.BYPASS

    @property
    def detail(self) -> str:
        """The reason, with the field it is about; that is the client's text, so it is cut."""
        if not self.field:
            return self.reason.value
        return f"{self.reason.value}:{self.field[:_SHOWN_CHARACTERS]}"


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer 504: the client wanted a cached answer only."""

    reason: MissReason | BypassReason


def control_of(derivation: Derivation, asked: ClientControl) -> ClientControl:
    """The control that counts: a rule can refuse to let clients steer."""
    if derivation.rule is not None and not derivation.rule.client_control:
        return NO_CONTROL
    return asked


def may_refresh(control: ClientControl) -> bool:
    """Whether what this client asks may have a new answer fetched in the background."""
    return not (control.only_if_cached or control.no_store)


def before_lookup(
    derivation: Derivation, control: ClientControl, *, enabled: bool, deliverable: bool = True
) -> LookUp | Forward | Bypass | Refuse:
    """What is known before the store is asked."""
    key = derivation.key
    bypass = _bypass(derivation, control, enabled=enabled, deliverable=deliverable)
    if bypass is not None:
        return Refuse(bypass.reason) if control.only_if_cached else bypass
    assert key is not None, "no key is a reason to bypass"
    if not control.no_cache:
        return LookUp(key)
    if control.only_if_cached:
        return Refuse(MissReason.NO_CACHE)
    return Forward(key, Forwarded.REQUEST, MissReason.NO_CACHE)


def _bypass(
    derivation: Derivation, control: ClientControl, *, enabled: bool, deliverable: bool
) -> Bypass | None:
    if not enabled:
        return Bypass(BypassReason.DISABLED)
    if derivation.key is None:
        return Bypass(bypass_reason(derivation.reason), derivation.field)
    if not deliverable:
        # The encoding is not in the key, so an answer in a strange one must not get under it.
        return Bypass(BypassReason.UNLISTED_FIELD, "encoding_format")
    return Bypass(BypassReason.CLIENT_PASS) if control.passes else None


def after_lookup(
    key: CacheKey, found: Entry | MissReason, control: ClientControl, rule: Rule, *, now: float
) -> Hit | StaleHit | Forward | Refuse:
    """What the store's answer means at wall time `now`, under the rule in force."""
    if isinstance(found, MissReason):
        return _forward(key, Forwarded.MISS, found, control)
    age = age_seconds(found, now)
    if is_fresh(found, now):
        if control.max_age_seconds is not None and age > control.max_age_seconds:
            return _forward(key, Forwarded.REQUEST, MissReason.MAX_AGE, control)
        return Hit(key, found, age, remaining_seconds(found, now))
    # Who sets a max-age says how old an answer may be, and allows none beyond its time
    # (RFC 9111 section 5.2.1.1).
    allows_stale = control.max_age_seconds is None
    if allows_stale and is_stale_within(found, rule.stale_while_revalidate_seconds, now):
        return StaleHit(key, found, age, remaining_seconds(found, now), may_refresh(control))
    usable = allows_stale and is_stale_within(found, rule.stale_if_error_seconds, now)
    return _forward(
        key, Forwarded.STALE, MissReason.EXPIRED, control, stale=found if usable else None
    )


def unservable(key: CacheKey, control: ClientControl) -> Forward | Refuse:
    """The entry is fresh but can't be put into the form that the request asks for."""
    return _forward(key, Forwarded.MISS, MissReason.FORM, control)


def _forward(
    key: CacheKey,
    forwarded: Forwarded,
    reason: MissReason,
    control: ClientControl,
    *,
    stale: Entry | None = None,
) -> Forward | Refuse:
    return Refuse(reason) if control.only_if_cached else Forward(key, forwarded, reason, stale)


def bypass_reason(reason: NoKey | None) -> BypassReason:
    """Why a derivation without a key bypasses the cache."""
    match reason:
        case NoKey.NO_RULE | None:
            return BypassReason.NO_RULE
        case NoKey.NO_INCLUDED_FIELD:
            return BypassReason.NO_KEY_FIELD
        case NoKey.UNLISTED_FIELD:
            return BypassReason.UNLISTED_FIELD
        case NoKey.UNREPRESENTABLE:
            return BypassReason.UNREPRESENTABLE
        case NoKey.RESERVED_FIELD:
            return BypassReason.RESERVED_FIELD
        case _:
            assert_never(reason)
