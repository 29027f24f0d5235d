"""Trailers: fields behind a body in chunks (RFC 9110 section 6.5), read off its end. Pure."""

import re
from collections.abc import Iterable
from typing import Final

from proxy.core.wire import Headers

# A longer section is left out, like one that is not plain.
LONGEST_BYTES: Final = 16 * 1024

# What somebody needs before the body, or what is said to the next hop alone: framing, routing,
# authentication, how to read, keep or judge the answer (section 6.5.1).
_REFUSED: Final = re.compile(
    rb"connection|keep-alive|te|trailer|transfer-encoding|upgrade|host|max-forwards|expect|range"
    rb"|(proxy|if|access-control|sec)-.*|(www-)?authenticate|authorization|authentication-info"
    rb"|(set-)?cookie2?|age|cache-control|pragma|expires|date|location|retry-after|vary|warning"
    rb"|content-(length|encoding|type|range|location|disposition|security-policy.*)"
    rb"|strict-transport-security"
)
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_NAME: Final = re.compile(_TOKEN)
_FIELD: Final = re.compile(rb"(%b):([^\x00-\x08\x0a-\x1f\x7f]*)" % _TOKEN)
_LAST_CHUNK: Final = re.compile(rb"0+[ \t]*(;[^\r\n]*)?")


class Trailers:
    """Those of one answer: announced by its head, there once its last byte was fed.

    `names` are those that may come, in lower case. What was not announced is left out, so that
    whoever reads the head knows what may follow.
    """

    __slots__ = ("_tail", "names")

    def __init__(self, names: Iterable[bytes]) -> None:
        self.names = tuple(names)
        self._tail = b""

    @classmethod
    def announced(cls, headers: Headers) -> "Trailers | None":
        """What the head of an answer in chunks announces; None where nothing is to pass."""
        named = _listed(headers, b"trailer") - _listed(headers, b"connection")
        names = [name for name in named if _NAME.fullmatch(name) and not _REFUSED.fullmatch(name)]
        return cls(sorted(names)) if names else None

    def feed(self, raw: bytes) -> None:
        """Some of the message as it came over the wire."""
        self._tail = (self._tail + raw[-LONGEST_BYTES:])[-LONGEST_BYTES:]

    def came(self) -> Headers:
        """What followed the last chunk, in order, names in lower case.

        Read from the end: no field looks like a last chunk, so the first that is met is the last
        one, whatever the body holds. Nothing where a line is neither: parsers may differ on it.
        """
        came: list[tuple[bytes, bytes]] = []
        lines = self._tail.split(b"\r\n")
        if lines[-2:] != [b"", b""]:
            return ()
        for line in lines[-3:0:-1]:  # of the first one a part may be missing
            if _LAST_CHUNK.fullmatch(line):
                return tuple(reversed(came))
            field = _FIELD.fullmatch(line)
            if field is None:
                return ()
            if (name := field[1].lower()) in self.names:
                came.append((name, field[2].strip(b" \t")))
        return ()


def _listed(headers: Headers, name: bytes) -> set[bytes]:
    """The members of all lists of that name, in lower case."""
    values = [value for key, value in headers if key.lower() == name]
    return {member.strip().lower() for value in values for member in value.split(b",")}
