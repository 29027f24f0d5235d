"""The cache key: one derivation for read, write, delete, batch, command line and explanation.

docs/keys.md is the specification; tests/vectors/keys.json holds frozen examples.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from hashlib import sha256
from typing import Final

from proxy.core.canonical import canonical_json
from proxy.core.matching import RuleSet
from proxy.core.projection import MODEL_MEMBER, Projection
from proxy.core.request import CacheableRequest
from proxy.core.rules import Rule
from proxy.core.scope import credential_fingerprint, make_scope
from proxy.core.values import value
from proxy.core.wire import Endpoint, JsonValue

__all__ = [
    "SCHEME_VERSION",
    "CacheKey",
    "Derivation",
    "NoKey",
    "create_cache_key",
    "credential_fingerprint",
    "derive",
    "make_scope",
]

# A new number with every change of what is hashed or how: no old entry is found then.
SCHEME_VERSION: Final = 1

_STORE_KEY: Final = re.compile(
    r"v([1-9][0-9]*):([a-z]+):([a-z0-9-]+):([0-9a-f]{64})(?::[1-9][0-9]*)?"
)


class NoKey(StrEnum):
    """Why a request has no key."""

    # No rule matches.
    NO_RULE = "no-rule"
    # The request carries none of the fields that the rule includes.
    NO_INCLUDED_FIELD = "no-included-field"
    # A field that is not in the key changes the answer (`unlisted_fields`).
    UNLISTED_FIELD = "unlisted-field"
    # The body holds what parsers read differently, or can't keep.
    UNREPRESENTABLE = "unrepresentable"
    # A field has the name under which the model is hashed.
    RESERVED_FIELD = "reserved-field"


@value(frozen=True, slots=True)
class CacheKey:
    """What names an entry; `digest` is 64 hex digits, `scope` is of `[a-z0-9-]`."""

    scheme: int
    endpoint: Endpoint
    scope: str
    digest: str

    def store_key(self, prefix: str, variant: int = 0) -> str:
        """The key as stores see it; that of a further answer to the same ends in its number."""
        key = f"{prefix}v{self.scheme}:{self.endpoint.value}:{self.scope}:{self.digest}"
        return f"{key}:{variant}" if variant else key

    @classmethod
    def parse(cls, store_key: str, prefix: str) -> "CacheKey":
        """Read a store key back, of any variant; ValueError where it is none under this prefix."""
        parts = _STORE_KEY.fullmatch(store_key.removeprefix(prefix))
        if not store_key.startswith(prefix) or parts is None:
            raise ValueError("not a store key under this prefix")
        scheme, endpoint, scope, digest = parts.groups()
        return cls(int(scheme), Endpoint(endpoint), scope, digest)


@value(frozen=True, slots=True)
class Derivation:
    """A request's way to its key.

    Either `key` is set, with `canonical` the bytes that were hashed, or `reason` says why there
    is none, with `field` the member in the way where there is one. `rule` is the rule that won.
    """

    request: CacheableRequest
    rules: RuleSet
    rule: Rule | None = None
    projection: Projection | None = None
    key: CacheKey | None = None
    canonical: bytes = b""
    reason: NoKey | None = None
    field: str | None = None

    @property
    def passed_over(self) -> list[tuple[Rule, str]]:
        """The rules tried before, and why each did not match."""
        return self.rules.passed_over(self.request)


def create_cache_key(request: CacheableRequest, rules: RuleSet) -> CacheKey | None:
    """The key of a request; None where no rule matches or the rule allows no key."""
    return derive(request, rules).key


def derive(request: CacheableRequest, rules: RuleSet) -> Derivation:
    """The key of a request, with all that is needed to explain it, in one pass."""
    found = rules.find(request)
    if found is None:
        return Derivation(request, rules, reason=NoKey.NO_RULE)
    rule, projection = found.rule, found.projection
    taken = projection.apply(request.fields)
    if obstacle := _obstacle(request, projection, taken):
        reason, field = obstacle
        return Derivation(request, rules, rule, projection, reason=reason, field=field)
    taken[MODEL_MEMBER] = request.model
    try:
        canonical = canonical_json(taken, is_plain=request.is_plain)
    except ValueError:  # a model name or a replacement that is not Unicode
        return Derivation(request, rules, rule, projection, reason=NoKey.UNREPRESENTABLE)
    digest = sha256(canonical).hexdigest()
    key = CacheKey(SCHEME_VERSION, request.endpoint, request.scope, digest)
    return Derivation(request, rules, rule, projection, key, canonical)


def _obstacle(
    request: CacheableRequest, projection: Projection, taken: Mapping[str, JsonValue]
) -> tuple[NoKey, str | None] | None:
    if request.flaw is not None:
        return NoKey.UNREPRESENTABLE, None
    if barring := projection.barring(request.fields):
        return NoKey.UNLISTED_FIELD, barring[0]
    if MODEL_MEMBER in taken:
        return NoKey.RESERVED_FIELD, MODEL_MEMBER
    if not projection.holds_any(taken):
        return NoKey.NO_INCLUDED_FIELD, None
    return None
