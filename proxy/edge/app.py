"""The application: a lean path for the API and what watches it, FastAPI for what steers it."""

import asyncio
import logging
from dataclasses import replace

from proxy.clock import Clock
from proxy.core.wire import Endpoint
from proxy.edge.admission import Admission
from proxy.edge.asgi import ASGIApp, Message, Receive, Scope, Send
from proxy.edge.direct import Direct
from proxy.edge.health import WATCHED, send_watched
from proxy.edge.openai import API_ROOT, CACHED, CachedEndpoint
from proxy.edge.passthrough import ENDPOINT, PassThrough
from proxy.edge.resources import ResourceReads
from proxy.edge.responses import early_error, internal_error, send_answer
from proxy.runtime import Peers, Runtime, Settings

log = logging.getLogger("magic_proxy.edge")


class Edge:
    """An ASGI application that keeps frameworks off the paths that clients wait on."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.limits = runtime.connection_limits  # for the protocol, which knows its application
        admission = Admission()
        most, longest = runtime.hot_path_bytes, runtime.hot_path_request_bytes
        self.direct = Direct(runtime, admission, most, longest) if most else None
        self._cached = CachedEndpoint(runtime, admission, self.direct)
        self._resources = ResourceReads(runtime)
        self._passthrough = PassThrough(runtime)
        self._framework: ASGIApp | None = None
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dispatch one request, or one lifespan."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        path: bytes = scope["raw_path"]
        if not path.startswith(API_ROOT + b"/"):
            if path in WATCHED:
                await send_watched(self.runtime, scope, send)
            else:
                await (await self._loaded())(scope, receive, send)
            return
        started = _StartWatch(send)
        endpoint = CACHED.get(path) if scope["method"] == "POST" else None
        try:
            if endpoint is not None:
                await self._cached(endpoint, scope, receive, started)
                return
            rest = path[len(API_ROOT) :].decode("latin-1")
            if (resource := self._resources.find(rest, scope)) is not None:
                await self._resources(resource, rest, scope, receive, started)
            else:
                await self._passthrough(rest, scope, receive, started)
        except Exception:  # boundary: a fault of this program must not show its inside to a client
            log.exception("a request failed unexpectedly")
            await self._failed(endpoint, started)

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan: start the runtime, and stop it in the end."""
        await receive()
        await self.runtime.start()
        await send({"type": "lifespan.startup.complete"})
        if self.runtime.has_admins:
            # A purge is not to wait for it.
            self.runtime.tasks.start(self._loaded(), name="load-framework")
        await receive()
        await self.runtime.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _loaded(self) -> ASGIApp:
        """The framework's application; importing it must not hold up the loop."""
        async with self._loading:
            if self._framework is None:
                self._framework = await asyncio.to_thread(_framework_app, self.runtime)
            return self._framework

    async def _failed(self, endpoint: Endpoint | None, send: "_StartWatch") -> None:
        """Tell a fault, and answer for it where no answer has begun."""
        begun = send.started
        if begun and endpoint is not None:
            return  # the engine tells what it has begun
        name = endpoint.value if endpoint is not None else ENDPOINT
        request_id = self.runtime.request_ids.next()
        answer, outcome = early_error(internal_error(), endpoint=name, request_id=request_id)
        self.runtime.snapshot.observer.told(replace(outcome, complete=not begun))
        if not begun:
            await send_answer(answer, send)


class _StartWatch:
    """A `send` that knows whether the response has begun."""

    __slots__ = ("__wrapped__", "started")

    def __init__(self, send: Send) -> None:
        self.__wrapped__ = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self.__wrapped__(message)


def _framework_app(runtime: Runtime) -> ASGIApp:
    from proxy.edge.framework import framework_app  # noqa: PLC0415  # it says why

    return framework_app(runtime)


def create_app(
    settings: Settings, *, clock: Clock | None = None, peers: Peers | None = None
) -> Edge:
    """The ASGI application for some settings; its lifespan starts and stops the runtime."""
    return Edge(Runtime(settings, clock=clock, peers=peers))
