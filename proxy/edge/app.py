"""The application: a lean path for the API, FastAPI for what watches and steers the process."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI

from proxy import __version__
from proxy.clock import Clock
from proxy.core.wire import Endpoint
from proxy.edge.admin import admin_routes
from proxy.edge.admission import Admission
from proxy.edge.asgi import Message, Receive, Scope, Send
from proxy.edge.direct import Direct
from proxy.edge.errors import install_error_shape, internal_error
from proxy.edge.health import health_routes
from proxy.edge.openai import API_ROOT, CACHED, CachedEndpoint
from proxy.edge.passthrough import ENDPOINT, PassThrough
from proxy.edge.purge_routes import purge_routes
from proxy.edge.responses import early_error, send_answer
from proxy.runtime import Runtime, Settings

log = logging.getLogger("magic_proxy.edge")


class Edge:
    """An ASGI application that keeps frameworks off the paths that clients wait on."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        admission = Admission()
        most, longest = runtime.hot_path_bytes, runtime.hot_path_request_bytes
        self.direct = Direct(runtime, admission, most, longest) if most else None
        self._cached = CachedEndpoint(runtime, admission, self.direct)
        self._passthrough = PassThrough(runtime)
        self._framework = _framework_app(runtime)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Dispatch one request, or one lifespan."""
        if scope["type"] != "http":
            await self._framework(scope, receive, send)
            return
        path: bytes = scope["raw_path"]
        if not path.startswith(API_ROOT + b"/"):
            await self._framework(scope, receive, send)
            return
        started = _StartWatch(send)
        endpoint = CACHED.get(path) if scope["method"] == "POST" else None
        try:
            if endpoint is not None:
                await self._cached(endpoint, scope, receive, started)
            else:
                rest = path[len(API_ROOT) :].decode("latin-1")
                await self._passthrough(rest, scope, receive, started)
        except Exception:  # boundary: a fault of this program must not show its inside to a client
            log.exception("a request failed unexpectedly")
            await self._failed(endpoint, started)

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

    __slots__ = ("_send", "started")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)


def _framework_app(runtime: Runtime) -> FastAPI:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.stop()

    app = FastAPI(
        title="magic-proxy",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(health_routes(runtime))
    app.include_router(admin_routes(runtime))
    app.include_router(purge_routes(runtime))
    install_error_shape(app)
    return app


def create_app(settings: Settings, *, clock: Clock | None = None) -> Edge:
    """The ASGI application for some settings; its lifespan starts and stops the runtime."""
    return Edge(Runtime(settings, clock=clock))
