"""The two encodings of embedding vectors, and turning one into the other without loss.

`float` is a JSON array of numbers, `base64` is base64 of little-endian IEEE 754 binary32, as in
OpenAI's API. A number is written as the shortest decimal that reads back as the same binary32.
"""

import binascii
import math
import re
import struct
from collections.abc import Sequence
from typing import Any

import orjson

FLOAT = "float"
BASE64 = "base64"
ENCODINGS = frozenset({FLOAT, BASE64})

_NUMBERS = frozenset({int, float})

_FIRST_VECTOR = re.compile(rb'"embedding"\s*:\s*(["\[])')
# Adding and taking away 1.5 * 2**52 rounds a double to a whole number, half to even.
_ROUND = 6755399441055744.0
_EXPONENT_BIAS = 127
_MANTISSA_BITS = 23
_LAST_EXACT_POWER_OF_TEN = 22
_LARGEST = 3.4028235e38


class NotAVector(ValueError):
    """The value is no embedding vector, or one that the other encoding can't tell."""


def encoding_of(payload: bytes) -> str | None:
    """The encoding of a stored answer's vectors, without parsing it; None where it has none."""
    match = _FIRST_VECTOR.search(payload)
    if match is None:
        return None
    return BASE64 if match[1] == b'"' else FLOAT


def reencoded(payload: bytes, encoding: str) -> bytes:
    """The answer with its vectors in `encoding`. Raises `NotAVector`."""
    try:
        answer = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise NotAVector(str(error)) from error
    vectors = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(vectors, list) or not all(isinstance(vector, dict) for vector in vectors):
        raise NotAVector("`data` is a list of objects")
    for vector in vectors:
        vector["embedding"] = _in_encoding(vector.get("embedding"), encoding)
    return orjson.dumps(answer)


def encoding_at(answer: bytes, place: int) -> str:
    """The encoding of the vector that stands at `place`."""
    return BASE64 if answer[place : place + 1] == b'"' else FLOAT


def encoded(vector: bytes, encoding: str) -> bytes:
    """One vector, as its JSON, in `encoding`: the same bytes where it is. Raises `NotAVector`."""
    if encoding_at(vector, 0) == encoding:
        return vector
    try:
        return orjson.dumps(_in_encoding(orjson.loads(vector), encoding))
    except orjson.JSONDecodeError as error:
        raise NotAVector(str(error)) from error


def is_vector(vector: object) -> bool:
    """Whether it holds numbers only: some servers write null for a NaN, or nothing at all."""
    if not isinstance(vector, list | str) or not vector:
        return False
    return isinstance(vector, str) or _NUMBERS.issuperset(map(type, vector))


def _in_encoding(vector: Any, encoding: str) -> str | list[float]:
    if isinstance(vector, list):
        return vector if encoding == FLOAT else to_base64(vector)
    if isinstance(vector, str):
        return vector if encoding == BASE64 else to_floats(vector)
    raise NotAVector("an embedding is a list or a string")


def to_base64(vector: Sequence[float]) -> str:
    """Numbers to base64 of binary32. Raises `NotAVector`."""
    try:
        packed = struct.pack(f"<{len(vector)}f", *vector)
    except (struct.error, OverflowError) as error:
        raise NotAVector(str(error)) from error
    return binascii.b2a_base64(packed, newline=False).decode("ascii")


def to_floats(vector: str) -> list[float]:
    """Base64 of binary32 to numbers, each the shortest that reads back. Raises `NotAVector`."""
    try:
        packed = binascii.a2b_base64(vector, strict_mode=True)
        exact = struct.unpack(f"<{len(packed) // 4}f", packed)
    except (ValueError, struct.error) as error:
        raise NotAVector(str(error)) from error
    if not all(map(math.isfinite, exact)):
        raise NotAVector("JSON has no infinity and no NaN")
    return _shortest(packed, exact)


def _shortest(packed: bytes, exact: tuple[float, ...]) -> list[float]:
    """Doubles whose shortest decimals are the shortest for the binary32 numbers.

    Between its neighbours' midpoints a binary32 number has at most one multiple of 10**-(p-1), if
    p is the least number of decimals that always reads back for its binary exponent: so rounding
    to p-1 decimals finds the shortest if it reads back, and else rounding to p decimals does. Far
    from 1, where powers of ten are not exact, a power of two may get a digit more than it needs.
    """
    count = len(exact)
    exponents = [high >> 7 & 0xFF for high in struct.unpack("<" + "2xH" * count, packed)]
    scales = [_COARSE[exponent] for exponent in exponents]
    rounded = [
        (number * scale + _ROUND - _ROUND) / scale
        for number, scale in zip(exact, scales, strict=True)
    ]
    longer = [
        place
        for place, (number, back) in enumerate(zip(exact, _as_binary32(rounded), strict=True))
        if number != back
    ]
    fine = [
        (exact[place] * (scale := _FINE[exponents[place]]) + _ROUND - _ROUND) / scale
        for place in longer
    ]
    for place, number, back in zip(longer, fine, _as_binary32(fine), strict=True):
        rounded[place] = number if back == exact[place] else _searched(exact[place])
    return rounded


def _searched(number: float) -> float:
    """The same by trial, where no scale is exact; a zero keeps its sign."""
    for digits in range(1, 9):
        candidate = float(f"{number:.{digits}g}")
        # Beyond the largest binary32 number there is nothing to read back.
        if abs(candidate) <= _LARGEST and _as_binary32([candidate])[0] == number:
            return candidate
    return float(f"{number:.9g}")


def _as_binary32(numbers: Sequence[float]) -> tuple[float, ...]:
    layout = f"<{len(numbers)}f"
    return struct.unpack(layout, struct.pack(layout, *numbers))


def _decimals(exponent: int) -> int:
    """The least p with 10**-p <= the distance of binary32 numbers of this biased exponent."""
    distance = 2.0 ** (max(exponent, 1) - _EXPONENT_BIAS - _MANTISSA_BITS)
    return math.ceil(-math.log10(distance))


def _scale(exponent: int, fewer: int) -> float:
    """A power of ten that doubles hold exactly; NaN, which reads back as nothing, elsewhere."""
    decimals = _decimals(exponent)
    if not 1 <= decimals <= _LAST_EXACT_POWER_OF_TEN:
        return math.nan
    return 10.0 ** (decimals - fewer)


_COARSE = tuple(_scale(exponent, 1) for exponent in range(256))
_FINE = tuple(_scale(exponent, 0) for exponent in range(256))
