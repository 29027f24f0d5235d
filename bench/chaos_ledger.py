"""Every call that the upstreams of an hour of chaos got, and what became of it."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

from bench.chaos_weather import MACHINE, REDIS, WORKER, Trouble, Weather, Window

# Longer than any answer is kept, stale ones too, and any request lasts.
_KEPT_SECONDS = 60.0
# How soon all workers know that a key is to rest, with what a request takes on its way.
SHARED_SECONDS = 1.5
# A time differs from itself after others were told of it.
_NEARLY_SECONDS = 0.15


@dataclass(slots=True)
class Call:
    """One request that arrived at an upstream; times are monotonic seconds.

    `trouble` is what it ran into; `status` what it was answered with, 0 for nothing.
    """

    number: int
    upstream: str
    key: str
    digests: tuple[str, ...]
    began: float
    ended: float = inf
    trouble: Trouble | None = None
    status: int = 0
    late: float = 0.0  # seconds by which its own pauses were too long
    window: Window | None = field(default=None, repr=False)

    @property
    def went_well(self) -> bool:
        return self.status == 200 and self.trouble in {None, Trouble.SLOW}

    def hits(self, window: Window, now: float) -> None:
        """It runs into this trouble, instead of any that it had."""
        self._leave(now)
        self.trouble, self.window = window.trouble, window
        window.suffers()
        if self.ended < inf:
            self._leave(now)

    def end(self, now: float) -> None:
        """It is over; a second time does nothing."""
        if self.ended == inf:
            self.ended = now
            self._leave(now)

    def _leave(self, now: float) -> None:
        if self.window is not None:
            self.window.suffered(now)
            self.window = None


@dataclass(slots=True)
class Rest:
    """What an upstream said once about when a key may be used again."""

    said: float
    until: float


@dataclass(slots=True)
class Ledger:
    """The calls of the last minute; of older ones, how many there were."""

    weather: Weather
    total: int = 0
    # Calls that did not end within that minute.
    endless: int = 0
    # Calls with a key that no upstream knows, or that another upstream has.
    strangers: int = 0
    # Calls with a key that was to rest, and everybody had the time to know.
    restless: list[tuple[Call, Rest]] = field(default_factory=list)
    _recent: deque[Call] = field(default_factory=deque)
    _by_digest: defaultdict[str, list[Call]] = field(default_factory=lambda: defaultdict(list))
    _by_number: dict[int, Call] = field(default_factory=dict)
    _rests: dict[str, Rest] = field(default_factory=dict)

    @property
    def under_way(self) -> int:
        """Calls that have not ended."""
        return self.endless + sum(call.ended == inf for call in self._recent)

    def called(self, upstream: str, key: str, digests: Sequence[str], now: float) -> Call:
        """One more."""
        self._forget(now)
        self.total += 1
        call = Call(self.total, upstream, key, tuple(digests), now)
        self._recent.append(call)
        self._by_number[call.number] = call
        for digest in set(digests):
            self._by_digest[digest].append(call)
        rest = self._rests.get(key)
        if rest is not None and self._is_known(rest, now):
            self.restless.append((call, rest))
        return call

    def rests(self, key: str, now: float, until: float) -> None:
        """The key's owner was told to leave it alone until then."""
        rest = self._rests.get(key)
        if rest is None or until > rest.until:
            self._rests[key] = Rest(now, until)

    def numbered(self, number: int) -> Call | None:
        """The call of that number, if it is among the recent ones."""
        return self._by_number.get(number)

    def of(self, digests: Iterable[str], began: float, ended: float) -> list[Call]:
        """The calls for any of this content that were under way in that time."""
        found = {
            call.number: call
            for digest in digests
            for call in self._by_digest.get(digest, ())
            if call.began <= ended and call.ended >= began
        }
        return list(found.values())

    def at(self, upstream: str, since: float) -> Iterator[Call]:
        """Those at this upstream that have not ended, or since then."""
        return (call for call in self._recent if call.upstream == upstream and call.ended > since)

    def _is_known(self, rest: Rest, now: float) -> bool:
        """Whether every worker must know by now, and the rest is not over."""
        if not rest.said + SHARED_SECONDS < now < rest.until - _NEARLY_SECONDS:
            return False
        return not self.weather.at(rest.said, now, REDIS, WORKER, MACHINE)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0].began < now - _KEPT_SECONDS:
            call = self._recent.popleft()
            self.endless += call.ended == inf
            self._by_number.pop(call.number, None)
            for digest in set(call.digests):
                calls = self._by_digest[digest]
                calls.remove(call)
                if not calls:
                    del self._by_digest[digest]
