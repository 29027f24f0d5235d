"""Reads of resources: GETs that may be answered from the cache."""

from proxy.core.resources import Resource
from proxy.core.websocket import asks_for_websocket
from proxy.core.wire import Endpoint
from proxy.edge.asgi import Receive, Scope, Send, has_body, headers_of
from proxy.edge.disconnect import while_connected
from proxy.edge.passthrough import refuse_dot_segments
from proxy.edge.responses import early_error, send_answer
from proxy.engine.base import Call
from proxy.errors import ProxyError
from proxy.runtime import Runtime, Snapshot


class ResourceReads:
    """Serves those GETs and HEADs; HEAD is answered as GET is, and the server leaves the body out.

    Paths are raw, after the API root.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def find(self, path: str, scope: Scope) -> Resource | None:
        """The resource that a request reads; None for what passes through."""
        method, headers = scope["method"], scope["headers"]
        if has_body(headers) or asks_for_websocket(method, scope["http_version"], headers):
            return None
        return self._runtime.snapshot.resources.find(method, path, headers)

    async def __call__(
        self, resource: Resource, path: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one read; whatever goes wrong leaves in the OpenAI envelope."""
        work = self._read(self._runtime.snapshot, resource, path, scope, send)
        await while_connected(work, receive, self._runtime.tasks)

    async def _read(
        self, snapshot: Snapshot, resource: Resource, path: str, scope: Scope, send: Send
    ) -> None:
        request_id = self._runtime.request_ids.next()
        try:
            headers = headers_of(scope)
            identity = snapshot.access.identify(headers)
            refuse_dot_segments(path)
            call = Call(
                endpoint=Endpoint.RESOURCE,
                path=path,
                query=scope["query_string"].decode("latin-1"),
                headers=headers,
                body=b"",
                identity=identity,
                request_id=request_id,
                method="GET",
            )
            answer = await snapshot.resources.read(resource, call)
        except ProxyError as error:
            name = Endpoint.RESOURCE.value
            answer, outcome = early_error(error, endpoint=name, request_id=request_id)
            snapshot.observer.told(outcome)
        await send_answer(answer, send)
