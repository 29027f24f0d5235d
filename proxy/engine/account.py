"""The account of one client's call: its outcome, told once, when it is over."""

from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from proxy.clock import Clock
from proxy.core.outcome import Outcome
from proxy.core.stored_headers import shown_request_id
from proxy.engine.base import Observer
from proxy.engine.flight import Flight, Head
from proxy.upstream.base import Exchange


def answerer(exchange: Exchange) -> dict[str, Any]:
    """The members of an outcome that say which upstream and profile gave the answer."""
    return {
        "upstream": exchange.upstream,
        "profile": exchange.profile,
        "fallback": exchange.fallback,
        "shown_as": exchange.shown_as,
    }


_PLACES: Final = {member.name: place for place, member in enumerate(fields(Outcome))}
_members_of: Final = attrgetter(*_PLACES)


def changed(outcome: Outcome, changes: Mapping[str, Any]) -> Outcome:
    """What `dataclasses.replace` makes; that takes longer than all else that is told of a miss."""
    values = list(_members_of(outcome))
    for name, value in changes.items():
        values[_PLACES[name]] = value
    return Outcome(*values)


class Account:
    """Gathers what becomes of a call, and tells it. `started` is monotonic seconds."""

    def __init__(self, outcome: Outcome, observer: Observer, clock: Clock, started: float) -> None:
        self._outcome = outcome
        self._observer = observer
        self._clock = clock
        self._started = started
        self._told = False
        self._collapsed = False
        # Put into the outcome when that is asked for: each change makes a new one.
        self._changes: dict[str, Any] = {}

    @property
    def outcome(self) -> Outcome:
        """What is known by now."""
        if self._changes:
            self._outcome = changed(self._outcome, self._changes)
            self._changes = {}
        return self._outcome

    def forwarded(self, flight: Flight, head: Head, *, leads: bool) -> None:
        """The head of a flight's answer goes to this client."""
        self._collapsed = not leads
        self._changes |= {
            "status": head.status,
            "forward_status": head.status,
            "upstream": head.upstream,
            "collapsed": not leads,
        }
        if flight.settlement is not None:
            self._changes |= answerer(flight.settlement.exchange)
        if leads and (request_id := shown_request_id(head.headers)):
            self._changes["request_id"] = request_id
        self._settle(flight)

    def end(self, *, complete: bool, flight: Flight | None = None) -> None:
        """The client was sent everything, or was not; tells the outcome, once."""
        if self._told:
            return
        self._told = True
        if flight is not None:
            self._settle(flight)
        self._changes["complete"] = complete
        self._changes["duration_seconds"] = self._clock.monotonic() - self._started
        self._observer.told(self.outcome)

    def _settle(self, flight: Flight) -> None:
        """What is known by now of the answer's worth; storing is the leader's merit alone."""
        settlement = flight.settlement
        if self._collapsed:
            told = flight.entry or settlement or flight
            self._changes["usage"] = told.usage
        elif settlement is not None:
            not_stored = settlement.not_stored
            self._changes |= {
                "usage": settlement.usage,
                "stored": settlement.stored,
                "not_stored": not_stored.value if not_stored is not None else None,
                "ttl_seconds": settlement.ttl_seconds if settlement.stored else None,
            }
