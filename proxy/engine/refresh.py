"""New answers fetched in the background, while the old ones still serve."""

from typing import Final

from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd
from proxy.engine.flight import Flight
from proxy.engine.flights import Errand, Flights
from proxy.engine.leading import Leader
from proxy.engine.plan import Plan

# While an upstream is down, every request for a stale entry would otherwise try it anew.
_PAUSE_SECONDS: Final = 1.0


class Refreshes:
    """Starts refreshes: one at a time for each key, so many at once and no more."""

    def __init__(self, flights: Flights, clock: Clock) -> None:
        self._flights = flights
        self._clock = clock
        self._keys: set[str] = set()
        # When a key that failed may be tried again; as few as there can be under way in a second.
        self._not_before: dict[str, float] = {}
        self.skipped = 0
        """How many were not started because too many were under way."""

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._keys)

    def start(self, leader: Leader, plan: Plan, key: str, *, most: int) -> bool:
        """Fetch a new answer for `key`, unless that is already done or `most` are under way.

        False where it is not fetched: also for a second after one that came to nothing.
        """
        if key in self._keys or self._flights.joinable(key) is not None:
            return True
        if self._clock.monotonic() < self._not_before.get(key, 0.0):
            return False
        if len(self._keys) >= most:
            self.skipped += 1
            return False
        self._keys.add(key)
        flight = self._flights.start(leader, plan, key, Errand.REFRESH)
        assert flight.task is not None
        flight.task.add_done_callback(lambda _: self._ended(key, flight))
        return True

    def _ended(self, key: str, flight: Flight) -> None:
        self._keys.discard(key)
        now = self._clock.monotonic()
        self._not_before = {key: then for key, then in self._not_before.items() if then > now}
        if flight.end is not FlightEnd.STORED:
            self._not_before[key] = now + _PAUSE_SECONDS
