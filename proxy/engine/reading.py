"""Reading a body whole, as far as it may be held."""

from collections.abc import AsyncIterator

from proxy.upstream.base import UpstreamResponse


async def read_up_to(
    response: UpstreamResponse, max_bytes: int
) -> tuple[list[bytes], AsyncIterator[bytes] | None]:
    """The body's chunks and None; or, past `max_bytes`, what was read and an iterator of the rest.

    Raises `UpstreamError` where the body ends before its end.
    """
    chunks: list[bytes] = []
    size = 0
    rest = response.aiter_raw()
    async for chunk in rest:
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            return chunks, rest
    return chunks, None
