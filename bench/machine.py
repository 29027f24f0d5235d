"""What the kernel says of a process, where it may run, and what this machine is (Linux)."""

import datetime as dt
import os
import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path

from proxy import __version__

_TICKS = os.sysconf("SC_CLK_TCK")
# Read before anything is pinned: the core that is measured, and the core of everything else. On a
# machine with one core they are the same.
SERVER_CORE = min(os.sched_getaffinity(0))
LOAD_CORE = max(os.sched_getaffinity(0))


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads so far, from `/proc/PID/stat`."""
    # The name in parentheses may hold anything; the times are fields 14 and 15 of the whole.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def family(pid: int) -> list[int]:
    """A process, and all that descend from it and live."""
    children = (file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    born = [int(child) for line in children for child in line.split()]
    return [pid, *(each for child in born for each in family(child))]


def resident_bytes(pid: int) -> int:
    """Resident memory now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def open_descriptors(pid: int) -> int:
    """Open file descriptors now."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def allow_descriptors() -> None:
    """Let this process and those it starts open as many files as it may."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def threads(pid: int) -> int:
    """Threads now."""
    return sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())


def pin(pid: int, core: int) -> None:
    """Keep a process, and what it starts from now on, on one core."""
    os.sched_setaffinity(pid, {core})


def load_average() -> float:
    """The load of the last minute."""
    return os.getloadavg()[0]


def described(*packages: str) -> str:
    """One paragraph: date, machine, load, versions."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    model = found[1] if found else platform.machine()
    today = dt.datetime.now(dt.UTC).date().isoformat()
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    return (
        f"{today}, magic-proxy {__version__}. {os.cpu_count()} cores ({model}), Linux"
        f" {platform.release()}, Python {platform.python_version()}, {versions}. Load average"
        f" {load_average():.1f}."
    )
