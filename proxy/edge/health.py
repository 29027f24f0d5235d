"""Health, readiness and metrics, for whoever watches: asked often, so without FastAPI."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson

from proxy.edge.asgi import Scope, Send
from proxy.edge.responses import internal_error, send_answer
from proxy.engine.base import Answer
from proxy.errors import MethodNotAllowed, ProxyError
from proxy.runtime import Runtime

log = logging.getLogger("magic_proxy.edge")

_METHODS: Final = ("GET", "HEAD")
_JSON: Final = b"application/json"
_PROMETHEUS: Final = b"text/plain; version=0.0.4; charset=utf-8"


async def healthz(_: Runtime) -> Answer:
    """The process answers."""
    return _json(200, {"status": "ok"})


async def readyz(runtime: Runtime) -> Answer:
    """Ready to serve; what is down beside it is told, but does not count: hits go on."""
    stores = {
        name: "up" if available else "down" for name, available in runtime.store_states().items()
    }
    ready = runtime.serving
    told = {
        "status": "ready" if ready else "starting",
        "stores": stores,
        "upstreams": runtime.circuit_states(),
    }
    return _json(200 if ready else 503, told)


async def metrics(runtime: Runtime) -> Answer:
    """All metrics in the text format of Prometheus."""
    return Answer(200, [(b"content-type", _PROMETHEUS)], await runtime.exposition())


WATCHED: Final[Mapping[bytes, Callable[[Runtime], Awaitable[Answer]]]] = MappingProxyType(
    {b"/healthz": healthz, b"/readyz": readyz, b"/metrics": metrics}
)


async def send_watched(runtime: Runtime, scope: Scope, send: Send) -> None:
    """Answer a request for one of the paths of `WATCHED`."""
    path: bytes = scope["raw_path"]
    method: str = scope["method"]
    if method not in _METHODS:
        error = MethodNotAllowed(f"Not allowed: {method} {path.decode('latin-1')}.")
        refused = _error(error)
        refused.headers.append((b"allow", ", ".join(_METHODS).encode()))
        await send_answer(refused, send)
        return
    try:
        answer = await WATCHED[path](runtime)
    except ProxyError as error:
        answer = _error(error)
    except Exception:  # boundary: a fault of this program must not show its inside
        log.exception("a request of %s failed unexpectedly", path.decode("latin-1"))
        answer = _error(internal_error())
    await send_answer(answer, send)


def _error(error: ProxyError) -> Answer:
    return _json(error.status, error.envelope())


def _json(status: int, body: Mapping[str, Any]) -> Answer:
    return Answer(status, [(b"content-type", _JSON)], orjson.dumps(body))
