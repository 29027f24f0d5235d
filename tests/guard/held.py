"""The counts that are held, one set for each minor version of Python, and the verdict on new ones.

    make guard

counts anew and writes what it finds into `counts.json`, for the Python that runs it. What libraries
do in Python is counted as well, so a new version of one may move the figures: the verdict says
whose they are.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson

from proxy.workers.server import event_loop
from tests.guard.counting import Counts, Tally, tally
from tests.guard.served import served

FILE: Final = Path(__file__).with_name("counts.json")
PYTHON: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
# A path that takes more than so many times what is held has become slower.
MOST: Final = 1.2
PATHS: Final = ("hot", "warm", "miss", "stream", "passed")
_LIBRARIES: Final = ("aiohttp", "multidict", "prometheus-client", "uvicorn", "yarl")
_WARM_UP: Final = 6
_TIMES: Final = 4


def measured(
    paths: Sequence[str] = PATHS, burden: Callable[[], None] = lambda: None
) -> dict[str, Tally]:
    """The least tally of several, of each path; `burden` is what each request takes besides."""
    with (
        tempfile.TemporaryDirectory() as directory,
        asyncio.Runner(loop_factory=event_loop) as runner,
    ):
        return runner.run(_measured(paths, burden, Path(directory)))


async def _measured(
    paths: Sequence[str], burden: Callable[[], None], directory: Path
) -> dict[str, Tally]:
    async with served(directory, burden) as proxy:
        await proxy.begin()
        return {path: await _least(getattr(proxy, path)) for path in paths}


async def _least(request: Callable[[], Awaitable[None]]) -> Tally:
    for _ in range(_WARM_UP):
        await request()
    taken = [await tally(request) for _ in range(_TIMES)]
    least = min(taken, key=lambda each: each.counts.instructions)
    calls = min(each.counts.calls for each in taken)
    return Tally(Counts(least.counts.instructions, calls), least.origins)


def held() -> dict[str, Counts] | None:
    """What is held for this Python; None where nothing is."""
    found = _read().get(PYTHON)
    if found is None:
        return None
    return {path: Counts(**counts) for path, counts in found["counts"].items()}


def hold(tallies: Mapping[str, Tally]) -> None:
    """Write them into the file, beside those of other versions."""
    counts = {
        path: {"instructions": taken.counts.instructions, "calls": taken.counts.calls}
        for path, taken in tallies.items()
    }
    versions = {name: version(name) for name in _LIBRARIES}
    content = _read() | {PYTHON: {"counts": counts, "libraries": versions}}
    FILE.write_bytes(
        orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n"
    )


def faults(tallies: Mapping[str, Tally], before: Mapping[str, Counts]) -> list[str]:
    """One text for each path that takes more than it may."""
    found = []
    for path, taken in tallies.items():
        now, then = taken.counts, before.get(path)
        if then is None:
            found.append(f"{path}: nothing is held of it")
            continue
        if now.instructions <= MOST * then.instructions and now.calls <= MOST * then.calls:
            continue
        whose = ", ".join(f"{origin} {count}" for origin, count in taken.origins.most_common())
        found.append(
            f"{path}: {now.instructions} instructions ({then.instructions} held),"
            f" {now.calls} calls ({then.calls} held); of the instructions: {whose}"
        )
    return found


def moved_libraries() -> list[str]:
    """Those that have another version than when the counts were taken."""
    before = _read()[PYTHON]["libraries"]
    return [
        f"{name} {before.get(name)} -> {version(name)}"
        for name in _LIBRARIES
        if version(name) != before.get(name)
    ]


def _read() -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(FILE.read_bytes()) if FILE.exists() else {}
    return content


def main() -> None:
    """Count anew, hold it, and show it beside what was held."""
    before, tallies = held() or {}, measured()
    hold(tallies)
    for path, taken in tallies.items():
        now, then = taken.counts, before.get(path)
        was = f", held were {then.instructions} and {then.calls}" if then is not None else ""
        sys.stdout.write(f"{path}: {now.instructions} instructions, {now.calls} calls{was}\n")


if __name__ == "__main__":
    main()
