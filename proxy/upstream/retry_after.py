"""How long an upstream asks to wait, in every spelling that is in use. Pure."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from proxy.core.wire import Headers

# An upstream that asks for more is not believed: the key would be lost until a restart.
LONGEST_SECONDS = 86_400.0

_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
_UNITS["ns"] = 1e-9
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

# A plain number above this is a point in time, not a duration: 10^9 s were 30 years.
_EPOCH_SECONDS = 1e9
_EPOCH_MILLISECONDS = 1e12

# Each with the header that says how much of it is left.
_RESETS = (
    ("x-ratelimit-reset-requests", "x-ratelimit-remaining-requests"),
    ("x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"),
    ("x-ratelimit-reset", "x-ratelimit-remaining"),
    ("ratelimit-reset", "ratelimit-remaining"),
    ("anthropic-ratelimit-requests-reset", "anthropic-ratelimit-requests-remaining"),
    ("anthropic-ratelimit-tokens-reset", "anthropic-ratelimit-tokens-remaining"),
)


def wait_seconds(headers: Headers, wall: float) -> float | None:
    """Seconds that the answer asks to wait, at most a day; None where it says nothing readable.

    `retry-after-ms` is the most exact, then `Retry-After`. Of the reset headers those count whose
    quota is used up (the longest); where none says so, the shortest. `wall` is the time of the
    answer, for dates.
    """
    said = _said(headers)
    asked = _asked(said, wall)
    return _resets(said, wall) if asked is None else asked


def retry_after_seconds(headers: Headers, wall: float) -> float | None:
    """The same of the two headers alone that speak of this answer, not of limits in general."""
    return _asked(_said(headers), wall)


def _said(headers: Headers) -> dict[str, str]:
    return {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in headers}


def _asked(said: Mapping[str, str], wall: float) -> float | None:
    if (milliseconds := _number(said.get("retry-after-ms", ""))) is not None:
        return _bounded(milliseconds / 1000.0)
    return duration(said.get("retry-after", ""), wall)


def duration(text: str, wall: float) -> float | None:
    """`20`, `1.5`, `6m0s`, `20ms`, an epoch in s or ms, an HTTP or RFC 3339 date; else None."""
    text = text.strip()
    if (number := _number(text)) is not None:
        if number >= _EPOCH_MILLISECONDS:
            return _bounded(number / 1000.0 - wall)
        return _bounded(number - wall if number >= _EPOCH_SECONDS else number)
    parts = _PART.findall(text)
    if parts and "".join(f"{amount}{unit}" for amount, unit in parts) == text:
        return _bounded(sum(float(amount) * _UNITS[unit] for amount, unit in parts))
    moment = _moment(text)
    return None if moment is None else _bounded(moment - wall)


def _resets(said: Mapping[str, str], wall: float) -> float | None:
    used_up: list[float] = []
    others: list[float] = []
    for reset, remaining in _RESETS:
        if (seconds := duration(said.get(reset, ""), wall)) is not None:
            empty = _number(said.get(remaining, "").strip()) == 0.0
            (used_up if empty else others).append(seconds)
    if used_up:
        return max(used_up)
    return min(others, default=None)


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def _moment(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except OverflowError:  # a date of numbers that no machine word holds
        return None
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_SECONDS)
