"""The ASGI vocabulary of the lean path, and reading a request through it."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from proxy.core.wire import Headers, header
from proxy.errors import BodyTooLarge

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class ClientGone(Exception):
    """The client closed the connection before its request was read."""


def headers_of(scope: Scope) -> Headers:
    """The request's headers, names in lower case, in order."""
    return tuple((name, value) for name, value in scope["headers"])


async def read_body(receive: Receive, headers: Headers, max_bytes: int) -> bytes:
    """The whole body. Raises `BodyTooLarge` as soon as that is known, and `ClientGone`."""
    declared = header(headers, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        raise too_large(max_bytes)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > max_bytes:
            raise too_large(max_bytes)
        return body
    chunks: list[bytes] = []
    size = 0
    while message["type"] == "http.request":
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > max_bytes:
            raise too_large(max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)
        message = await receive()
    raise ClientGone


def has_body(headers: Headers) -> bool:
    """True where the request announces a body, also an empty one."""
    return any(name in {b"content-length", b"transfer-encoding"} for name, _ in headers)


def too_large(max_bytes: int) -> BodyTooLarge:
    """The refusal of a body that would have to be held whole."""
    return BodyTooLarge(
        f"The request body is larger than {max_bytes} bytes (server.max_body_bytes)."
    )
