"""How an upstream says that a key may not be used: refused, limited in some spelling, used up."""

import datetime as dt
import math
import random
from dataclasses import dataclass
from email.utils import format_datetime

from bench.chaos_rules import KEY_COOLDOWN_SECONDS, QUOTA_COOLDOWN_SECONDS
from bench.chaos_weather import Trouble

_SECONDS = (0.4, 3.5)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer, and for how many seconds from now a proxy has to let the key rest by it."""

    status: int
    code: str
    headers: dict[str, str]
    rests: float = 0.0


def refusal(trouble: Trouble, chance: random.Random, wall: float) -> Refusal:
    """Draw one for this trouble; `wall` is the time of the answer."""
    match trouble:
        case Trouble.REVOKED:
            return Refusal(401, "invalid_api_key", {})
        case Trouble.CLOSED:
            return Refusal(403, "account_deactivated", {})
        case Trouble.QUOTA:
            status, code = chance.choice([(429, "insufficient_quota"), (402, "payment_required")])
            return Refusal(status, code, {}, QUOTA_COOLDOWN_SECONDS)
        case Trouble.UNSAID:
            vague = chance.choice([{}, {"retry-after": "soon"}, {"retry-after": ""}])
            return Refusal(429, "rate_limit_exceeded", vague, KEY_COOLDOWN_SECONDS)
        case _:
            headers, rests = _spelled(chance, round(chance.uniform(*_SECONDS), 1), wall)
            return Refusal(429, "rate_limit_exceeded", headers, rests)


def _spelled(chance: random.Random, seconds: float, wall: float) -> tuple[dict[str, str], float]:
    """In one of the ways that providers have to say how long to wait."""
    whole = math.ceil(seconds)
    date = dt.datetime.fromtimestamp(math.ceil(wall + seconds), dt.UTC)
    exact = dt.datetime.fromtimestamp(wall + seconds, dt.UTC).isoformat(timespec="milliseconds")
    spellings: list[tuple[dict[str, str], float]] = [
        ({"retry-after": str(whole)}, whole),
        ({"retry-after": f"{seconds}"}, seconds),
        ({"retry-after": f"{seconds}s"}, seconds),
        ({"retry-after": format_datetime(date, usegmt=True)}, date.timestamp() - wall),
        ({"retry-after-ms": f"{seconds * 1000:.0f}", "retry-after": "60"}, seconds),
        (_used_up("x-ratelimit", "requests", f"{seconds * 1000:.0f}ms"), seconds),
        (_used_up("x-ratelimit", "tokens", f"0m{whole}s"), whole),
        ({"x-ratelimit-reset": f"{wall + seconds:.3f}", "x-ratelimit-remaining": "0"}, seconds),
        ({"x-ratelimit-reset": f"{(wall + seconds) * 1000:.0f}"}, seconds),
        (
            {
                "anthropic-ratelimit-requests-reset": exact,
                "anthropic-ratelimit-requests-remaining": "0",
            },
            seconds,
        ),
    ]
    return chance.choice(spellings)


def _used_up(prefix: str, what: str, reset: str) -> dict[str, str]:
    return {
        f"{prefix}-limit-{what}": "1000000",  # so much that it is never the reason to wait later
        f"{prefix}-remaining-{what}": "0",
        f"{prefix}-reset-{what}": reset,
    }
