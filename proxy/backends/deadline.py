"""A time limit for others: while this process itself was busy, it does not count against them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError in the block after `seconds`; later where the event loop was late itself.

    A loop that was busy finds the timer and the reply at once, and would take the timer first.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + seconds
    async with asyncio.timeout(None) as limit:

        def look() -> None:
            late = max(loop.time() - due, 0.0)
            limit.reschedule(loop.time() + min(late, seconds))

        timer = loop.call_at(due, look)
        try:
            yield
        finally:
            timer.cancel()
