"""The admin API: why was this a miss, and how do the upstream keys stand?"""

import orjson
from fastapi import APIRouter, Request, Response

from proxy.core.resources import split_target
from proxy.core.wire import MODEL_ENDPOINTS, Endpoint
from proxy.edge.asgi import ClientGone, read_body
from proxy.engine.base import Call
from proxy.errors import RequestError
from proxy.runtime import Runtime


def admin_routes(runtime: Runtime) -> APIRouter:
    """The routes under `/admin`; each needs an admin key."""
    routes = APIRouter(prefix="/admin", include_in_schema=False)

    @routes.post("/explain")
    async def explain(request: Request, endpoint: str = "chat", get: str | None = None) -> Response:
        """Explain what the cache would do with this body, sent with these headers, or this GET."""
        snapshot = runtime.snapshot
        headers = tuple(request.headers.raw)
        snapshot.access.require_admin(headers)
        try:
            body = await read_body(request.receive, headers, snapshot.max_body_bytes)
        except ClientGone:
            raise RequestError("The request broke off.", code="incomplete_request") from None
        path, query = ("", "") if get is None else _target(get)
        call = Call(
            endpoint=_endpoint(endpoint) if get is None else Endpoint.RESOURCE,
            path=path,
            query=query,
            headers=headers,
            body=body,
            identity=snapshot.access.identify(headers),
            request_id=runtime.request_ids.next(),
        )
        explainer = snapshot.service if get is None else snapshot.resources
        explained = await explainer.explain(call)
        return Response(orjson.dumps(explained.as_dict()), media_type="application/json")

    @routes.get("/keys")
    async def keys(request: Request) -> Response:
        """Tell the state, use and limits of every upstream key, as all workers know them."""
        runtime.snapshot.access.require_admin(tuple(request.headers.raw))
        return Response(orjson.dumps(await runtime.key_report()), media_type="application/json")

    return routes


def _target(get: str) -> tuple[str, str]:
    try:
        return split_target(get)
    except ValueError as error:
        raise RequestError(f"{error}.", param="get", code="invalid_value") from None


def _endpoint(name: str) -> Endpoint:
    if name not in MODEL_ENDPOINTS:
        known = ", ".join(repr(endpoint.value) for endpoint in MODEL_ENDPOINTS)
        raise RequestError(
            f"Unknown endpoint {name!r}: one of {known}.", param="endpoint", code="invalid_value"
        )
    return Endpoint(name)
