"""Status and header lines as they go over the wire."""

import http
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from proxy.core.wire import Headers

# What the server under the application refuses as well: a line that could end early.
_UNSAFE_NAME: Final = re.compile(rb'[\x00-\x1f\x7f()<>@,;:\[\]={} \t\\"]')
_UNSAFE_VALUE: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


@lru_cache(maxsize=64)
def status_line(status: int) -> bytes:
    """The first line of an answer."""
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """One line for each header that this program wrote itself, in order."""
    return b"".join([b"%b: %b\r\n" % pair for pair in headers])


def received_lines(headers: Headers) -> bytes | None:
    """The same for headers that came from elsewhere; None where one of them could end its line."""
    if any(_UNSAFE_NAME.search(name) or _UNSAFE_VALUE.search(value) for name, value in headers):
        return None
    return header_lines([(name.lower(), value) for name, value in headers])


stored_lines = lru_cache(maxsize=1024)(received_lines)
"""The same, remembered: few sets of headers are those of most entries."""
