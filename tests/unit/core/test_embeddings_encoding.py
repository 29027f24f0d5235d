"""B33: one entry serves both encodings, and neither loses a bit."""

import base64
import json
import struct

import numpy as np
import orjson
import pytest

from proxy.core.embeddings import (
    BASE64,
    FLOAT,
    NotAVector,
    encoding_of,
    reencoded,
    to_base64,
    to_floats,
)


def _base64(numbers: "np.ndarray[tuple[int], np.dtype[np.float32]]") -> str:
    return base64.b64encode(numbers.astype("<f4").tobytes()).decode()


def _random_binary32(count: int) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
    """Numbers of every exponent, and of the sizes that embeddings have."""
    generator = np.random.default_rng(7)
    bits = generator.integers(0, 2**32, size=count, dtype=np.uint32).view(np.float32)
    usual = generator.normal(0, 0.03, size=count).astype(np.float32)
    round_numbers = generator.integers(-99999, 99999, size=count) / np.float64(10) ** (
        generator.integers(0, 9, size=count)
    )
    powers = np.exp2(np.arange(-149, 128, dtype=np.float64))
    near = [powers.astype(np.float32)]
    near += [np.nextafter(near[0], np.float32(np.inf)), np.nextafter(near[0], np.float32(0))]
    near += [np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 0.0, -0.0], np.float32)]
    numbers = np.concatenate([bits, usual, round_numbers.astype(np.float32), *near])
    finite: np.ndarray[tuple[int], np.dtype[np.float32]] = numbers[np.isfinite(numbers)]
    return finite


def test_B33_every_number_reads_back_as_the_same_binary32() -> None:
    numbers = _random_binary32(50_000)
    floats = to_floats(_base64(numbers))
    again = np.array(json.loads(orjson.dumps(floats)), dtype=np.float64).astype(np.float32)
    assert again.tobytes() == numbers.tobytes()


def test_B33_every_number_is_the_shortest_decimal_that_does() -> None:
    numbers = _random_binary32(20_000)
    powers_of_two = np.frexp(numbers)[0] == 0.5
    numbers = numbers[~powers_of_two | (np.abs(numbers) > 1e-14) & (np.abs(numbers) < 1e6)]
    expected = [float(np.format_float_scientific(number, unique=True)) for number in numbers]
    assert to_floats(_base64(numbers)) == expected


@pytest.mark.parametrize(
    "number", [0.1, 0.5, 1.0, -2.5, 1e-5, 3e38, 1e-45, 16777216.0, 123456.0, 0.0023064255]
)
def test_B33_numbers_are_written_as_people_write_them(number: float) -> None:
    (told,) = to_floats(base64.b64encode(struct.pack("<f", number)).decode())
    assert told == pytest.approx(number, rel=1e-6)
    assert repr(told) == repr(number) or number == 1e-45


def test_B33_zero_keeps_its_sign() -> None:
    assert str(to_floats(base64.b64encode(struct.pack("<3f", 0.0, -0.0, 1.0)).decode())) == (
        "[0.0, -0.0, 1.0]"
    )


def test_B33_floats_become_little_endian_binary32() -> None:
    numbers = [0.1, -0.006929283495992422, 1, 0, 3.4e38, 1e-46]
    expected = base64.b64encode(np.array(numbers, dtype="<f4").tobytes()).decode()
    assert to_base64(numbers) == expected


def test_B33_there_and_back_is_the_same_base64() -> None:
    vector = _base64(_random_binary32(2_000))
    assert to_base64(to_floats(vector)) == vector


def test_B33_an_empty_vector() -> None:
    assert to_base64([]) == ""
    assert to_floats("") == []


@pytest.mark.parametrize(
    "vector",
    [
        "AAA",
        "not base64!",
        "AA!AAAA==",
        "AAAA",
        "é",
        base64.b64encode(struct.pack("<2f", 1.0, float("nan"))).decode(),
        base64.b64encode(struct.pack("<2f", 1.0, float("-inf"))).decode(),
    ],
)
def test_a_string_that_is_no_vector_is_refused(vector: str) -> None:
    with pytest.raises(NotAVector):
        to_floats(vector)


@pytest.mark.parametrize("vector", [["a"], [None], [1e39], [[1.0]]])
def test_a_list_that_is_no_vector_is_refused(vector: list[float]) -> None:
    with pytest.raises(NotAVector):
        to_base64(vector)


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [
        (b'{"data":[{"object":"embedding","index":0,"embedding":[0.1]}]}', FLOAT),
        (b'{"data":[{"object":"embedding","embedding" :\n "AAAA"}]}', BASE64),
        (b'{"data":[{"object": "embedding"}]}', None),
        (b'{"data":[],"model":"embedding"}', None),
    ],
)
def test_B33_the_stored_encoding_is_seen_without_parsing(
    payload: bytes, encoding: str | None
) -> None:
    assert encoding_of(payload) == encoding


def test_B33_all_else_of_the_answer_stays() -> None:
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 1, "embedding": [0.5, -1.5], "novel": None},
            {"object": "embedding", "index": 0, "embedding": [0.25, 0.1]},
        ],
        "model": "m",
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    told = reencoded(orjson.dumps(answer), BASE64)
    parsed = orjson.loads(told)
    assert [vector["embedding"] for vector in parsed["data"]] == ["AAAAPwAAwL8=", "AACAPs3MzD0="]
    assert orjson.loads(reencoded(told, FLOAT)) == answer


@pytest.mark.parametrize(
    "payload",
    [b"{", b"[]", b"{}", b'{"data":[1]}', b'{"data":[{}]}', b'{"data":[{"embedding":1}]}'],
)
def test_an_answer_without_vectors_is_refused(payload: bytes) -> None:
    with pytest.raises(NotAVector):
        reencoded(payload, FLOAT)
