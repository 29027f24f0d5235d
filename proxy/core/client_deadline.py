"""How long a client says that it will wait. Pure.

`X-Request-Timeout` is this proxy's own: seconds (`30`, `1.5`, `30s`) or milliseconds (`500ms`) from
the request to the end of the answer; it goes no farther. OpenAI's SDKs tell the time-out that they
keep themselves: `x-stainless-read-timeout` (Python) and `X-Stainless-Timeout` (JavaScript), in
seconds, both for an answer to begin; these pass on.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

from proxy.core.wire import Headers

HEADER: Final = b"x-request-timeout"

_SDK_HEADERS: Final = frozenset({b"x-stainless-read-timeout", b"x-stainless-timeout"})
_SPELLED: Final = re.compile(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*(s|ms)?\s*")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds from the request on: for the answer to begin, and for its end; infinite for none."""

    begin_seconds: float = math.inf
    end_seconds: float = math.inf


NONE: Final = Deadlines()


def client_deadline(headers: Headers) -> Deadlines:
    """What the headers (names in lower case) ask for; what can't be read, and zero, ask nothing."""
    begin = end = math.inf
    for name, value in headers:
        if name == HEADER:
            end = min(end, _seconds(value))
        elif name in _SDK_HEADERS:
            begin = min(begin, _seconds(value))
    return NONE if begin == end == math.inf else Deadlines(min(begin, end), end)


def _seconds(value: bytes) -> float:
    spelled = _SPELLED.fullmatch(value.decode("latin-1"))
    if spelled is None:
        return math.inf
    seconds = float(spelled[1]) / (1000.0 if spelled[2] == "ms" else 1.0)
    return seconds or math.inf
