"""The client's side of the transport suite: how a transport is opened, asked and read."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

from proxy.upstream.base import Transport, UpstreamRequest, UpstreamResponse

SOON = 5.0


Opener: TypeAlias = Callable[..., AbstractAsyncContextManager[Transport]]
"""Takes the root of the server, perhaps `timeouts`, and settings of the upstream by name."""


def post(root: str, body: bytes = b"{}", path: str = "/chat/completions") -> UpstreamRequest:
    headers = ((b"content-type", b"application/json"),)
    return UpstreamRequest("POST", root + path, headers, body)


async def whole(response: UpstreamResponse) -> bytes:
    async with asyncio.timeout(SOON):
        body = b"".join([chunk async for chunk in response.aiter_raw()])
    await response.aclose()
    return body


async def sending(transport: Transport, request: UpstreamRequest) -> UpstreamResponse:
    return await transport.send(request)
