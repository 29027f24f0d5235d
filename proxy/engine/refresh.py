"""New answers fetched in the background, while the old ones still serve."""

import random
from collections.abc import Iterable, Sequence
from typing import Final

from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd
from proxy.core.entry import Entry
from proxy.core.freshness import refreshes_ahead
from proxy.engine.flight import Flight
from proxy.engine.flights import Errand, Flights
from proxy.engine.item_asking import Asking, Want
from proxy.engine.item_fetch import Fetch
from proxy.engine.item_fetches import Fetches
from proxy.engine.leading import Leader
from proxy.engine.plan import Plan
from proxy.engine.probing import Probes

# While an upstream is down, every request for a stale entry would otherwise try it anew.
_PAUSE_SECONDS: Final = 1.0


def ahead_of_time(entry: Entry, now: float, *, eagerness: float) -> bool:
    """Whether this hit, at wall time `now`, is the one that has a fresh entry replaced."""
    draw = 1.0 - random.random()  # noqa: S311 - a chance, not a secret
    return refreshes_ahead(entry, now, eagerness=eagerness, draw=draw)


class Refreshes:
    """Starts refreshes: one at a time for each key, so many at once and no more.

    What is fetched for a batch of embeddings counts as one.
    """

    def __init__(self, flights: Flights, clock: Clock) -> None:
        self._flights = flights
        self._clock = clock
        self._keys: set[str] = set()
        self._under_way = 0
        # When a key that failed may be tried again; as few as there can be under way in a second.
        self._not_before: dict[str, float] = {}
        self._probes = Probes(clock)
        self.skipped = 0
        """How many were not started because too many were under way."""

    def __len__(self) -> int:
        """How many are under way."""
        return self._under_way

    def start(self, leader: Leader, plan: Plan, key: str, *, most: int) -> bool:
        """Fetch a new answer for `key`, unless that is already done or `most` are under way.

        False where it is not fetched: also for a second after one that came to nothing.
        """
        if key in self._keys or self._flights.joinable(key) is not None:
            return True
        if self._is_paused(key) or not self._has_room(most):
            return False
        flight = self._flights.start(leader, plan, key, Errand.REFRESH)
        assert flight.task is not None
        self._begin([key])
        flight.task.add_done_callback(lambda _: self._flight_ended(key, flight))
        return True

    def start_items(
        self, fetches: Fetches, asking: Asking, plan: Plan, wants: Sequence[Want], *, most: int
    ) -> bool:
        """The same for items of a batch, in one request; False where none of them is fetched."""
        left = [
            want
            for want in wants
            if want.store_key not in self._keys and fetches.under_way(plan, want.store_key) is None
        ]
        due = [want for want in left if not self._is_paused(want.store_key)]
        if not due or not self._has_room(most):
            return len(left) < len(wants)
        fetch = fetches.refresh(asking, plan, due)
        assert fetch.task is not None
        self._begin(fetch.wants)
        fetch.task.add_done_callback(lambda _: self._fetch_ended(fetch))
        return True

    def probe(self, leader: Leader, plan: Plan, key: str) -> None:
        """Let the fetch of a new answer for `key` be a circuit's probe; nobody joins that."""
        upstream = plan.chain.profiles[0].upstream
        if self._probes.may_begin(upstream):
            flight = self._flights.start(leader, plan, key, Errand.PROBE)
            assert flight.task is not None
            self._probes.began(upstream, flight.task)

    def probe_items(
        self, fetches: Fetches, asking: Asking, plan: Plan, wants: Sequence[Want]
    ) -> None:
        """The same with items of a batch."""
        upstream = plan.chain.profiles[0].upstream
        if self._probes.may_begin(upstream):
            fetch = fetches.refresh(asking, plan, wants, joinable=False)
            assert fetch.task is not None
            self._probes.began(upstream, fetch.task)

    def _is_paused(self, key: str) -> bool:
        return self._clock.monotonic() < self._not_before.get(key, 0.0)

    def _has_room(self, most: int) -> bool:
        if self._under_way < most:
            return True
        self.skipped += 1
        return False

    def _begin(self, keys: Iterable[str]) -> None:
        self._keys.update(keys)
        self._under_way += 1

    def _flight_ended(self, key: str, flight: Flight) -> None:
        self._ended([key], stored=flight.end is FlightEnd.STORED)

    def _fetch_ended(self, fetch: Fetch) -> None:
        # Of those that were stored after all nobody asks for a new one within the pause.
        self._ended(fetch.wants, stored=fetch.stored == len(fetch.wants))

    def _ended(self, keys: Iterable[str], *, stored: bool) -> None:
        self._keys.difference_update(keys)
        self._under_way -= 1
        now = self._clock.monotonic()
        self._not_before = {key: then for key, then in self._not_before.items() if then > now}
        if not stored:
            self._not_before.update(dict.fromkeys(keys, now + _PAUSE_SECONDS))
