"""Fakes that several suites share; each stands in for a Protocol of the package."""

import asyncio


class RoundTrips:
    """A `LookUpObserver` that remembers."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int]] = []

    def looked_up(self, store: str, keys: int) -> None:
        self.taken.append((store, keys))


class FakeClock:
    """A `Clock` that moves only when it is told to.

    `sleep` advances both times at once and yields to the loop, so that code under test which waits
    in turns with other tasks still takes turns. `slept` lists what was asked for, in order.
    """

    def __init__(self, wall: float = 1_800_000_000.0, monotonic: float = 1_000.0) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self.slept: list[float] = []

    def wall(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(max(seconds, 0.0))
        await asyncio.sleep(0)

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass on both clocks."""
        assert seconds >= 0.0, "only the wall clock steps backwards: set_wall"
        self._wall += seconds
        self._monotonic += seconds

    def set_wall(self, wall: float) -> None:
        """Step the wall clock, also backwards; monotonic time does not notice."""
        self._wall = wall
