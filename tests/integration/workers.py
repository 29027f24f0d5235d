"""Proxies of several workers, and clients that choose which of them answers."""

import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.integration.processes import ServedProxy
from tests.waiting import eventually


class Workers(ServedProxy):
    """One `magic-proxy serve --workers N`; it listens when all of them do."""

    def __init__(self, file: Path, count: int, *, before: str = "") -> None:
        super().__init__(file, "--workers", str(count), before=before)

    @property
    def pids(self) -> dict[int, int]:
        """The process that serves in each worker's place now, by the numbers of the places."""
        serves = (re.search(r"worker (\d+) \(pid (\d+)\) serves", line) for line in self.err)
        return {int(found[1]): int(found[2]) for found in serves if found}

    def __exit__(self, *given: object) -> None:
        if self.process.poll() is not None:  # workers that outlived it are what a test looks for
            for pid in self.pids.values():
                with suppress(OSError):
                    if str(self.file) in Path(f"/proc/{pid}/cmdline").read_text():
                        os.kill(pid, signal.SIGKILL)
        super().__exit__(*given)

    @contextmanager
    def client_of(self, number: int, **headers: str) -> Iterator[httpx.Client]:
        """A client whose one connection is to this worker: nobody else can accept it."""
        others = [pid for place, pid in self.pids.items() if place != number]
        with httpx.Client(base_url=self.url, headers=headers, timeout=30.0) as client:
            for pid in others:
                stop_running(pid)
            try:
                client.get("/healthz").raise_for_status()
            finally:
                for pid in others:
                    os.kill(pid, signal.SIGCONT)
            yield client

    def kill(self, number: int, by: signal.Signals = signal.SIGKILL) -> int:
        """End a worker, and return when another serves in its place: that one's pid."""
        before = self.pids[number]
        os.kill(before, by)
        eventually(lambda: self.pids[number] != before)
        return self.pids[number]


def start_workers(
    directory: Path,
    upstream: str,
    count: int = 2,
    over: Mapping[str, Any] | None = None,
    *,
    before: str = "",
) -> Workers:
    """Start workers in front of an upstream, with a disk store of their own."""
    settings: dict[str, Any] = {
        "server": {"port": 0, "access_log": False},
        "upstreams": {"openai": {"base_url": upstream}},
        "store": {"disk": {"path": str(directory / "cache.sqlite3")}},
    }
    for section, members in (over or {}).items():
        both = isinstance(members, dict) and section in settings
        settings[section] = {**settings[section], **members} if both else members
    file = directory / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    return Workers(file, count, before=before)


def stop_running(pid: int) -> None:
    """Return when the process stands still; SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: _state(pid) == "T")


def gone(pid: int) -> bool:
    """True when the process has ended, reaped or not."""
    return _state(pid) in {"Z", ""}


def _state(pid: int) -> str:
    """The letter of its state; none where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return ""
    return stat.rpartition(")")[2].split()[0]
