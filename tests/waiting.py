"""Waiting for what nobody tells: another process, a thread, the kernel. Each wait has a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable

PAUSE_SECONDS = 0.01
LONGEST_SECONDS = 15.0


def eventually(holds: Callable[[], bool], timeout: float = LONGEST_SECONDS) -> None:
    """Return as soon as `holds` does; at most `timeout` seconds from now."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout} s"
        time.sleep(PAUSE_SECONDS)


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    """The same, while the loop goes on with its work."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (await held if isinstance(held := holds(), Awaitable) else held):
        assert time.monotonic() < deadline, f"not within {LONGEST_SECONDS} s"
        await asyncio.sleep(PAUSE_SECONDS)
