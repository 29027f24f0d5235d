"""Measuring on a machine that others use as well: turns that they disturbed are taken again."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from bench.machine import cpu_seconds, family
from bench.processes import Running

# More than this share of a core taken by others: a disturbed turn.
DISTURBED_SHARE = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    """What a turn came to, and the share of one core that others had meanwhile."""

    came: T
    others: float

    @property
    def is_quiet(self) -> bool:
        return self.others <= DISTURBED_SHARE


@dataclass(slots=True)
class Patience:
    """Until when (monotonic) turns may be taken again; how many stayed disturbed."""

    until: float
    turns: int = 0
    disturbed: int = 0

    def __str__(self) -> str:
        return f"{self.disturbed} of {self.turns} turns were disturbed by other processes."


def quietly(turn: Callable[[], T], servers: Sequence[Running], patience: Patience) -> T:
    """The first turn that nobody disturbed; past the patience, the one least disturbed."""
    taken = [_watched(turn, servers)]
    while not taken[-1].is_quiet and time.monotonic() < patience.until:
        taken.append(_watched(turn, servers))
    best = min(taken, key=lambda each: each.others)
    patience.turns += 1
    patience.disturbed += not best.is_quiet
    return best.came


def _watched(turn: Callable[[], T], servers: Sequence[Running]) -> Taken[T]:
    began, busy, ours = time.monotonic(), _busy_seconds(), _our_seconds(servers)
    came = turn()
    seconds = time.monotonic() - began
    others = (_busy_seconds() - busy) - (_our_seconds(servers) - ours)
    return Taken(came, others / seconds)


def _our_seconds(servers: Sequence[Running]) -> float:
    ended = os.times()  # such as wrk
    mine = cpu_seconds(os.getpid()) + ended.children_user + ended.children_system
    return mine + sum(cpu_seconds(pid) for server in servers for pid in family(server.pid))


def _busy_seconds() -> float:
    """User and system time of all processes, and what other guests had of the machine's cores."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, fields)
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")
