"""The client's own deadline: whoever set it gets an error then, and the shared work goes on."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from proxy.clock import Clock
from proxy.core.client_deadline import client_deadline
from proxy.core.wire import Headers
from proxy.engine.base import Answer, BodyStream
from proxy.errors import ClientDeadline

# An SDK that waits no longer says so itself, with the error that its users know. This is for those
# between which and this proxy something keeps the connection open.
_GRACE_SECONDS: Final = 1.0


class Patience:
    """How long one client waits, from `started` (monotonic seconds) on.

    `uploads`: its body is still on its way, and time-outs that SDKs keep do not run yet.
    """

    def __init__(
        self, headers: Headers, clock: Clock, started: float, *, uploads: bool = False
    ) -> None:
        deadline = client_deadline(headers)
        self._clock = clock
        begin = math.inf if uploads else deadline.begin_seconds + _GRACE_SECONDS
        self._begin = started + min(begin, deadline.end_seconds)
        self._end = started + deadline.end_seconds

    @asynccontextmanager
    async def beginning(self) -> AsyncIterator[None]:
        """What is done inside ends in time, or is cancelled. Raises `ClientDeadline` then."""
        if math.isinf(self._begin):
            yield
            return
        limit = asyncio.timeout(self._begin - self._clock.monotonic())
        try:
            async with limit:
                yield
        except TimeoutError:
            if not limit.expired():
                raise
            raise _too_late() from None

    def bounded(self, answer: Answer) -> Answer:
        """The answer with a body that breaks off in time."""
        if math.isinf(self._end) or isinstance(answer.body, bytes):
            return answer
        return replace(answer, body=self.bounded_body(answer.body))

    def bounded_body(self, body: BodyStream) -> BodyStream:
        """`body`, but that it raises `ClientDeadline` when the time is over."""
        return body if math.isinf(self._end) else _Bounded(body, self._clock, self._end)


class _Bounded:
    """A body that is read until `end`, in monotonic seconds of `clock`."""

    def __init__(self, body: BodyStream, clock: Clock, end: float) -> None:
        self._body = body
        self._clock = clock
        self._end = end

    async def __aiter__(self) -> AsyncIterator[bytes]:
        chunks = aiter(self._body)
        while (left := self._end - self._clock.monotonic()) > 0.0:
            limit = asyncio.timeout(left)
            try:
                async with limit:
                    chunk = await anext(chunks, None)
            except TimeoutError:
                if not limit.expired():
                    raise
                raise _too_late() from None
            if chunk is None:
                return
            yield chunk
        raise _too_late()

    async def aclose(self) -> None:
        await self._body.aclose()


def _too_late() -> ClientDeadline:
    return ClientDeadline("The time that the client gave the request is over.")
