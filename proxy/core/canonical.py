"""Reading a body exactly, and writing JSON in its one canonical form.

The prose of both is docs/keys.md. The fast path is orjson alone; whatever orjson would round or
drop in silence (duplicate members, integers beyond 64 bits) is detected on its bytes and read
again by the standard library with every number kept exact.
"""

import re
from dataclasses import dataclass
from typing import Final

import orjson

from proxy.core.exact import VAST, ExactNumber, exact_float, has_other_notation, read_exactly
from proxy.core.request import Flaw
from proxy.core.wire import JsonValue
from proxy.errors import MalformedBody

MAX_DEPTH: Final = 254

_KINDS: Final = {
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    ExactNumber: "a number",
    type(None): "null",
}
# What a body must hold to be refused by orjson though it is JSON: an escape of a surrogate, or a
# number beyond a double's range. Without it the slow reading is spared.
_MAY_BE_FLAWED: Final = re.compile(rb"\\u[dD]|[0-9][eE]\+?[0-9]|[0-9]{309}")
_LEAVES: Final = frozenset({str, int, bool, type(None), ExactNumber})


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A parsed body: its members, and why it can't be represented exactly, if it can't."""

    fields: dict[str, JsonValue]
    flaw: Flaw | None = None


def parse_body(raw: bytes) -> JsonBody:
    """Read a request body; MalformedBody where it is not a JSON object of at most 254 levels."""
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        return _refused(raw, error)
    if type(parsed) is not dict:
        raise _not_an_object(parsed)
    try:
        written = orjson.dumps(parsed)
    except TypeError:  # orjson writes 254 levels, though it reads 1024
        raise _too_deep() from None
    # orjson keeps the last of duplicate members. Every member has one colon, and a colon in a
    # string is written as itself, so equal counts mean that none was dropped; only an escaped
    # colon (\u003a) breaks this, and is read slowly.
    if raw.count(b":") != written.count(b":") or b"\\u003" in raw:
        return _exactly(raw)
    if _unsettled(parsed):
        return _exactly(raw) if _holds_vast(parsed) else JsonBody(_settled_members(parsed))
    return JsonBody(parsed)


def canonical_json(value: JsonValue) -> bytes:
    """The canonical form; ValueError where there is none (lone surrogates, 255 levels)."""
    try:
        return _write(_settled(value) if _unsettled(value) else value)
    except TypeError:  # an integer beyond 64 bits, or what has no canonical form
        try:
            return _write(_settled(value))
        except TypeError as error:
            raise ValueError(f"no canonical JSON: {error}") from None


def _write(value: JsonValue) -> bytes:
    # Sorting UTF-8 bytes is sorting by code point. Escapes are those of RFC 8785.
    return orjson.dumps(value, default=_fragment, option=orjson.OPT_SORT_KEYS)


def _fragment(value: object) -> orjson.Fragment:
    if isinstance(value, ExactNumber):
        return orjson.Fragment(value.text)
    raise TypeError


def _unsettled(value: JsonValue) -> bool:
    """Whether any float in `value` would not be written canonically by orjson."""
    if type(value) is float:
        return has_other_notation(value)
    if type(value) is dict:
        for member in value.values():
            if type(member) not in _LEAVES and _unsettled(member):
                return True
    # At C speed over the leaves: token arrays have 100,000 elements.
    elif type(value) is list and not _LEAVES.issuperset(map(type, value)):
        return any(map(_unsettled, value))
    return False


def _holds_vast(value: JsonValue) -> bool:
    """Whether any float may stand for an integer that a double can't tell from its neighbour."""
    if type(value) is float:
        return not -VAST < value < VAST
    if type(value) is dict:
        return any(map(_holds_vast, value.values()))
    return type(value) is list and any(map(_holds_vast, value))


def _settled_members(members: dict[str, JsonValue]) -> dict[str, JsonValue]:
    return {name: _settled(member) for name, member in members.items()}


def _settled(value: JsonValue) -> JsonValue:
    """A copy in which every number is one that orjson writes canonically."""
    if type(value) is float:
        return exact_float(value)
    if type(value) is int and not -(2**63) <= value < 2**64:
        return ExactNumber(str(value))
    if type(value) is dict:
        return _settled_members(value)
    if type(value) is list:
        return [_settled(element) for element in value]
    return value


def _exactly(raw: bytes) -> JsonBody:
    try:
        parsed, flaw = read_exactly(raw, MAX_DEPTH)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _malformed(str(error)) from None
    if type(parsed) is not dict:
        raise _not_an_object(parsed)
    return JsonBody(parsed, flaw)


def _refused(raw: bytes, error: orjson.JSONDecodeError) -> JsonBody:
    """What orjson refuses is malformed, unless it only could not represent it."""
    if not raw.strip():
        raise _malformed("it is empty")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise _malformed("it starts with a byte order mark")
    try:
        raw.decode()
    except UnicodeDecodeError as undecodable:
        raise _malformed(f"it is not UTF-8 at byte {undecodable.start}") from None
    if "depth" in error.msg:
        raise _too_deep()
    if _MAY_BE_FLAWED.search(raw) is None:
        raise _malformed(error.msg)
    return _exactly(raw)


def _malformed(why: str) -> MalformedBody:
    return MalformedBody(f"The body is not valid JSON: {why}.")


def _too_deep() -> MalformedBody:
    return MalformedBody(f"The body is too deep: more than {MAX_DEPTH} levels of nesting.")


def _not_an_object(parsed: object) -> MalformedBody:
    return MalformedBody(f"The body must be a JSON object, not {_KINDS[type(parsed)]}.")
