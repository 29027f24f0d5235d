"""Health, readiness and metrics, for whoever watches the process."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from proxy.runtime import Runtime


def health_routes(runtime: Runtime) -> APIRouter:
    """The routes of `/healthz`, `/readyz` and `/metrics`."""
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        """The process answers."""
        return JSONResponse({"status": "ok"})

    @routes.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz() -> Response:
        """Ready to serve; what is down beside it is told, but does not count: hits go on."""
        stores = {
            name: "up" if available else "down"
            for name, available in runtime.store_states().items()
        }
        ready = runtime.serving
        return JSONResponse(
            {
                "status": "ready" if ready else "starting",
                "stores": stores,
                "upstreams": runtime.circuit_states(),
            },
            status_code=200 if ready else 503,
        )

    @routes.api_route("/metrics", methods=["GET", "HEAD"])
    async def metrics() -> Response:
        """All metrics in the text format of Prometheus."""
        return Response(await runtime.exposition(), media_type="text/plain; version=0.0.4")

    return routes
