"""Connections of aiohttp that have switched protocols: bytes as they come, both ways."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
from aiohttp.client_proto import ResponseHandler

from proxy.errors import UpstreamError, UpstreamProtocolError
from proxy.upstream.base import UpstreamResponse
from proxy.upstream.headers import end_to_end

_READ_BYTES = 65_536
_LINGER_SECONDS = 0.5


class _Upgraded:
    """A connection that has switched protocols."""

    trailers = None

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        carrier: ResponseHandler,
        name: str,
        leave: Callable[[], None],
    ) -> None:
        self._response = response
        self._carrier = carrier
        self._name = name
        self._leave = leave
        self.status = response.status
        self.headers = end_to_end(response.raw_headers)
        self._content = aiohttp.StreamReader(carrier, _READ_BYTES, loop=carrier._loop)  # noqa: SLF001  # it has no other name
        carrier.read_timeout = None
        carrier.set_parser(_Plain(self._content), self._content)

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """What the upstream sends, as it arrives. Raises `UpstreamError` if it is cut off."""
        try:
            while chunk := await self._content.readany():
                yield chunk
        except (aiohttp.ClientError, OSError) as error:
            raise self._lost() from error

    async def write(self, data: bytes) -> None:
        """Send; waits while the upstream does not read. Raises `UpstreamError`."""
        transport = self._carrier.transport
        if transport is None or transport.is_closing():
            raise self._lost()
        transport.write(data)
        try:
            await self._carrier._drain_helper()  # noqa: SLF001  # as aiohttp's own writer does
        except (aiohttp.ClientError, OSError) as error:
            raise self._lost() from error

    async def aclose(self) -> None:
        """Send what is on its way, and close; who does not take it is cut off."""
        self._leave()
        transport = self._carrier.transport
        self._response.close()
        if transport is not None:
            asyncio.get_running_loop().call_later(_LINGER_SECONDS, transport.abort)

    def _lost(self) -> UpstreamError:
        return UpstreamProtocolError(f"The upstream {self._name!r} closed the connection.")


class _Plain:
    """What aiohttp takes for the parser of an upgraded connection: all bytes are the body."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self._content.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        self._content.feed_eof()


def upgraded(
    response: aiohttp.ClientResponse, name: str, leave: Callable[[], None], *, asked: bool
) -> UpstreamResponse:
    """The answer as an `Upgraded`. Raises `UpstreamError` where nobody `asked` for that."""
    connection = response.connection
    carrier = None if connection is None else connection.protocol
    if not asked or not isinstance(carrier, ResponseHandler):
        response.close()
        raise UpstreamProtocolError(f"The upstream {name!r} switched protocols unasked.")
    return _Upgraded(response, carrier, name, leave)
