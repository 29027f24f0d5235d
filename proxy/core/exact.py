"""JSON numbers and members read without loss, for bodies that a fast parser would round."""

import json
import re
from math import isinf, log10
from typing import Final, NoReturn, Self

from proxy.core.request import Flaw
from proxy.core.wire import JsonValue

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# From here on neighbouring integers share a double, so the token itself must be read.
VAST: Final = 2.0**53
# What a body's decimals may take, spelled out as integers: `1e308` grows sixty-fold.
MOST_SPELLED_DIGITS: Final = 65_536
# Python converts at least this many digits, however its limit is set.
_CONVERTED_DIGITS: Final = 640


class LongInteger(float):
    """An integer too long to convert: `digits` is its spelling.

    The float value is infinite, good for comparisons with limits only.
    """

    digits: str

    def __new__(cls, digits: str) -> Self:
        number = super().__new__(cls, digits)
        number.digits = digits
        return number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LongInteger) and self.digits == other.digits

    # float brings its own `!=`, which does not ask `==`.
    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.digits)


def exact_integer(token: str) -> JsonValue:
    """The number of an integer token, of any length."""
    return int(token) if len(token) <= _CONVERTED_DIGITS else LongInteger(token)


def exact_decimal(token: str) -> JsonValue:
    """The number of a token with fraction or exponent.

    An integer where the token is one; else the nearest double, as an integer where its shortest
    spelling is one; infinite where it is beyond a double's range.
    """
    value = float(token)
    if not value.is_integer():  # also an infinite one
        return value
    if -VAST < value < VAST:
        return int(value)
    digits = _integral_digits(token) or _integral_digits(repr(value))
    assert digits is not None  # every double from 2 ** 53 on is an integer
    return int(digits)


def _integral_digits(token: str) -> str | None:
    """The plain digits of a decimal token if it is an integer, by its text alone."""
    sign, unsigned = ("-", token[1:]) if token.startswith("-") else ("", token)
    mantissa, _, exponent = unsigned.lower().partition("e")
    whole, _, fraction = mantissa.partition(".")
    shift = _exponent(exponent) - len(fraction)
    digits = (whole + fraction).lstrip("0")
    if shift >= 0:
        return sign + digits + "0" * shift
    if digits[shift:].strip("0"):
        return None
    return sign + digits[:shift]


def _exponent(text: str) -> int:
    # Leading zeros go first: int() refuses too many digits, and counts them.
    sign = -1 if text.startswith("-") else 1
    return sign * int(text.lstrip("+-").lstrip("0") or "0")


class _Reading:
    """The hooks of one exact reading, and the flaws that they met."""

    def __init__(self) -> None:
        self.duplicate = False
        self.out_of_range = False
        self._spelled_digits = 0

    def members(self, pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        members = dict(pairs)
        self.duplicate |= len(members) != len(pairs)
        return members

    def decimal(self, token: str) -> JsonValue:
        if self.out_of_range:  # there is no key, so nothing need be exact
            return float(token)
        number = exact_decimal(token)
        if type(number) is float:
            self.out_of_range = isinf(number)
        elif not -VAST < (value := float(token)) < VAST:
            self._spelled_digits += int(log10(abs(value))) + 1
            self.out_of_range = self._spelled_digits > MOST_SPELLED_DIGITS
        return number

    def constant(self, token: str) -> NoReturn:
        raise ValueError(f"{token} is not a JSON value")


def read_exactly(raw: bytes, max_depth: int) -> tuple[JsonValue, Flaw | None]:
    """Parse by the standard library, keeping every number; the flaw says what can't be kept.

    ValueError where it is not JSON, RecursionError where it is deeper than `max_depth`.
    """
    reading = _Reading()
    parsed: JsonValue = json.loads(
        raw.decode(),
        object_pairs_hook=reading.members,
        parse_int=exact_integer,
        parse_float=reading.decimal,
        parse_constant=reading.constant,
    )
    surrogate = _has_lone_surrogate(parsed, max_depth)
    if reading.duplicate:
        return parsed, Flaw.DUPLICATE_MEMBER
    if surrogate:
        return parsed, Flaw.LONE_SURROGATE
    if reading.out_of_range:
        return parsed, Flaw.NUMBER_RANGE
    return parsed, None


def _has_lone_surrogate(value: JsonValue, levels: int) -> bool:
    if type(value) is str:
        return _SURROGATE.search(value) is not None
    if type(value) is not dict and type(value) is not list:
        return False
    if levels == 0:
        raise RecursionError
    strings = type(value) is dict and any(map(_SURROGATE.search, value))
    inside = value.values() if type(value) is dict else value
    # Every branch is walked, for its depth.
    return sum(_has_lone_surrogate(element, levels - 1) for element in inside) > 0 or strings
