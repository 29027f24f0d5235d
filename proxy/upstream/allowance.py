"""What one key may still do: its limits from the settings, and what answers tell. Pure.

A limit of the settings is never passed; what answers tell is a guess between two answers, so it
holds a key back no longer than it takes to have room for the next request.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from proxy.upstream.limits_told import ToldLimits
from proxy.upstream.windows import Bucket, MinuteWindow

# Clients can choose model names: what is told is kept for so many, by names up to that length.
_MODELS: Final = 32
_NAME_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class Need:
    """What one request asks of a key.

    `prompt_tokens` and `output_tokens` are estimates, `model` is the upstream's name for it, and
    `prefix` a digest of the prompt's start where requests that share it are to share a key.
    """

    model: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefix: bytes | None = None

    @property
    def tokens(self) -> int:
        """All tokens that it can cost."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """One limit as it stands: `kind` is `requests` or `tokens`, `model` None in the settings."""

    kind: str
    limit: int
    left: int
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What was used of a key with limits in the settings; tokens that were estimated too high are
    given back, so that they can be below 0.
    """

    requests: int = 0
    tokens: int = 0

    def __add__(self, other: "Use") -> "Use":
        return Use(self.requests + other.requests, self.tokens + other.tokens)


@dataclass(slots=True)
class _Told:
    requests: Bucket | None = None
    tokens: Bucket | None = None


_NOTHING: Final = _Told()
_NO_USE: Final = Use()


class Allowance:
    """All limits of one key; None for those of the settings is no limit."""

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._requests = MinuteWindow(requests_per_minute) if requests_per_minute else None
        self._tokens = MinuteWindow(tokens_per_minute) if tokens_per_minute else None
        self._told: dict[str, _Told] = {}
        self._untold: Use | None = None

    def limit(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        """Take new limits; what was used of the old ones still counts."""
        self._requests = _limited(self._requests, requests_per_minute)
        self._tokens = _limited(self._tokens, tokens_per_minute)

    def counts_tokens(self, model: str) -> bool:
        """True where a request's tokens matter to a limit that is known."""
        told = self._told.get(model, _NOTHING)
        return self._tokens is not None or told.tokens is not None

    def wait(self, need: Need, now: float) -> float:
        """Seconds until every limit allows the request; 0 is now."""
        seconds = 0.0
        if self._requests is not None:
            seconds = self._requests.wait(1, now)
        if self._tokens is not None:
            seconds = max(seconds, self._tokens.wait(need.tokens, now))
        told = self._told.get(need.model, _NOTHING)
        if told.requests is not None:
            seconds = max(seconds, told.requests.wait(1, now))
        if told.tokens is not None:
            # Providers differ on whether what may be written counts from the start.
            seconds = max(seconds, told.tokens.wait(max(need.prompt_tokens, 1), now))
        return seconds

    def headroom(self, model: str, now: float) -> float | None:
        """The share that is left of the tightest limit, 0 to 1; None where none is known."""
        told = self._told.get(model, _NOTHING)
        least = None
        for limit in (self._requests, self._tokens, told.requests, told.tokens):
            if limit is not None:
                share = limit.left(now) / limit.limit
                if least is None or share < least:
                    least = share
        return None if least is None else max(least, 0.0)

    def take(self, need: Need, now: float) -> None:
        """A request begins."""
        if self._requests is not None or self._tokens is not None:
            self._untold = (self._untold or _NO_USE) + Use(1, need.tokens)
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(need.tokens, now)
        told = self._told.get(need.model, _NOTHING)
        if told.requests is not None:
            told.requests.take(1, now)
        if told.tokens is not None:
            told.tokens.take(need.prompt_tokens, now)

    def spent(self, need: Need, at: float, tokens: int) -> None:
        """The request that began at `at` cost `tokens`, not what was estimated."""
        if self._tokens is not None:
            corrected = self._tokens.correct(at, tokens - need.tokens)
            self._untold = (self._untold or _NO_USE) + Use(0, corrected)

    @property
    def has_use(self) -> bool:
        """True where something was used that `used` has not told."""
        return self._untold is not None

    def used(self) -> Use | None:
        """What was used since this was last asked, for others to count; None for nothing."""
        use, self._untold = self._untold, None
        return use

    def others_used(self, use: Use, now: float) -> None:
        """Others used the same key."""
        if self._requests is not None:
            self._requests.others_took(use.requests, now)
        if self._tokens is not None:
            self._tokens.others_took(use.tokens, now)

    def told(self, model: str, limits: ToldLimits, now: float) -> None:
        """What an answer said counts for its model from now on."""
        if len(model) > _NAME_LENGTH:
            return
        told = self._told.get(model)
        if told is None:
            if len(self._told) >= _MODELS:
                del self._told[next(iter(self._told))]
            told = self._told[model] = _Told()
        if limits.requests is not None:
            told.requests = Bucket(limits.requests, now)
        if limits.tokens is not None:
            told.tokens = Bucket(limits.tokens, now)

    def statuses(self, now: float) -> Iterator[LimitStatus]:
        """Every limit that is known."""
        for kind, window in (("requests", self._requests), ("tokens", self._tokens)):
            if window is not None:
                yield LimitStatus(kind, window.limit, max(window.left(now), 0))
        for model, told in self._told.items():
            for kind, bucket in (("requests", told.requests), ("tokens", told.tokens)):
                if bucket is not None:
                    yield LimitStatus(kind, bucket.limit, int(bucket.left(now)), model)

    def tightest(self, now: float) -> float | None:
        """The headroom over all models."""
        shares = [status.left / status.limit for status in self.statuses(now)]
        return min(shares, default=None)


def _limited(window: MinuteWindow | None, limit: int | None) -> MinuteWindow | None:
    if limit is None:
        return None
    if window is None:
        return MinuteWindow(limit)
    window.limit = limit
    return window
