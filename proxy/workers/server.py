"""uvicorn as this proxy wants it, and the sockets that it listens on."""

import asyncio
import math
import socket
from collections.abc import Callable
from typing import Any, cast

import uvicorn

from proxy.edge.app import Edge
from proxy.edge.hotpath import hot_protocol
from proxy.runtime import Settings
from proxy.tasks import TaskGroup
from proxy.workers.accepting import Acceptor, Crowd

_BACKLOG = 2048


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it can be had: it halves the cost of a socket."""
    try:
        import uvloop  # noqa: PLC0415  # not everywhere to be had
    except ImportError:  # Windows has none
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def server_config(app: Edge, settings: Settings) -> uvicorn.Config:
    """uvicorn's own log off, no headers added to upstreams' answers."""
    return uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        loop="none",
        http=hot_protocol(app.direct),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=math.ceil(settings.server.shutdown_grace_seconds),
    )


class ProxyServer(uvicorn.Server):
    """Calls `on_start` with its addresses once it listens: port 0 is known only then."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[list[str]], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._on_start([url_of(each) for server in self.servers for each in server.sockets])


class WorkerServer(ProxyServer):
    """One of several on the same sockets: which of them accepts is decided by their `crowd`."""

    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], number: int, crowd: Crowd
    ) -> None:
        super().__init__(config, lambda _: on_start())
        self._number = number
        self._crowd = crowd
        self._tasks = TaskGroup()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, with acceptors in the place of asyncio's servers."""
        await super().startup([])
        counted = type(
            "Counted", (_Counted, self.config.http_protocol_class), {"count": self.count}
        )

        def make_protocol() -> Any:
            # As uvicorn makes it.
            return counted(
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=asyncio.get_running_loop(),
            )

        def may_accept() -> bool:
            self.count()  # a connection that became a tunnel ends without a word
            return self._crowd.has_fewest(self._number)

        self.count()
        self.servers = [
            cast("Any", Acceptor(each, make_protocol, may_accept, self._tasks))
            for each in sockets or ()
        ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and count for nobody any more."""
        self._crowd.away(self._number)
        await super().shutdown(sockets)

    def count(self) -> None:
        """Let the others know how many connections there are."""
        if not self.should_exit:
            self._crowd.put(self._number, len(self.server_state.connections))


class _Counted(asyncio.Protocol):
    """Mixed into uvicorn's protocol: tells of every connection that comes or goes."""

    count: Callable[[], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.count()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.count()


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on all addresses of `host`, for several processes. Raises OSError.

    Bound once and inherited: each connection goes to a worker that accepts, none to one that hangs
    or is being replaced, and a second proxy on the same port is an error. `SO_REUSEPORT` has none
    of these.
    """
    listeners: list[socket.socket] = []
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setblocking(False)  # noqa: FBT003  # the standard library's name for it
            listener.bind(address)
            listener.listen(_BACKLOG)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port, *_ = listener.getsockname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"
