"""Small types that every layer shares: endpoints, headers, JSON values."""

from enum import StrEnum
from typing import Final, TypeAlias

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None

# Names are lower case, as ASGI gives them; order and repeats are kept.
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


class Endpoint(StrEnum):
    """What answers are cached of; the value stands in store keys."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"
    RESOURCE = "resource"  # whatever is read by GET


# Those that models answer, and rules are for.
MODEL_ENDPOINTS: Final = (Endpoint.CHAT, Endpoint.EMBEDDINGS)


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of `name` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def text_of(headers: Headers, name: bytes) -> str | None:
    """The same as text, of an upstream's headers, whose names are as it wrote them."""
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None


def media_type(headers: Headers) -> str:
    """What an upstream's headers say the body is, without parameters; "" where they don't."""
    return (text_of(headers, b"content-type") or "").partition(";")[0].strip().lower()
