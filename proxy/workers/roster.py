"""Who serves and who is to be started, stopped or given up: decides, and does nothing itself.

Every method takes what happened and returns what is to be done. Time comes in as `now` (monotonic
seconds); only ticks count how long a worker was silent, so that a machine that was suspended, and
all its processes with it, finds nobody guilty when it goes on.
"""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from typing import Final, TypeAlias

TICK_SECONDS: Final = 0.5
"""How often `tick` is to be called."""
# A worker that starts builds up connections and reads files: so long, at least, nobody is hung.
START_SECONDS: Final = 30.0
# One that hangs is given time to write down where; then it is killed. No signal that would leave a
# core dump: there are prompts and keys in it.
SAY_WHERE: Final = signal.SIGUSR2
_LAST_WORDS_TICKS: Final = 2
# A life this long makes up for the deaths before.
_GOOD_LIFE_SECONDS: Final = 60.0
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
# So many failed starts in a row, with nobody serving, and there is no use in trying further.
MOST_FAILED_STARTS: Final = 5


class Level(StrEnum):
    """How loud a line is."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Start:
    """Fork a worker for this place."""

    number: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send a signal to the worker in this place."""

    number: int
    signal: signal.Signals


@dataclass(frozen=True, slots=True)
class Say:
    """Write a line into the log."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """All workers have ended: end with this exit code."""

    code: int


Act: TypeAlias = Start | Send | Say | Finish


class _State(StrEnum):
    RESTING = "resting"  # to be started when its time has come
    STARTING = "starting"
    SERVING = "serving"
    GONE = "gone"  # and none will follow


@dataclass(slots=True)
class _Place:
    number: int
    state: _State = _State.RESTING
    due_at: float = 0.0
    began_at: float = 0.0
    pid: int = 0
    short_lives: int = 0
    silent_ticks: int = 0

    @property
    def lives(self) -> bool:
        return self.state in {_State.STARTING, _State.SERVING}

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.pid})"


class Roster:
    """`count` places, numbered from 1; each has one worker at a time."""

    def __init__(self, count: int, *, timeout_seconds: float, stop_seconds: float) -> None:
        self._places = {number: _Place(number) for number in range(1, count + 1)}
        self._hang_ticks = ceil(timeout_seconds / TICK_SECONDS)
        self._start_ticks = max(self._hang_ticks, ceil(START_SECONDS / TICK_SECONDS))
        self._stop_seconds = stop_seconds
        self._has_served = False
        self._failed_starts = 0
        self._stopping: float | None = None  # until when workers may take their time
        self._exit_code = 0
        self.restarts = 0
        """Workers that took the place of one that had ended."""

    @property
    def serving(self) -> int:
        """How many workers serve."""
        return sum(place.state is _State.SERVING for place in self._places.values())

    @property
    def is_complete(self) -> bool:
        """True while every place has a worker that serves."""
        return self.serving == len(self._places)

    @property
    def is_stopping(self) -> bool:
        """True once no worker is started any more."""
        return self._stopping is not None

    def tick(self, now: float) -> list[Act]:
        """Time has passed: start who is due, and end who is silent or too slow."""
        if self._stopping is not None:
            return self._overdue(now)
        acts = self._due(now)
        for place in self._places.values():
            if place.lives:
                acts += self._silence(place)
        return acts

    def started(self, number: int, pid: int, now: float) -> None:
        """A worker was forked."""
        place = self._places[number]
        self.restarts += place.pid != 0
        place.state, place.pid, place.began_at, place.silent_ticks = _State.STARTING, pid, now, 0

    def heard(self, number: int) -> None:
        """A worker has said something: its loop turns."""
        self._places[number].silent_ticks = 0

    def ready(self, number: int) -> list[Act]:
        """A worker accepts connections."""
        place = self._places[number]
        place.state = _State.SERVING
        self._has_served = True
        self._failed_starts = 0
        return [Say(Level.INFO, f"{place} serves")]

    def ended(self, number: int, code: int, now: float) -> list[Act]:
        """A worker has ended with an exit code, or with -N by signal N."""
        place = self._places[number]
        was_serving = place.state is _State.SERVING
        place.state = _State.GONE
        if self._stopping is not None:
            return self._ended_in_stop()
        if not was_serving:
            return self._start_failed(place, code, now)
        if code == 0:  # somebody told it to: a way to replace workers one by one
            place.state, place.due_at = _State.RESTING, now
            return [Say(Level.INFO, f"{place} has ended; another takes its place"), *self._due(now)]
        return [self._died(place, code, now), *self._due(now)]

    def stop(self, now: float, *, by: signal.Signals = signal.SIGTERM) -> list[Act]:
        """End all workers: in order, or, asked by SIGINT once more, as they are."""
        again = self._stopping is not None
        if again and by is not signal.SIGINT:
            return []
        if not again:
            self._stopping = now + self._stop_seconds
        return self._end_all(signal.SIGINT if again else signal.SIGTERM)

    def _end_all(self, by: signal.Signals) -> list[Act]:
        acts: list[Act] = [Send(place.number, by) for place in self._places.values() if place.lives]
        return acts or [Finish(self._exit_code)]

    def _ended_in_stop(self) -> list[Act]:
        if any(place.lives for place in self._places.values()):
            return []
        return [Finish(self._exit_code)]

    def _start_failed(self, place: _Place, code: int, now: float) -> list[Act]:
        self._failed_starts += 1
        said = f"{place} did not start: {how_ended(code)}"
        if not self._has_served:
            return [Say(Level.ERROR, said), *self._give_up(code, now)]
        if self._failed_starts >= MOST_FAILED_STARTS and self.serving == 0:
            told = f"{said}; giving up after {self._failed_starts} failed starts in a row"
            return [Say(Level.ERROR, told), *self._give_up(code, now)]
        return [self._died(place, code, now, said), *self._due(now)]

    def _give_up(self, code: int, now: float) -> list[Act]:
        self._exit_code = code if code > 0 else 1
        self._stopping = now
        return self._end_all(signal.SIGKILL)

    def _due(self, now: float) -> list[Act]:
        return [
            Start(place.number)
            for place in self._places.values()
            if place.state is _State.RESTING and now >= place.due_at
        ]

    def _died(self, place: _Place, code: int, now: float, said: str = "") -> Say:
        lived_well = now - place.began_at >= _GOOD_LIFE_SECONDS
        place.short_lives = 1 if lived_well else place.short_lives + 1
        pause = 0.0
        if place.short_lives > 1:
            pause = min(_FIRST_PAUSE * 2 ** (place.short_lives - 2), _LONGEST_PAUSE)
        place.state, place.due_at = _State.RESTING, now + pause
        when = f"in {pause:g} s" if pause else "now"
        said = said or f"{place} died: {how_ended(code)}"
        return Say(Level.ERROR, f"{said}; another takes its place {when}")

    def _silence(self, place: _Place) -> Iterator[Act]:
        place.silent_ticks += 1
        allowed = self._hang_ticks if place.state is _State.SERVING else self._start_ticks
        if place.silent_ticks == allowed + 1:
            silent = f"{allowed * TICK_SECONDS:g} s"
            yield Say(Level.ERROR, f"{place} has not been heard of for {silent}: it is ended")
            yield Send(place.number, SAY_WHERE)
        elif place.silent_ticks > allowed + _LAST_WORDS_TICKS:
            yield Send(place.number, signal.SIGKILL)

    def _overdue(self, now: float) -> list[Act]:
        assert self._stopping is not None
        if now < self._stopping:
            return []
        acts: list[Act] = []
        for place in self._places.values():
            if place.lives:
                acts.append(Say(Level.ERROR, f"{place} did not stop in time: it is killed"))
                acts.append(Send(place.number, signal.SIGKILL))
        return acts


def how_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
