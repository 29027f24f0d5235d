"""What is broken when, and until when that can be felt: the record that failures are held against.

Times are monotonic seconds, handed in. A window's consequences outlast it: answers that were begun
in it go on, keys rest, circuits stay open. `Window.until` says when all of that is surely over.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from bench.chaos_rules import (
    KEY_COOLDOWN_SECONDS,
    KEY_RETIRE_SECONDS,
    KEYS,
    LEASE_SECONDS,
    MAX_OPEN_SECONDS,
    OPEN_SECONDS,
)

# Others are told of a key within a second, and a busy machine takes its time.
SLACK_SECONDS = 1.5
# Circuits spread their waits by a fifth.
_JITTER = 1.2
# A store's circuit looks again after one second, two at most.
_REDIS_SECONDS = 3.0
# A time-out of the proxy is nearer by so much than it seems, or one of a client.
_LATE_SECONDS, _LATE_SHARE, _BUSY_SECONDS = 0.5, 0.5, 0.15
# Windows that are over for longer than any request lasts.
_KEPT_SECONDS = 60.0


class Trouble(StrEnum):
    """What can be broken."""

    # An upstream, for a share of its calls:
    STATUS = "answers 500, 503, 529"
    STALL = "stalls"
    RESET = "resets before the answer"
    BREAK = "resets in the middle"
    TRUNCATE = "closes in the middle"
    SHORT = "ends early in good order"
    ERROR = "errors inside 200"
    TRICKLE = "trickles"
    SLOW = "is slow"
    REFUSE = "refuses connections"
    # A key:
    REVOKED = "revoked (401)"
    CLOSED = "account closed (403)"
    LIMITED = "limited (429, with a time)"
    UNSAID = "limited (429, without)"
    QUOTA = "out of quota (429, 402)"
    # What the proxy stands on:
    FROZEN = "Redis frozen"
    EMPTIED = "Redis killed, back empty"
    KILLED = "a worker killed"
    # Nothing of the above, the machine did not run it in time: so much that time-outs run out, or
    # so much that only clients with little time feel it.
    LATE = "the machine stood still"
    BUSY = "the machine was busy"


REFUSALS = frozenset({Trouble.REVOKED, Trouble.CLOSED})
KEY_TROUBLES = (*sorted(REFUSALS), Trouble.LIMITED, Trouble.UNSAID, Trouble.QUOTA)
REDIS_TROUBLES = (Trouble.FROZEN, Trouble.EMPTIED)
# A plain answer that has it is not asked for again: it took all the time, or looks whole.
FINAL = frozenset({Trouble.TRICKLE, Trouble.SHORT, Trouble.ERROR})
# It comes after the answer has begun.
IN_BODY = FINAL | {Trouble.BREAK, Trouble.TRUNCATE, Trouble.REFUSE}
UPSTREAM_TROUBLES = (*sorted(IN_BODY), Trouble.STATUS, Trouble.STALL, Trouble.RESET, Trouble.SLOW)
REDIS, WORKER, MACHINE, HASTE = "redis", "worker", "machine", "haste"


class Sky(StrEnum):
    """How it stood with the upstreams of a request while it was under way."""

    CLEAR = "nothing broken"
    CLOUDED = "some broken"
    OUT = "none surely well"


@dataclass(slots=True)
class Window:
    """A time in which `place` (an upstream, a key, or what the proxy stands on) is in trouble.

    `under_way` counts the calls that suffer from it, `last` is when the last of them ended, `rests`
    until when a key was told to rest.
    """

    trouble: Trouble
    place: str
    began: float
    ended: float = inf
    last: float = 0.0
    under_way: int = 0
    calls: int = 0
    rests: float = 0.0

    @property
    def until(self) -> float:
        """When nobody can feel it any more; infinite while that can't be said."""
        if self.ended == inf or self.under_way:
            return inf
        last = max(self.ended, self.last)
        if self.trouble in REFUSALS:
            # Each probe that was refused doubled the time: all of them together are shorter than
            # the next.
            return last + (last - self.began) + KEY_RETIRE_SECONDS + SLACK_SECONDS
        if self.trouble in KEY_TROUBLES:
            return max(last + KEY_COOLDOWN_SECONDS, self.rests) + SLACK_SECONDS
        if self.trouble in REDIS_TROUBLES:
            return last + _REDIS_SECONDS
        if self.trouble is Trouble.KILLED:
            return last + LEASE_SECONDS + SLACK_SECONDS
        # So it is with a circuit's waits.
        wait = min(last - self.began + OPEN_SECONDS, MAX_OPEN_SECONDS)
        return last + wait * _JITTER + SLACK_SECONDS

    def suffers(self) -> None:
        """A call runs into it."""
        self.calls += 1
        self.under_way += 1

    def suffered(self, now: float) -> None:
        """Such a call has ended."""
        self.under_way -= 1
        self.last = max(self.last, now)

    def felt(self, began: float, ended: float) -> bool:
        """Whether it could be felt in that time."""
        return self.began <= ended and began <= self.until


