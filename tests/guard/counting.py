"""Counts what Python does: bytecode instructions and calls, which are steady where time is not.

Only Python's own work is seen, of the thread that counts. What a function in C does inside is not:
that it is called is.
"""

import gc
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final

_HERE: Final = str(Path(__file__).parent)
_PROXY: Final = str(Path(__file__).parents[2] / "proxy")
_PACKAGES: Final = "/site-packages/"


@dataclass(frozen=True, slots=True)
class Counts:
    """What one request took. `calls` are those of Python functions, coroutines that go on, and C."""

    instructions: int
    calls: int


@dataclass(frozen=True, slots=True)
class Tally:
    """The counts, and where the instructions belong: `proxy`, a package's name, or `python`."""

    counts: Counts
    origins: Counter[str]


async def tally(work: Callable[[], Awaitable[None]]) -> Tally:
    """Do the work once and count, but for what this directory's own code does in it."""
    instructions: Counter[CodeType] = Counter()
    calls = 0

    def call(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        # A call into C is told with the frame that makes it.
        if event in {"call", "c_call"} and not _is_ours(frame.f_code):
            calls += 1

    gc.collect()
    gc.disable()
    try:
        with _each_instruction(instructions):
            sys.setprofile(call)
            try:
                await work()
            finally:
                sys.setprofile(None)
    finally:
        gc.enable()
    origins: Counter[str] = Counter()
    for code, count in instructions.items():
        origins[_origin(code.co_filename)] += count
    return Tally(Counts(instructions.total(), calls), origins)


if sys.version_info >= (3, 12):  # where tracing tells of a frame's first instructions no more

    @contextmanager
    def _each_instruction(counts: Counter[CodeType]) -> Iterator[None]:
        watching, tool = sys.monitoring, sys.monitoring.DEBUGGER_ID

        def step(code: CodeType, _: int) -> Any:
            if _is_ours(code):
                return watching.DISABLE
            counts[code] += 1
            return None

        watching.use_tool_id(tool, "guard")
        watching.register_callback(tool, watching.events.INSTRUCTION, step)
        watching.set_events(tool, watching.events.INSTRUCTION)
        try:
            yield
        finally:
            watching.set_events(tool, watching.events.NO_EVENTS)
            watching.free_tool_id(tool)

else:

    @contextmanager
    def _each_instruction(counts: Counter[CodeType]) -> Iterator[None]:
        def step(frame: FrameType, event: str, _: Any) -> Any:
            if event == "opcode":
                counts[frame.f_code] += 1
            return step

        def enter(frame: FrameType, _: str, __: Any) -> Any:
            if _is_ours(frame.f_code):
                return None
            frame.f_trace_lines = False
            frame.f_trace_opcodes = True
            return step

        assert sys.gettrace() is None, "a debugger, or a measure of coverage, is counting already"
        sys.settrace(enter)
        try:
            yield
        finally:
            sys.settrace(None)


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(_HERE)


def _origin(file: str) -> str:
    if file.startswith(_PROXY):
        return "proxy"
    _, found, package = file.rpartition(_PACKAGES)
    return package.partition("/")[0] if found else "python"
