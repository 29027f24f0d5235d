"""A time limit for others: while this process itself was busy, it does not count against them."""

import asyncio
from types import TracebackType


class deadline:  # noqa: N801 - as asyncio.timeout, in whose place it stands
    """Raise TimeoutError in the block after `seconds`; later where the event loop was late itself.

    A loop that was busy finds the timer and the reply at once, and would take the timer first.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time() + self._seconds
        await self._limit.__aenter__()
        self._timer = self._loop.call_at(self._due, self._look)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _look(self) -> None:
        now = self._loop.time()
        late = max(now - self._due, 0.0)
        self._limit.reschedule(now + min(late, self._seconds))
