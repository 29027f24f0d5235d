"""One error shape on every route: the framework's own errors go into the envelope too."""

from collections.abc import Mapping

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from proxy.edge.responses import internal_error
from proxy.errors import MethodNotAllowed, ProxyError, UnknownRoute


def install_error_shape(app: FastAPI) -> None:
    """Have every error of the framework's routes leave in the OpenAI envelope."""

    @app.exception_handler(ProxyError)
    async def proxy_error(_: Request, error: ProxyError) -> Response:
        return enveloped(error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path}"
        if error.status_code == MethodNotAllowed.status:
            return enveloped(MethodNotAllowed(f"Not allowed: {where}."), error.headers)
        return enveloped(
            UnknownRoute(f"Unknown request URL: {where}. The API is served under /v1.")
        )

    # The framework raises it again once this is sent, and the server logs it.
    @app.exception_handler(Exception)
    async def fault(_: Request, __: Exception) -> Response:
        return enveloped(internal_error())


def enveloped(error: ProxyError, headers: Mapping[str, str] | None = None) -> Response:
    """The error as a response."""
    return Response(
        orjson.dumps(error.envelope()),
        status_code=error.status,
        headers=headers,
        media_type="application/json",
    )
