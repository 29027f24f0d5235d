"""Probes of circuits that are made in the background, for clients who have a stale answer."""

import asyncio
from typing import Final

from proxy.clock import Clock

# Until the next one, by how many hang: an upstream that accepts and keeps silent would soon have
# all its places taken by probes, and be asked no more once it works again.
_PAUSES_SECONDS: Final = (1.0, 2.0, 4.0, 30.0)
_MOST_HANGING: Final = len(_PAUSES_SECONDS) - 1


class Probes:
    """Those under way, for each upstream. With three that hang, one more gives up the oldest."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self._under_way: dict[str, list[asyncio.Task[None]]] = {}

    def may_begin(self, upstream: str) -> bool:
        """Whether it is time for one; it may be a while until the circuit hears of it."""
        return self._clock.monotonic() >= self._not_before.get(upstream, 0.0)

    def began(self, upstream: str, probe: asyncio.Task[None]) -> None:
        """This one is under way."""
        probes = self._under_way.setdefault(upstream, [])
        if len(probes) == _MOST_HANGING:
            probes.pop(0).cancel()
        probes.append(probe)
        self._not_before[upstream] = self._clock.monotonic() + _PAUSES_SECONDS[len(probes)]
        probe.add_done_callback(lambda _: self._ended(upstream, probe))

    def _ended(self, upstream: str, probe: asyncio.Task[None]) -> None:
        probes = self._under_way[upstream]
        if probe in probes:
            probes.remove(probe)
            soon = self._clock.monotonic() + _PAUSES_SECONDS[0]
            self._not_before[upstream] = min(self._not_before[upstream], soon)
