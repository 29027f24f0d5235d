"""New answers fetched in the background, while the old ones still serve."""

from proxy.engine.flights import Errand, Flights
from proxy.engine.leading import Leader
from proxy.engine.plan import Plan


class Refreshes:
    """Starts refreshes: one at a time for each key, so many at once and no more."""

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        self._keys: set[str] = set()
        self.skipped = 0
        """How many were not started because too many were under way."""

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._keys)

    def start(self, leader: Leader, plan: Plan, key: str, *, most: int) -> bool:
        """Fetch a new answer for `key`, unless that is already done or `most` are under way.

        False where it is not fetched.
        """
        if key in self._keys or self._flights.joinable(key) is not None:
            return True
        if len(self._keys) >= most:
            self.skipped += 1
            return False
        self._keys.add(key)
        flight = self._flights.start(leader, plan, key, Errand.REFRESH)
        assert flight.task is not None
        flight.task.add_done_callback(lambda _: self._keys.discard(key))
        return True
