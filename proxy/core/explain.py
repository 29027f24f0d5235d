"""Why a request has the key it has: rendered from the derivation itself, so it cannot drift."""

from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from proxy.core.key import SCHEME_VERSION, Derivation, NoKey
from proxy.core.projection import Projection
from proxy.core.request import Flaw
from proxy.core.wire import JsonValue


@dataclass(frozen=True, slots=True)
class Fields:
    """Every member of the body in one place each, and what the rule lists but the body lacks.

    `in_key` may be there in part (a path reached into it); `model` is hashed under the internal
    name; `barring` are out of the key and forbid one; `ignored` are out without effect.
    """

    in_key: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    delivery: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    barring: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A rule that was tried before, and why it did not match."""

    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What led to a key, or to none; all names are in code point order."""

    endpoint: str
    model: str
    scope: str
    scheme: int
    rule: str | None
    passed_over: tuple[PassedOver, ...]
    fields: Fields
    canonical: str | None
    digest: str | None
    store_key: str | None
    no_key: NoKey | None
    field: str | None
    flaw: Flaw | None

    def as_dict(self) -> dict[str, JsonValue]:
        """The same as JSON values."""
        plain: dict[str, JsonValue] = orjson.loads(orjson.dumps(self))
        return plain


def explain(derivation: Derivation, key_prefix: str) -> Explanation:
    """The explanation of a derivation; `key_prefix` only completes the store key."""
    request, key = derivation.request, derivation.key
    return Explanation(
        endpoint=request.endpoint.value,
        model=_printable(request.model),
        scope=request.scope,
        scheme=SCHEME_VERSION,
        rule=None if derivation.rule is None else derivation.rule.name,
        passed_over=tuple(PassedOver(rule.name, why) for rule, why in derivation.passed_over),
        fields=_fields(derivation.projection, request.fields),
        canonical=derivation.canonical.decode() if key is not None else None,
        digest=None if key is None else key.digest,
        store_key=None if key is None else key.store_key(key_prefix),
        no_key=derivation.reason,
        field=None if derivation.field is None else _printable(derivation.field),
        flaw=request.flaw,
    )


def _fields(projection: Projection | None, present: Iterable[str]) -> Fields:
    if projection is None:
        return Fields()
    names = sorted(present)
    barring = set(projection.barring(dict.fromkeys(names)))
    places: dict[str, list[str]] = {}
    for name in names:
        places.setdefault(_place(projection, name, barring), []).append(_printable(name))
    absent = sorted(projection.listed.keys() - set(names))
    return Fields(**{place: tuple(found) for place, found in places.items()}, absent=tuple(absent))


def _place(projection: Projection, name: str, barring: set[str]) -> str:
    if projection.reach(name) is not None:
        return "in_key"
    if name in projection.excluded:
        return "excluded"
    if name == "model":
        return "model"
    if name in projection.known:
        return "delivery"
    return "barring" if name in barring else "ignored"


def _printable(text: str) -> str:
    # A flawed body can hold half a character, which no terminal and no JSON takes.
    return text.encode(errors="backslashreplace").decode()
