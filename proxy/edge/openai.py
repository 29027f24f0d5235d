"""The cached endpoints, on a path without frameworks: read, ask the engine, send."""

from proxy.core.outcome import CLIENT_GONE, Outcome, XCache
from proxy.core.wire import Endpoint, Headers, header
from proxy.edge.admission import Admission
from proxy.edge.asgi import ClientGone, Receive, Scope, Send, headers_of, read_body
from proxy.edge.disconnect import disconnected, while_connected
from proxy.edge.hotpath import HotTable
from proxy.edge.responses import early_error, send_answer
from proxy.engine.base import Answer, Call
from proxy.engine.plan import Plan
from proxy.errors import ProxyError, UnsupportedBody
from proxy.runtime import Runtime, Snapshot

CACHED = {
    b"/v1/chat/completions": Endpoint.CHAT,
    b"/v1/embeddings": Endpoint.EMBEDDINGS,
}
API_ROOT = b"/v1"


class CachedEndpoint:
    """Serves one of the cached endpoints."""

    def __init__(self, runtime: Runtime, hot: HotTable | None) -> None:
        self._runtime = runtime
        self._hot = hot
        self._admission = Admission()

    async def __call__(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request; whatever goes wrong leaves in the OpenAI envelope."""
        await self._admission.enter()
        snapshot = self._runtime.snapshot
        request_id = self._runtime.request_ids.next()
        try:
            begun = await self._begin(snapshot, endpoint, scope, receive, request_id)
        except ClientGone:
            gone = Outcome(
                x_cache=XCache.ERROR,
                endpoint=endpoint.value,
                status=CLIENT_GONE,
                detail="client-gone",
                request_id=request_id,
                complete=False,
            )
            snapshot.observer.told(gone)
            return
        except ProxyError as error:
            answer, outcome = early_error(error, endpoint=endpoint.value, request_id=request_id)
            snapshot.observer.told(outcome)
            await send_answer(answer, send)
            return
        if isinstance(begun, Answer):
            if self._hot is not None:
                self._hot.remember(scope, snapshot, begun)
            await send_answer(begun, send)
        else:
            work = self._finish(snapshot, begun, send)
            await while_connected(work, disconnected(receive), self._runtime.tasks)

    async def _begin(
        self,
        snapshot: Snapshot,
        endpoint: Endpoint,
        scope: Scope,
        receive: Receive,
        request_id: str,
    ) -> Answer | Plan:
        headers = headers_of(scope)
        # Who asks is settled before a byte of the body, let alone the cache, is looked at.
        identity = snapshot.access.identify(headers)
        require_json(headers)
        body = await read_body(receive, headers, snapshot.max_body_bytes)
        call = Call(
            endpoint=endpoint,
            path=scope["raw_path"][len(API_ROOT) :].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            body=body,
            identity=identity,
            request_id=request_id,
        )
        return await snapshot.service.begin(call)

    async def _finish(self, snapshot: Snapshot, plan: Plan, send: Send) -> None:
        await send_answer(await snapshot.service.finish(plan), send)


def require_json(headers: Headers) -> None:
    """Raises `UnsupportedBody` for a body that says it is something other than plain JSON."""
    coding = header(headers, b"content-encoding")
    if coding is not None and coding.strip().lower() not in {b"", b"identity"}:
        raise UnsupportedBody(
            "Request bodies must not be compressed here: send the JSON without Content-Encoding.",
            code="unsupported_content_encoding",
        )
    content_type = header(headers, b"content-type")
    if content_type is None or content_type == b"application/json":
        return
    media_type = content_type.partition(b";")[0].strip().lower()
    if media_type != b"application/json" and not (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    ):
        shown = media_type.decode("latin-1")
        raise UnsupportedBody(f"The content type must be 'application/json', not '{shown}'.")
