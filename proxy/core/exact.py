"""JSON numbers and members read without loss, for bodies that a fast parser would round."""

import json
import re
from math import isinf
from typing import Final, NoReturn, Self

from proxy.core.request import Flaw
from proxy.core.wire import JsonValue

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# From here on neighbouring integers share a double, so the token itself must be read.
VAST: Final = 2.0**53
# From here on ECMAScript writes a double with an exponent.
_EXPONENT_FROM: Final = 1e21
# orjson gives numbers an exponent below 1e-5, ECMAScript below 1e-6.
_PLAIN_FROM: Final = 1e-6
_ORJSON_PLAIN_FROM: Final = 1e-5
_SHORT: Final = 18  # digits that surely fit 64 bits


class ExactNumber(float):
    """A number that neither int64 nor double holds: `text` is its canonical spelling.

    The float value is the nearest double (or infinity), good for comparisons with limits only.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExactNumber) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"ExactNumber({self.text})"


def exact_float(value: float) -> JsonValue:
    """A double as a number that is written canonically: its shortest spelling, read exactly."""
    return exact_decimal(repr(value))


def exact_decimal(token: str) -> JsonValue:
    """The number of a token with fraction or exponent; infinite where beyond a double's range."""
    value = float(token)
    if -VAST < value < VAST:
        if value.is_integer():
            return int(value)
        return _small(value)
    if isinf(value):
        return value
    digits = _integral_digits(token)
    if digits is None:
        # A fraction beside 2 ** 53 is lost: the nearest double stands for it.
        digits = repr(value) if abs(value) >= _EXPONENT_FROM else _integral_digits(repr(value))
        assert digits is not None
    return exact_integer(digits)


def exact_integer(token: str) -> JsonValue:
    """The number of an integer token, of any length; never converted when it is long."""
    if len(token) <= _SHORT:
        return int(token)
    return ExactNumber(token)


def has_other_notation(value: float) -> bool:
    """Whether the canonical spelling of a double is not the one that orjson writes."""
    return value.is_integer() or _PLAIN_FROM <= abs(value) < _ORJSON_PLAIN_FROM


def _small(value: float) -> JsonValue:
    if has_other_notation(value):
        sign, digits = ("-", repr(-value)) if value < 0 else ("", repr(value))
        return ExactNumber(f"{sign}0.00000{digits.partition('e')[0].replace('.', '')}")
    return value


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
    # Leading zeros go first: int() refuses more than 4,300 digits.
    sign = -1 if text.startswith("-") else 1
    return sign * int(text.lstrip("+-").lstrip("0") or "0")


class _Reading:
    """The hooks of one exact reading, and the flaws that they met."""

    def __init__(self) -> None:
        self.duplicate = False
        self.out_of_range = False

    def members(self, pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
        members = dict(pairs)
        self.duplicate |= len(members) != len(pairs)
        return members

    def decimal(self, token: str) -> JsonValue:
        number = exact_decimal(token)
        self.out_of_range |= type(number) is float and isinf(number)
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
