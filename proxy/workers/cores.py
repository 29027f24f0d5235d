"""How many cores this process may use: what `workers: auto` means."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Cores that the scheduler lets it run on, or the time that its container may take of them."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        allowed = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(_GROUPS, _OWN_GROUP)]
    return max(min(allowed, *quotas), 1) if quotas else allowed


def _quotas(root: Path, own: Path) -> Iterator[float]:
    """The limits of this process's control group (version 2) and of those around it, in cores."""
    try:
        (line,) = [line for line in own.read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return
    group = root / line.removeprefix("0::").lstrip("/")
    for each in (group, *group.parents):
        if not each.is_relative_to(root):
            return
        try:
            quota, period = (each / "cpu.max").read_text().split()
        except (OSError, ValueError):  # the root has none
            continue
        if quota != "max":
            yield int(quota) / int(period)
