"""What a request's body says of its size and of its prompt's start. Pure, and never shown."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

# What is said of English; other languages take more, and what an answer cost corrects it.
_BYTES_PER_TOKEN: Final = 4
# A picture or a recording counts as so much text, whatever its bytes.
_MEDIA_BYTES: Final = 4_000
_MEDIA_FIELDS: Final = (("image_url", "url"), ("input_audio", "data"), ("file", "file_data"))
_OUTPUT_FIELDS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Estimates of tokens, and a digest of the first characters of the prompt (see `prefix_of`)."""

    prompt_tokens: int
    output_tokens: int
    prefix: bytes | None = None


def read_prompt(body: bytes, prefix_chars: int = 0) -> Prompt:
    """Read a request's JSON body; what is none counts by its length.

    The prompt's tokens are a quarter of the body's bytes, media aside; those of the output are what
    the request allows, for each choice.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        return Prompt(len(body) // _BYTES_PER_TOKEN, 0)
    size = len(body)
    for length in _media_lengths(fields.get("messages")):
        size -= length - _MEDIA_BYTES
    output = next((n for name in _OUTPUT_FIELDS if (n := _count(fields.get(name)))), 0)
    return Prompt(
        max(size, 0) // _BYTES_PER_TOKEN,
        output * max(_count(fields.get("n")), 1),
        prefix_of(fields, prefix_chars) if prefix_chars else None,
    )


def prefix_of(fields: Mapping[str, Any], chars: int) -> bytes | None:
    """A digest of the first `chars` characters of the prompt with its roles; None if it is shorter.

    A shorter prompt is none that a provider keeps: those take a thousand tokens at least.
    """
    text: list[str] = []
    length = 0
    for part in _texts(fields):
        text.append(part)
        length += len(part)
        if length >= chars:
            start = "".join(text)[:chars]
            return hashlib.blake2b(start.encode(), digest_size=16).digest()
    return None


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    """The prompt in the order in which providers read it, piece by piece."""
    for name in ("tools", "instructions", "prompt"):
        if (value := fields.get(name)) is not None:
            yield _text(value)
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield f"\n{message.get('role')}\n"
            yield _text(message.get("content"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _media_lengths(messages: Any) -> Iterator[int]:
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield from _media_in(part)


def _media_in(part: Mapping[str, Any]) -> Iterator[int]:
    for name, member in _MEDIA_FIELDS:
        inner = part.get(name)
        value = inner.get(member) if isinstance(inner, dict) else inner
        if isinstance(value, str):
            yield len(value)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
