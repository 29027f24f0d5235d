"""Request targets: whether one could lead out of the root that it is appended to. Pure."""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

# Spellings of `.`, `/` and `\` that some decoders take: UTF-8 longer than it may be, full-width
# forms, and the `%u` of old servers.
_OTHER_SPELLINGS: Final = (
    (re.compile(rb"\xc0[\xae\x2e]|\xe0\x80\xae|\xf0\x80\x80\xae|\xef\xbc\x8e|%u(002e|ff0e)"), b"."),
    (re.compile(rb"\xc0[\xaf\x2f]|\xe0\x80\xaf|\xf0\x80\x80\xaf|\xef\xbc\x8f|%u(002f|ff0f)"), b"/"),
    (re.compile(rb"\xc1\x9c|\xef\xbc\xbc|%u(005c|ff3c)|\\"), b"/"),
)
# A server behind the upstream may decode what that has decoded before.
_ROUNDS: Final = 4


def leaves_root(path: str) -> bool:
    """True where a segment means `.` or `..` to any server, however it is spelled.

    Also one with parameters (`..;a=b`), which some servers take off, and one that ends in a NUL.
    """
    if path.isascii() and "." not in path and "%" not in path:
        return False  # a dot is spelled with one of these
    text = path.encode("latin-1")
    for _ in range(_ROUNDS):
        plain = text.lower()
        for pattern, meant in _OTHER_SPELLINGS:
            plain = pattern.sub(meant, plain)
        for segment in plain.split(b"/"):
            if re.split(rb"[;\0]", segment)[0].strip(b" \t\r\n") in {b".", b".."}:
                return True
        decoded = unquote_to_bytes(text)
        if decoded == text:
            return False
        text = decoded
    return True  # encoded over and over: nobody means that
