"""Words, numbers and JSON values made from a seed: the same seed, the same answer, anywhere."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

_VOCABULARY = (
    "amber anchor autumn basin beacon birch bridge candle canyon cedar cinder cloud copper coral "
    "crystal dawn delta ember fable falcon fern field flint forest garden glacier grove harbor "
    "hazel horizon island ivory jasper juniper lagoon lantern linen maple marble meadow mirror "
    "mosaic nectar oasis ocean olive opal orchard pebble pine prairie quartz raven river saffron "
    "sierra silver summit thistle timber valley velvet willow winter zephyr"
)
WORDS = _VOCABULARY.split()

MAX_DEPTH = 8


def seed_of(*parts: bytes) -> bytes:
    """One seed from several parts, kept apart by their lengths."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def numbers(seed: bytes) -> Iterator[int]:
    """Endless 16-bit numbers."""
    block = seed
    while True:
        block = hashlib.sha256(block).digest()
        for at in range(0, len(block), 2):
            yield int.from_bytes(block[at : at + 2], "big")


def token_texts(seed: bytes, count: int) -> list[str]:
    """`count` tokens that read as words when they are joined."""
    source = numbers(seed)
    words = [WORDS[next(source) % len(WORDS)] for _ in range(count)]
    return [word if at == 0 else f" {word}" for at, word in enumerate(words)]


def count_tokens(text: str) -> int:
    """A rough and stable count; never 0."""
    return max(1, (len(text) + 3) // 4)


def fit(schema: Mapping[str, Any], seed: bytes) -> Any:
    """A JSON value that a simple schema accepts.

    Knows type, properties, items, enum, const, anyOf/oneOf, allOf of one, $ref into the document,
    minItems, minimum, maximum. Recursion ends at `MAX_DEPTH`, by the first branch that ends.
    """
    return _fit(schema, schema, numbers(seed), 0)


def _fit(
    schema: Mapping[str, Any], root: Mapping[str, Any], source: Iterator[int], depth: int
) -> Any:
    schema = _resolve(schema, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][next(source) % len(schema["enum"])]
    for member in ("anyOf", "oneOf", "allOf"):
        if schema.get(member):
            # Near the bottom the last branch is taken: it is `null` in the optional of most tools.
            branch = schema[member][-1 if depth >= MAX_DEPTH else 0]
            return _fit(branch, root, source, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = kind[-1 if depth >= MAX_DEPTH else 0]
    match kind:
        case "object":
            properties = schema.get("properties", {})
            return {name: _fit(part, root, source, depth + 1) for name, part in properties.items()}
        case "array":
            count = schema.get("minItems", 0 if depth >= MAX_DEPTH else 2)
            return [_fit(schema.get("items", {}), root, source, depth + 1) for _ in range(count)]
        case _:
            return _scalar(str(kind), schema, next(source))


def _scalar(kind: str, schema: Mapping[str, Any], number: int) -> Any:
    low = schema.get("minimum", 0)
    high = schema.get("maximum", low + 100)
    match kind:
        case "integer":
            return int(low) + number % (int(high) - int(low) + 1)
        case "number":
            return low + (high - low) * (number % 1000) / 1000
        case "boolean":
            return number % 2 == 0
        case "null":
            return None
        case _:
            return WORDS[number % len(WORDS)]


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    while (reference := schema.get("$ref")) is not None:
        schema = root
        for step in str(reference).removeprefix("#").strip("/").split("/"):
            schema = schema[step] if step else schema
    return schema
