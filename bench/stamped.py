"""What an upstream answers here, and how a client knows whether an answer is right.

Every answer carries a stamp: the digest of the request that it belongs to, the version of the
upstream's knowledge, the number of the call and the moment it came in. The rest of the answer is
made from the stamp, so that a client that reads the stamp can say what the whole must be.
"""

import base64
import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

DELIVERY = frozenset({"stream", "stream_options"})
WORDS = ("amber", "birch", "cedar", "delta", "ember", "fern", "grove", "hazel", "iris", "kelp")
_STAMP = re.compile(r"([0-9a-f]{16}) v(\d+) n(\d+) t(\d+\.\d{3}) ")
_DIGEST_NUMBERS = 6
DIMENSIONS = _DIGEST_NUMBERS + 4


class Wrong(Exception):
    """An answer that is not the right one for its request; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Where an answer comes from. `moment` is monotonic seconds, the same for all on a machine."""

    digest: str
    version: int
    number: int
    moment: float


@dataclass(frozen=True, slots=True)
class Said:
    """A chat answer as its client has it in the end, from a stream or not."""

    text: str
    finish_reason: str | None
    usage: Mapping[str, Any] | None


def chat_digest(body: Mapping[str, Any]) -> str:
    """Of all that is content in a chat request."""
    content = {name: value for name, value in body.items() if name not in DELIVERY}
    return _digest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))


def item_digest(model: str, item: str) -> str:
    """Of one input of an embeddings request."""
    return _digest(orjson.dumps([model, item]))


def chat_words(stamp: Stamp) -> list[str]:
    """The answer cut into the pieces in which it is streamed; joined they are the text."""
    head = f"{stamp.digest} v{stamp.version} n{stamp.number} t{stamp.moment:.3f} "
    seed = bytes.fromhex(stamp.digest)
    words = [WORDS[(seed[at % 8] + at) % len(WORDS)] + " " for at in range(8 + seed[0] % 17)]
    return [head, *words, "end."]


def chat_usage(body: Mapping[str, Any], stamp: Stamp) -> dict[str, int]:
    """What the answer costs."""
    prompt, said = token_count(body["messages"][-1]["content"]), len(chat_words(stamp))
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def check_chat(body: Mapping[str, Any], said: Said, *, usage_wanted: bool) -> Stamp:
    """The stamp of an answer to `body`. Raises Wrong where it is not the whole right answer."""
    found = _STAMP.match(said.text)
    if found is None:
        raise Wrong(f"no stamp in {said.text[:80]!r}")
    stamp = Stamp(found[1], int(found[2]), int(found[3]), float(found[4]))
    if stamp.digest != chat_digest(body):
        raise Wrong(f"the answer to another request: {said.text[:80]!r}")
    if said.text != "".join(chat_words(stamp)):
        raise Wrong(f"not the whole text: {said.text!r}")
    if said.finish_reason != "stop":
        raise Wrong(f"finish_reason {said.finish_reason!r}")
    if usage_wanted != (said.usage is not None):
        raise Wrong("usage without being asked for" if said.usage else "no usage")
    if said.usage is not None and said.usage != chat_usage(body, stamp):
        raise Wrong(f"usage {said.usage}")
    return stamp


def vector(stamp: Stamp) -> list[float]:
    """Numbers that float32 holds exactly: the digest's, then the rest of the stamp."""
    seed = bytes.fromhex(stamp.digest)
    numbers = [seed[at] / 256 for at in range(_DIGEST_NUMBERS)]
    thousandths = round(stamp.moment * 1000)
    seconds, rest = divmod(thousandths, 1000)
    return [*numbers, float(stamp.version), float(stamp.number), float(seconds), float(rest)]


def as_base64(numbers: Sequence[float]) -> str:
    """As the API packs vectors: little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def check_embeddings(body: Mapping[str, Any], answer: Any) -> list[Stamp]:
    """The stamp of each vector. Raises Wrong where one is not that of its input, or the sum."""
    given = body["input"]
    items: list[str] = [given] if isinstance(given, str) else given
    if not isinstance(answer, dict) or answer.get("object") != "list":
        raise Wrong(f"no list of embeddings: {str(answer)[:80]}")
    rows = answer["data"]
    if [row.get("index") for row in rows] != list(range(len(items))):
        raise Wrong(f"indexes {[row.get('index') for row in rows]} for {len(items)} inputs")
    tokens = sum(token_count(item) for item in items)
    if answer.get("usage") != {"prompt_tokens": tokens, "total_tokens": tokens}:
        raise Wrong(f"usage {answer.get('usage')}, {tokens} tokens were asked")
    packed = body.get("encoding_format") == "base64"
    return [
        _check_vector(item_digest(body["model"], item), row["embedding"], packed=packed)
        for item, row in zip(items, rows, strict=True)
    ]


def through_digest(path: str, body: Mapping[str, Any]) -> str:
    """Of a request that passes through: its path from `/v1` on, and its body, empty for a GET."""
    return _digest(orjson.dumps([path, body], option=orjson.OPT_SORT_KEYS))


def through_answer(stamp: Stamp) -> dict[str, Any]:
    """What passes back."""
    moment = f"{stamp.moment:.3f}"
    stamped = {"digest": stamp.digest, "version": stamp.version, "number": stamp.number}
    return {"object": "list", "data": [], **stamped, "moment": moment, "words": chat_words(stamp)}


def check_through(path: str, body: Mapping[str, Any], answer: Any) -> Stamp:
    """The stamp of what passed back. Raises Wrong where it is not the whole right answer."""
    stamp = Stamp(answer["digest"], answer["version"], answer["number"], float(answer["moment"]))
    if stamp.digest != through_digest(path, body):
        raise Wrong(f"the answer to another request: {str(answer)[:80]}")
    if answer != through_answer(stamp):
        raise Wrong(f"not the whole answer: {answer}")
    return stamp


def _check_vector(digest: str, embedding: Any, *, packed: bool) -> Stamp:
    if packed != isinstance(embedding, str):
        raise Wrong(f"a vector in the other encoding: {str(embedding)[:60]}")
    if isinstance(embedding, str):
        raw = base64.b64decode(embedding, validate=True)
        embedding = list(struct.unpack(f"<{len(raw) // 4}f", raw))
    if len(embedding) != DIMENSIONS:
        raise Wrong(f"{len(embedding)} dimensions")
    version, number, seconds, rest = embedding[_DIGEST_NUMBERS:]
    stamp = Stamp(digest, int(version), int(number), seconds + rest / 1000)
    if embedding != vector(stamp):
        raise Wrong(f"the vector of another input: {embedding}")
    return stamp


def token_count(text: str) -> int:
    """What a text costs, for the sake of a number that adds up."""
    return (len(text) + 3) // 4


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
