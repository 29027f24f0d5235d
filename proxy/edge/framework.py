"""What steers the process, and every path that is not served: on FastAPI.

Imported after the start where there are admin keys, else when the first such request comes: most
processes never get one, and it takes a quarter of a second and 15 MB.
"""

from fastapi import FastAPI

from proxy import __version__
from proxy.edge.admin import admin_routes
from proxy.edge.asgi import ASGIApp
from proxy.edge.errors import install_error_shape
from proxy.edge.purge_routes import purge_routes
from proxy.runtime import Runtime


def framework_app(runtime: Runtime) -> ASGIApp:
    """The application behind the lean paths."""
    app = FastAPI(
        title="magic-proxy",
        version=__version__,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        # A redirect would name the host that the client says.
        redirect_slashes=False,
    )
    app.include_router(admin_routes(runtime))
    app.include_router(purge_routes(runtime))
    install_error_shape(app)
    return app
