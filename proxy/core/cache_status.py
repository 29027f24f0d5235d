"""The outcome as response headers.

`Cache-Status` (RFC 9211), `X-Cache`, `Age`, `X-Cache-Rule`, `X-Upstream`.
"""

import re
from functools import lru_cache
from typing import Final

from proxy.core.outcome import Outcome
from proxy.core.wire import Headers

CACHE_NAME = "magic-proxy"
_INVISIBLE: Final = re.compile("[^ -~]")


def sf_string(text: str) -> str:
    """A structured-field string (RFC 8941 section 3.3.3); what it can't hold becomes `?`."""
    visible = _INVISIBLE.sub("?", text)
    return '"' + visible.replace("\\", "\\\\").replace('"', '\\"') + '"'


def cache_status(outcome: Outcome, *, with_key: bool = False) -> str:
    """The value that this cache adds to `Cache-Status`; the key only where it may be shown."""
    parts = [CACHE_NAME]
    if outcome.forwarded is None and outcome.age_seconds is not None:
        parts.append("hit")
    if outcome.forwarded is not None:
        parts.append(f"fwd={outcome.forwarded.value}")
    if outcome.forward_status is not None:
        parts.append(f"fwd-status={outcome.forward_status}")
    if outcome.ttl_seconds is not None:
        parts.append(f"ttl={int(outcome.ttl_seconds)}")
    if outcome.stored:
        parts.append("stored")
    if outcome.collapsed:
        parts.append("collapsed")
    if with_key and outcome.digest is not None:
        parts.append(f"key={sf_string(outcome.digest)}")
    if detail := _detail(outcome):
        parts.append(f"detail={sf_string(detail)}")
    return "; ".join(parts)


def _detail(outcome: Outcome) -> str | None:
    """Why it was no hit, and why it was not stored, in one text."""
    reasons = [outcome.detail] if outcome.detail else []
    if outcome.not_stored:
        reasons.append(f"not-stored:{outcome.not_stored}")
    return ", ".join(reasons) or None


def outcome_headers(outcome: Outcome, *, with_key: bool = False) -> Headers:
    """The headers that tell the outcome, in a fixed order."""
    headers = [
        (b"cache-status", cache_status(outcome, with_key=with_key).encode("ascii")),
        (b"x-cache", outcome.x_cache.value.encode("ascii")),
    ]
    if outcome.age_seconds is not None:
        headers.append((b"age", b"%d" % int(outcome.age_seconds)))
    if outcome.rule is not None:
        headers.append((b"x-cache-rule", header_text(outcome.rule)))
    if outcome.shown_as is not None:
        headers.append((b"x-upstream", header_text(outcome.shown_as)))
    return tuple(headers)


@lru_cache(maxsize=1024)
def header_text(text: str) -> bytes:
    """Operator's text as a header value: what is not visible ASCII becomes `?`."""
    return "".join(char if " " <= char <= "~" else "?" for char in text).encode("ascii")
