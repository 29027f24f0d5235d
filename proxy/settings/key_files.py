"""Files of upstream keys: one on each line, `#` starts a comment."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

_MOST_BYTES: Final = 1024 * 1024


def read_key_file(path: Path) -> tuple[str, ...]:
    """The keys in a file, one at least. Raises ValueError with nothing of the file in it."""
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the key file: {type(error).__name__}") from None
    if len(text) > _MOST_BYTES:
        raise ValueError("the key file is too large")
    keys = [key for line in text.splitlines() if (key := line.partition("#")[0].strip())]
    if not keys:
        raise ValueError("the key file holds no key")
    check_keys(keys)
    return tuple(keys)


def check_keys(keys: Iterable[str]) -> None:
    """Raise ValueError, never naming a key, unless all can stand in a header."""
    if not all(key and key.isascii() and key.isprintable() for key in keys):
        raise ValueError("a key must be printable ASCII on one line, and not empty")
