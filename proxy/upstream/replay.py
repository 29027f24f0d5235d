"""Answers that were read ahead, and answers that give back what they hold when they are closed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import cast

from proxy.errors import UpstreamError, UpstreamTimeout
from proxy.upstream.base import Upgraded, UpstreamResponse


class Replayed:
    """An answer of which `head` was taken; its reader still gets every byte, in order."""

    def __init__(
        self,
        response: UpstreamResponse,
        head: bytes,
        rest: AsyncIterator[bytes] | None,
        failure: UpstreamError | None,
    ) -> None:
        self._response = response
        self._rest = rest
        self.failure = failure
        self.status = response.status
        self.headers = response.headers
        self.trailers = response.trailers
        self.head = head

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """What was taken, then what is left. Raises `UpstreamError` if it ends before its end."""
        if self.head:
            yield self.head
            self.head = b""  # it can be megabytes, and the rest may take its time
        if self.failure is not None:
            raise self.failure
        if self._rest is not None:
            async for chunk in self._rest:
                yield chunk

    async def aclose(self) -> None:
        await self._response.aclose()


async def read_ahead(
    response: UpstreamResponse, limit: int, seconds: float | None = None
) -> Replayed:
    """Take at least `limit` bytes of the body, or all of it, in at most `seconds`.

    An answer that was read whole, or that failed, no longer holds its connection.
    """
    chunks = response.aiter_raw()
    head: list[bytes] = []
    failure: UpstreamError | None = None
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                head.append(chunk)
                if (limit := limit - len(chunk)) <= 0:
                    return Replayed(response, b"".join(head), chunks, None)
    except TimeoutError:
        failure = UpstreamTimeout("The upstream's answer fell silent.")
    except UpstreamError as error:
        failure = error
    except BaseException:  # cancellation too: nobody else has this response
        await response.aclose()
        raise
    await response.aclose()
    return Replayed(response, b"".join(head), None, failure)


class Leased:
    """An answer that holds a key, a slot, or both; closing it gives them back."""

    def __init__(self, response: UpstreamResponse, releases: Sequence[Callable[[], None]]) -> None:
        self._response = response
        self._releases = releases
        self.status = response.status
        self.headers = response.headers
        self.trailers = response.trailers

    def aiter_raw(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `UpstreamError` if it ends before its end."""
        return self._response.aiter_raw()

    async def write(self, data: bytes) -> None:
        """To an upstream that switched protocols. Raises `UpstreamError`."""
        # Whoever answers with a 101 gives one; to ask for that costs, and this is for each message.
        await cast("Upgraded", self._response).write(data)

    async def aclose(self) -> None:
        try:
            await self._response.aclose()
        finally:
            for release in self._releases:
                release()
