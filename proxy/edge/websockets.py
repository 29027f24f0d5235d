"""WebSockets under `/v1`: the opening handshake is an exchange like others, then bytes go by."""

from dataclasses import replace
from typing import Final

from proxy.core.outcome import Outcome
from proxy.core.websocket import SocketEnd, asks_for_websocket
from proxy.core.wire import Headers
from proxy.edge.asgi import ClientGone, Scope
from proxy.edge.http_protocol import CONNECTION, BoundedProtocol
from proxy.edge.tunnel import Relay
from proxy.runtime import Runtime, Snapshot
from proxy.upstream.base import Exchange, Upgraded

ENDPOINT: Final = "websocket"
_HEAD: Final = b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"


def connection_to_upgrade(scope: Scope, headers: Headers) -> BoundedProtocol | None:
    """The connection of a request that asks for a WebSocket; from here on it has to wait."""
    connection: BoundedProtocol | None = scope.get(CONNECTION)
    if connection is None or not asks_for_websocket(
        scope["method"], scope["http_version"], headers
    ):
        return None
    connection.await_upgrade()
    return connection


async def carry(
    connection: BoundedProtocol,
    exchange: Exchange,
    runtime: Runtime,
    snapshot: Snapshot,
    outcome: Outcome,
) -> Outcome:
    """Pass a 101 on, then bytes both ways until either side ends it. Raises `ClientGone`."""
    upstream = exchange.response
    assert isinstance(upstream, Upgraded)
    client = connection.take_over(_head(upstream.headers))
    if client is None:
        await upstream.aclose()
        raise ClientGone
    relay = Relay(client, upstream, snapshot.websocket_idle_seconds, runtime.tasks)
    try:
        end = await relay.run()
    finally:
        connection.tunnel_ended()
    code = "" if relay.close_code is None else f":{relay.close_code}"
    return replace(
        outcome,
        complete=end in {SocketEnd.CLOSED, SocketEnd.SHUTDOWN},
        socket_end=f"{end.value}{code}",
    )


def _head(headers: Headers) -> bytes:
    lines = [b"%b: %b\r\n" % pair for pair in headers if pair[0].lower() != b"content-length"]
    return _HEAD + b"".join(lines) + b"\r\n"
