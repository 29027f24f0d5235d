"""What an answer's headers tell of the limits of its key, in every spelling in use. Pure."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from proxy.core.wire import Headers
from proxy.upstream.retry_after import duration


@dataclass(frozen=True, slots=True)
class ToldLimit:
    """One limit: `remaining` of `limit`; all of it again in `reset_seconds`, where that is told."""

    limit: int
    remaining: int
    reset_seconds: float | None


@dataclass(frozen=True, slots=True)
class ToldLimits:
    """What one answer told; None for what it did not."""

    requests: ToldLimit | None = None
    tokens: ToldLimit | None = None


# Names of limit, remaining and reset, by what they count; of several, the first that is whole.
_REQUESTS: Final = (
    (
        b"x-ratelimit-limit-requests",
        b"x-ratelimit-remaining-requests",
        b"x-ratelimit-reset-requests",
    ),
    (
        b"anthropic-ratelimit-requests-limit",
        b"anthropic-ratelimit-requests-remaining",
        b"anthropic-ratelimit-requests-reset",
    ),
    (b"x-ratelimit-limit", b"x-ratelimit-remaining", b"x-ratelimit-reset"),
    (b"ratelimit-limit", b"ratelimit-remaining", b"ratelimit-reset"),
)
_TOKENS: Final = (
    (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
    (
        b"anthropic-ratelimit-tokens-limit",
        b"anthropic-ratelimit-tokens-remaining",
        b"anthropic-ratelimit-tokens-reset",
    ),
)
_DIGITS: Final = 18  # above is no count of anything
_LONGEST: Final = 64


def told_limits(headers: Headers, wall: float) -> ToldLimits | None:
    """The limits in an answer's headers (any case), at wall time `wall`; None where there are none.

    What contradicts itself, such as more remaining than the limit, counts as not told.
    """
    said = {lower: value for name, value in headers if b"ratelimit-" in (lower := name.lower())}
    if not said:
        return None
    requests, tokens = _first(_REQUESTS, said, wall), _first(_TOKENS, said, wall)
    return ToldLimits(requests, tokens) if requests or tokens else None


def _first(
    spellings: tuple[tuple[bytes, bytes, bytes], ...], said: dict[bytes, bytes], wall: float
) -> ToldLimit | None:
    for limit_name, remaining_name, reset_name in spellings:
        limit, remaining = _count(said.get(limit_name)), _count(said.get(remaining_name))
        if limit and remaining is not None and remaining <= limit:
            return ToldLimit(limit, remaining, _seconds(said.get(reset_name, b""), wall))
    return None


def _seconds(text: bytes, wall: float) -> float | None:
    # What ends in a unit does not depend on the time, and few texts make up most of them.
    return _duration(text) if text.endswith(b"s") else duration(text.decode("latin-1"), wall)


@lru_cache(maxsize=1024)
def _duration(text: bytes) -> float | None:
    return duration(text.decode("latin-1"), 0.0) if len(text) <= _LONGEST else None


def _count(text: bytes | None) -> int | None:
    text = (text or b"").strip()
    return int(text) if text.isdigit() and len(text) <= _DIGITS else None
