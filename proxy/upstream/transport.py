"""Opens the transport that an upstream's settings name."""

from typing import assert_never

from proxy.upstream.base import Transport
from proxy.upstream.config import TransportName, UpstreamConfig


def open_transport(config: UpstreamConfig) -> Transport:
    """A transport for one upstream; it connects with the first request."""
    # Each library is imported only where it is used: the other would cost start time and memory.
    match config.transport:
        case TransportName.AIOHTTP:
            from proxy.upstream.aiohttp import AiohttpTransport  # noqa: PLC0415 (see above)

            return AiohttpTransport(config)
        case TransportName.HTTPX:
            from proxy.upstream.httpx import HttpxTransport  # noqa: PLC0415 (see above)

            return HttpxTransport(config)
        case _:
            assert_never(config.transport)
