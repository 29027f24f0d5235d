"""Embeddings: float32 unit vectors by a hash of each input, as numbers or as base64."""

import base64
import hashlib
import math
from array import array
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from proxy.standin.script import Script
from proxy.standin.text import count_tokens

DIMENSIONS = {"text-embedding-3-large": 3072}
DEFAULT_DIMENSIONS = 1536


def embeddings_answer(request: Mapping[str, Any], script: Script) -> bytes:
    """The answer's JSON. Raises ValueError on an input of a shape that there is not."""
    items = split_input(request["input"])
    model = str(request["model"])
    dimensions = int(request.get("dimensions") or DIMENSIONS.get(model, DEFAULT_DIMENSIONS))
    encode = _as_base64 if request.get("encoding_format") == "base64" else _as_floats
    rows = [
        {"object": "embedding", "index": index, "embedding": encode(item, model, dimensions)}
        for index, item in enumerate(items)
    ]
    if script.shuffle:
        rows.reverse()
    if script.drop_items:
        del rows[-script.drop_items :]
    tokens = sum(token_count(item) for item in items)
    answer: dict[str, Any] = {"object": "list", "data": rows, "model": model}
    if script.usage:
        answer["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return orjson.dumps(answer | (script.extra or {}))


def split_input(given: Any) -> list[str | tuple[int, ...]]:
    """The items of `input`: a string, strings, one token array, or several.

    Raises ValueError on anything else, the empty input too.
    """
    match given:
        case str() if given:
            return [given]
        case [int(), *_] if all(type(token) is int for token in given):
            return [tuple(given)]
        case [_, *_]:
            return [_item(item) for item in given]
    raise ValueError("'input' is a string, an array of strings, or arrays of tokens")


def _item(item: Any) -> str | tuple[int, ...]:
    if isinstance(item, str) and item:
        return item
    if isinstance(item, list) and item and all(type(token) is int for token in item):
        return tuple(item)
    raise ValueError("'input' is a string, an array of strings, or arrays of tokens")


def token_count(item: str | tuple[int, ...]) -> int:
    """What one item costs."""
    return count_tokens(item) if isinstance(item, str) else len(item)


@lru_cache(maxsize=256)
def vector(item: str | tuple[int, ...], model: str, dimensions: int) -> bytes:
    """The vector's float32 numbers, little-endian, of length 1."""
    name = item.encode() if isinstance(item, str) else repr(item).encode()
    seed = hashlib.sha256(model.encode() + b"\0" + name).digest()
    noise = array("h", hashlib.shake_256(seed).digest(2 * dimensions))
    length = math.sqrt(sum(number * number for number in noise)) or 1.0
    return array("f", (number / length for number in noise)).tobytes()


def _as_base64(item: str | tuple[int, ...], model: str, dimensions: int) -> str:
    return base64.b64encode(vector(item, model, dimensions)).decode()


@lru_cache(maxsize=64)
def _as_floats(item: str | tuple[int, ...], model: str, dimensions: int) -> list[float]:
    # Nine digits give back the same float32, and keep the text as short as OpenAI's.
    numbers = array("f", vector(item, model, dimensions))
    return [float(f"{number:.9g}") for number in numbers]
