"""Load by wrk, and what one run of it came to."""

import resource
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import orjson

from bench.machine import LOAD_CORE
from bench.processes import Running, program
from bench.question import CHAT, Question

CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("load.lua")
# Some peers take half a second for an answer under this load, and more on a busy machine.
_TIMEOUT = "30s"
# How many requests of a kind were sent so far, to whomever.
_sent: Counter["Requests"] = Counter()


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
    load_cpu_seconds: float = 0.0


def run(
    server: Running,
    requests: Requests,
    *,
    seconds: int,
    first: int = 0,
    count: int = 1,
    question: Question = CHAT,
    connections: int = CONNECTIONS,
) -> Run:
    """Ask a server for some time; `first` as in `load.lua`, but spellings go on by themselves.

    Raises AssertionError if any answer was no 2xx.
    """
    before = _children_seconds()
    if requests is Requests.SPELLED:
        first = _sent[requests]  # what another run has sent would be known by its bytes
    with tempfile.NamedTemporaryFile("w", prefix="magic-proxy-bench-") as file:
        file.write("\n".join(question.parts()) + "\n")
        file.flush()
        command = ["taskset", "-c", str(LOAD_CORE), program("wrk")]
        command += ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", _TIMEOUT]
        command += ["-s", str(_SCRIPT), f"{server.url}{question.path}"]
        command += ["--", requests.value, str(first), str(count), file.name]
        written = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    came = told(written, _children_seconds() - before)
    _sent[requests] += came.requests + 2 * connections  # some were under way at the end
    return came


def told(written: str, load_cpu_seconds: float) -> Run:
    """What wrk wrote. Raises AssertionError if any answer was no 2xx, or none came."""
    last = orjson.loads(written.rstrip().rpartition("\n")[2])
    assert last.pop("not_2xx") == last.pop("failed") == 0, written
    assert last["requests"] > 0, f"no answer in {last['seconds']:.0f} s"
    return Run(**last, load_cpu_seconds=load_cpu_seconds)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
