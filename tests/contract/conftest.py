"""Runs the transport suite over both transports."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from proxy.upstream.base import Timeouts, Transport
from proxy.upstream.config import TransportName, UpstreamConfig
from proxy.upstream.transport import open_transport
from tests.contract.transports import Opener


@pytest.fixture(params=list(TransportName))
def transport_name(request: pytest.FixtureRequest) -> TransportName:
    name: TransportName = request.param
    return name


@pytest.fixture
def opened(transport_name: TransportName) -> Opener:
    @asynccontextmanager
    async def opener(
        root: str, timeouts: Timeouts | None = None, **settings: object
    ) -> AsyncIterator[Transport]:
        config = UpstreamConfig(
            "up", root, timeouts=timeouts or Timeouts(), transport=transport_name
        )
        transport = open_transport(replace(config, **settings))  # type: ignore[arg-type]
        try:
            yield transport
        finally:
            await transport.aclose()

    return opener
