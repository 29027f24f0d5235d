"""Reading a body exactly, and writing JSON in its one canonical form.

The prose of both is docs/keys.md. The fast path is orjson alone; whatever orjson would round or
drop in silence (duplicate members, integers beyond 64 bits) is detected on its bytes and read
again by the standard library with every number kept exact.
"""

import re
from collections.abc import Collection
from typing import Final

import orjson

from proxy.core.exact import VAST, LongInteger, exact_decimal, read_exactly
from proxy.core.request import Flaw
from proxy.core.values import value
from proxy.core.wire import JsonValue
from proxy.errors import MalformedBody

MAX_DEPTH: Final = 254

_KINDS: Final = {
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    LongInteger: "a number",
    type(None): "null",
}
# What a body must hold to be refused by orjson though it is JSON: an escape of a surrogate, or a
# number beyond a double's range. Without it the slow reading is spared.
_MAY_BE_FLAWED: Final = re.compile(rb"\\u[dD]|[0-9][eE]\+?[0-9]|[0-9]{309}")
# orjson gives numbers an exponent below 1e-5, ECMAScript below 1e-6.
_PLAIN_FROM: Final = 1e-6
_ORJSON_PLAIN_FROM: Final = 1e-5
_LEAVES: Final = frozenset({str, int, bool, type(None)})


@value(frozen=True, slots=True)
class JsonBody:
    """A parsed body: its members, and why it can't be represented exactly, if it can't.

    `is_plain` says that no number in it has to be spelled in a way of its own.
    """

    fields: dict[str, JsonValue]
    flaw: Flaw | None = None
    is_plain: bool = False


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
    floats = _floats(parsed.values(), [])
    if (
        raw.count(b":") != written.count(b":")
        or (b"\\" in raw and b"\\u003" in raw)  # one byte is found much faster
        or any(map(_may_be_rounded, floats))
    ):
        return _exactly(raw)
    return JsonBody(parsed, is_plain=not any(map(_is_spelled_otherwise, floats)))


def canonical_json(value: JsonValue, *, is_plain: bool = False) -> bytes:
    """The canonical form; ValueError where there is none (lone surrogates, 255 levels).

    `is_plain` is that of a body that `value` was taken from: then its numbers are not looked at.
    """
    if is_plain or not any(map(_is_spelled_otherwise, _floats((value,), []))):
        try:
            return _write(value)
        except TypeError:  # an integer beyond 64 bits, or what has no canonical form
            pass
    try:
        return _write(_spelled(value))
    except TypeError as error:
        raise ValueError(f"no canonical JSON: {error}") from None


def _write(value: object) -> bytes:
    # Sorting UTF-8 bytes is sorting by code point. Escapes are those of RFC 8785.
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _floats(members: Collection[JsonValue], found: list[float]) -> list[float]:
    """Add to `found` the floats in `members`."""
    # At C speed over the leaves: token arrays have 100,000 elements.
    if _LEAVES.issuperset(map(type, members)):
        return found
    for member in members:
        if type(member) is dict:
            _floats(member.values(), found)
        elif type(member) is list:
            _floats(member, found)
        elif isinstance(member, float):
            found.append(member)
    return found


def _may_be_rounded(value: float) -> bool:
    return not -VAST < value < VAST


def _is_spelled_otherwise(value: float) -> bool:
    """Whether the canonical spelling is not the one that orjson writes."""
    return (
        value.is_integer()
        or _PLAIN_FROM <= abs(value) < _ORJSON_PLAIN_FROM
        or type(value) is LongInteger
    )


def _spelled(value: JsonValue) -> object:
    """A copy to be written, with numbers spelled out where orjson would spell otherwise."""
    if type(value) is dict:
        return {name: _spelled(member) for name, member in value.items()}
    if type(value) is list:
        return [_spelled(element) for element in value]
    if type(value) is LongInteger:
        return orjson.Fragment(value.digits)
    if type(value) is float:
        return _spelled_float(value)
    if type(value) is int and not -(2**63) <= value < 2**64:
        return orjson.Fragment(str(value))
    return value


def _spelled_float(value: float) -> object:
    if not _is_spelled_otherwise(value):
        return value
    if value.is_integer():
        return orjson.Fragment(str(exact_decimal(repr(value))))
    sign = "-" if value < 0 else ""
    digits = repr(abs(value)).partition("e")[0].replace(".", "")
    return orjson.Fragment(f"{sign}0.00000{digits}")


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
