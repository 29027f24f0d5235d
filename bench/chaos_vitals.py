"""What an hour of chaos does to the processes: memory, descriptors, and whether they get to run."""

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos_weather import Weather
from bench.machine import open_descriptors, resident_bytes

_LOOK_SECONDS = 0.1
_SAMPLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """Of one worker at one moment; monotonic seconds."""

    moment: float
    resident: int
    descriptors: int


@dataclass(slots=True)
class Vitals:
    """Samples of every worker that ever served, by pid; and when the machine was busy."""

    weather: Weather
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    latest: float = 0.0
    over: bool = False
    _waited: dict[int, float] = field(default_factory=dict)

    async def watch(self, workers: list[int]) -> None:
        """Until `over`; `workers` may change meanwhile."""
        sampled = 0.0
        while not self.over:
            began = time.monotonic()
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            self._note_lateness(began, now, now - began - _LOOK_SECONDS)
            for pid in workers:
                self._note_lateness(began, now, self._waited_more(pid))
            if now - sampled >= _SAMPLE_SECONDS:
                sampled = now
                self.sample_all(workers)

    def sample_all(self, workers: list[int]) -> None:
        """Look at all of them now."""
        now = time.monotonic()
        for pid in workers:
            self._sample(pid, now)

    def _note_lateness(self, began: float, now: float, late: float) -> None:
        self.latest = max(self.latest, late)
        self.weather.late(began, now, late)

    def _waited_more(self, pid: int) -> float:
        """Seconds that a process was ready to run and did not, since this was last asked."""
        try:
            waited = int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0
        before = self._waited.get(pid, waited)
        self._waited[pid] = waited
        return waited - before

    def _sample(self, pid: int, now: float) -> None:
        try:
            sample = Sample(now, resident_bytes(pid), open_descriptors(pid))
        except OSError:  # it was killed just now
            return
        self.samples.setdefault(pid, []).append(sample)


def middle_of(samples: list[Sample], began: float, ended: float) -> tuple[float, float] | None:
    """Median of resident bytes and of descriptors in that time; None where there is no sample."""
    found = [sample for sample in samples if began <= sample.moment <= ended]
    if not found:
        return None
    return (
        statistics.median(sample.resident for sample in found),
        statistics.median(sample.descriptors for sample in found),
    )