@dataclass(slots=True)
class Weather:
    """All windows."""

    windows: list[Window] = field(default_factory=list)
    # By place, those that requests under way may feel.
    _lately: defaultdict[str, list[Window]] = field(default_factory=lambda: defaultdict(list))

    def begins(self, trouble: Trouble, place: str, now: float) -> Window:
        """Something breaks."""
        window = Window(trouble, place, now)
        self.windows.append(window)
        lately = [each for each in self._lately[place] if each.until > now - _KEPT_SECONDS]
        self._lately[place] = [*lately, window]
        return window

    def late(self, began: float, ended: float, seconds: float) -> None:
        """In that time something here was run so much later than it should have been."""
        if seconds > _BUSY_SECONDS:
            self._was_late(Trouble.BUSY, HASTE, began, ended)
        if seconds > max(_LATE_SECONDS, _LATE_SHARE * (ended - began)):
            self._was_late(Trouble.LATE, MACHINE, began, ended)

    def _was_late(self, trouble: Trouble, place: str, began: float, ended: float) -> None:
        """One window for as long as it goes on."""
        last = self._lately[place][-1] if self._lately[place] else None
        if last is None or began > last.ended or ended < last.began:
            last = self.begins(trouble, place, began)
            last.ended = ended
        last.began, last.ended = min(last.began, began), max(last.ended, ended)

    def at(self, began: float, ended: float, *places: str) -> list[Window]:
        """What could be felt of these places in that time."""
        return [
            window
            for place in places
            for window in self._lately[place]
            if window.felt(began, ended)
        ]

    def lost_seconds(self, began: float, ended: float, place: str) -> float:
        """How much of that time the machine did not run everything (MACHINE or HASTE)."""
        lost, until = 0.0, began
        for window in sorted(self._lately[place], key=lambda window: window.began):
            lost += max(0.0, min(window.ended, ended) - max(window.began, until))
            until = max(until, min(window.ended, ended))
        return lost

    def out(self, upstream: str, began: float, ended: float) -> list[Window]:
        """What can have kept this upstream from answering at all; nothing: it must answer."""
        found = [
            window
            for window in self.at(began, ended, upstream, MACHINE)
            if window.trouble is not Trouble.SLOW
        ]
        keys = KEYS[upstream]
        has_key = not all(self.at(began, ended, key) for key in keys)
        return found if has_key else found + self.at(began, ended, *keys)

    def chain_out(self, chain: Sequence[str], began: float, ended: float) -> list[Window]:
        """What can have kept every upstream of a chain from answering; nothing: one must."""
        outs = [self.out(upstream, began, ended) for upstream in chain]
        return [window for out in outs for window in out] if all(outs) else []

    def of_chain(self, chain: Iterable[str], began: float, ended: float) -> list[Window]:
        """Whatever was wrong with any upstream of a chain, any of its keys, or the machine."""
        places = (place for upstream in chain for place in (upstream, *KEYS[upstream]))
        return self.at(began, ended, MACHINE, *places)

    def sky(self, chain: Sequence[str], began: float, ended: float) -> Sky:
        """In a word."""
        if self.chain_out(chain, began, ended):
            return Sky.OUT
        return Sky.CLOUDED if self.of_chain(chain, began, ended) else Sky.CLEAR

    @property
    def until(self) -> float:
        """When nothing that was broken can be felt any more; infinite while that can't be said."""
        broken = [place for place in self._lately if place not in {MACHINE, HASTE}]
        return max((each.until for place in broken for each in self._lately[place]), default=0.0)
