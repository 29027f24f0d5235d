"""Small types that every layer shares: endpoints, headers, JSON values."""

from enum import StrEnum
from typing import TypeAlias

JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None

# Names are lower case, as ASGI gives them; order and repeats are kept.
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


class Endpoint(StrEnum):
    """The endpoints whose answers can be cached; the value stands in store keys."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"


def header(headers: Headers, name: bytes) -> bytes | None:
    """The first value of `name` (lower case), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None
