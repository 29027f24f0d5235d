"""The items of an embeddings request, each with the key of a request for it alone (B30).

`input: "a"`, `input: ["a"]` and the item "a" of a batch share one entry. docs/keys.md specifies
this, tests/vectors/items.json holds frozen examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final, TypeAlias

import orjson

from proxy.core.canonical import canonical_json
from proxy.core.key import CacheKey, Derivation, derive
from proxy.core.matching import RuleSet
from proxy.core.projection import MODEL_MEMBER, Projection
from proxy.core.request import CacheableRequest
from proxy.core.wire import Endpoint, JsonValue

Item: TypeAlias = str | list[JsonValue]
"""A text, or an array of token numbers."""

INPUT: Final = "input"
_TEXT: Final = frozenset({str})
_ARRAY: Final = frozenset({list})
_TOKEN: Final = frozenset({int})


@dataclass(frozen=True, slots=True)
class Items:
    """The items in the order of the request; two that are the same have the same key.

    `values` are as the client sent them, and there are as many `keys`.
    """

    values: Sequence[Item]
    keys: Sequence[CacheKey]

    def __len__(self) -> int:
        return len(self.values)

    def store_keys(self, prefix: str) -> list[str]:
        """The keys as stores see them."""
        stem = self.keys[0].store_key(prefix).removesuffix(self.keys[0].digest)
        return [stem + key.digest for key in self.keys]


def derive_items(request: CacheableRequest, rules: RuleSet) -> tuple[Derivation, Items | None]:
    """The derivation of a request, and its items where those are cached one by one.

    A request for one item is derived as if it had named that alone, without an array around it.
    """
    derivation = derive(request, rules)
    items = items_of(derivation)
    if items is not None and len(items) == 1 and items.keys[0] != derivation.key:
        alone = replace(request, fields={**request.fields, INPUT: items.values[0]})
        return replace(derive(alone, rules), request=request), items
    return derivation, items


def items_of(derivation: Derivation) -> Items | None:
    """The items of a request that has a key; None where it can only be cached as a whole.

    That is where the rule takes `input` in part or by its elements, or where `input` is neither a
    text, nor texts, nor one or more arrays of token numbers.
    """
    request, projection, whole = derivation.request, derivation.projection, derivation.key
    if request.endpoint is not Endpoint.EMBEDDINGS or projection is None or whole is None:
        return None
    given = request.fields.get(INPUT)
    values = split_input(given)
    if values is None or not _takes_input(projection):
        return None
    if values[0] is given:
        return Items(values, (whole,))
    hashed = projection.apply({INPUT: list[JsonValue](values)})[INPUT]
    assert isinstance(hashed, list)
    return Items(values, _keys(derivation, projection, hashed))


def split_input(given: JsonValue) -> Sequence[Item] | None:
    """The items of an `input`; None for a shape that is not known."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list) or not given:
        return None
    kinds = set(map(type, given))
    if kinds == _TOKEN:
        return (given,)
    if kinds == _TEXT:
        return [item for item in given if isinstance(item, str)]
    if kinds == _ARRAY:
        arrays = [item for item in given if isinstance(item, list)]
        if all(set(map(type, array)) == _TOKEN for array in arrays):
            return arrays
    return None


def _takes_input(projection: Projection) -> bool:
    """Whether `input` is hashed whole, and as a text alone would be."""
    by_element = any(
        change.path.root == INPUT and change.path.steps for change in projection.normalize
    )
    return projection.reach(INPUT) is True and INPUT not in projection.pruned and not by_element


def _keys(
    derivation: Derivation, projection: Projection, hashed: Sequence[JsonValue]
) -> list[CacheKey]:
    """What `derive` makes of each item alone, where all but the item is hashed once."""
    whole = derivation.key
    assert whole is not None
    before, after = _around(derivation, projection)
    begun = sha256(before)
    keys: list[CacheKey] = []
    known: dict[bytes, CacheKey] = {}
    for value in hashed:
        canonical = _written(value)
        key = known.get(canonical)
        if key is None:
            digest = begun.copy()
            digest.update(canonical + after)
            key = CacheKey(whole.scheme, whole.endpoint, whole.scope, digest.hexdigest())
            known[canonical] = key
        keys.append(key)
    return keys


def _around(derivation: Derivation, projection: Projection) -> tuple[bytes, bytes]:
    """The hashed text before and after the value of `input`."""
    fields = derivation.request.fields
    rest: Mapping[str, JsonValue] = {k: fields[k] for k in fields if k != INPUT}
    taken = projection.apply(rest)
    taken[MODEL_MEMBER] = derivation.request.model
    before = canonical_json({name: taken[name] for name in taken if name < INPUT})
    after = canonical_json({name: taken[name] for name in taken if name > INPUT})
    comma = b"," if before != b"{}" else b""
    return before[:-1] + comma + b'"input":', b"," + after[1:]


def _written(value: JsonValue) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # a whole number beyond 64 bits
        return canonical_json(value)
