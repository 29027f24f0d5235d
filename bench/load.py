"""Load by wrk, and what one run of it came to."""

import resource
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import orjson

from bench.machine import LOAD_CORE
from bench.processes import Running

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("load.lua")
_INSTALL = Path(__file__).parents[1] / "scripts" / "apt-install.sh"


class Requests(StrEnum):
    """What is asked; the words of `load.lua`."""

    SAME = "same"  # one request, byte for byte
    SPELLED = "spelled"  # one request, its white space never the same twice
    CYCLED = "cycled"  # some requests, again and again
    DISTINCT = "distinct"  # a new request each time


@dataclass(frozen=True, slots=True)
class Run:
    """What wrk counted; latencies in microseconds, `load_cpu_seconds` is its own."""

    requests: int
    seconds: float
    bytes: int
    p50_us: int
    p99_us: int
    load_cpu_seconds: float


def wrk() -> str:
    """The program, installed from Debian's packages where it is not there yet."""
    found = shutil.which("wrk")
    if found is None:
        print("wrk is not here; installing Debian's package wrk", flush=True)
        subprocess.run([_INSTALL, "wrk"], check=True)
        found = shutil.which("wrk")
    assert found is not None
    return found


def run(
    server: Running, requests: Requests, *, seconds: int, first: int = 0, count: int = 1
) -> Run:
    """Ask a server for some time. Raises AssertionError if any answer was no 2xx."""
    before = _children_seconds()
    command = [wrk(), "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(_SCRIPT)]
    command += [f"{server.url}/v1/chat/completions", "--", requests.value, str(first), str(count)]
    written = subprocess.run(
        ["taskset", "-c", str(LOAD_CORE), *command], check=True, capture_output=True, text=True
    ).stdout
    told = orjson.loads(written.rstrip().rpartition("\n")[2])
    assert told["not_2xx"] == told["failed"] == 0, written
    return Run(
        requests=told["requests"],
        seconds=told["seconds"],
        bytes=told["bytes"],
        p50_us=told["p50_us"],
        p99_us=told["p99_us"],
        load_cpu_seconds=_children_seconds() - before,
    )


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
