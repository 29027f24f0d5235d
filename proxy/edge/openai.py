"""The cached endpoints, on a path without frameworks: read, ask the engine, send."""

from proxy.core.outcome import CLIENT_GONE, Outcome, XCache
from proxy.core.wire import Endpoint, Headers, header
from proxy.edge.admission import Admission
from proxy.edge.asgi import ClientGone, Receive, Scope, Send, headers_of, read_body
from proxy.edge.direct import Begun, Direct, begun_before
from proxy.edge.disconnect import while_connected
from proxy.edge.heads import Head
from proxy.edge.responses import early_error, send_answer
from proxy.engine.base import Answer
from proxy.engine.plan import Plan
from proxy.errors import ProxyError, UnsupportedBody
from proxy.runtime import Runtime, Snapshot

CACHED = {
    b"/v1/chat/completions": Endpoint.CHAT,
    b"/v1/embeddings": Endpoint.EMBEDDINGS,
}
API_ROOT = b"/v1"


class CachedEndpoint:
    """Serves the cached endpoints."""

    def __init__(self, runtime: Runtime, admission: Admission, direct: Direct | None) -> None:
        self._runtime = runtime
        self._direct = direct
        self._admission = admission

    async def __call__(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer one request; whatever goes wrong leaves in the OpenAI envelope."""
        begun = begun_before(scope) or await self._begun(endpoint, scope, receive)
        if isinstance(begun, Begun):
            work = self._finish(begun, send)
            await while_connected(work, receive, self._runtime.tasks)
        elif begun is not None:
            await send_answer(begun, send)

    async def _begun(
        self, endpoint: Endpoint, scope: Scope, receive: Receive
    ) -> Answer | Begun | None:
        """The answer, where there is one at hand; None where the client has gone."""
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
            return None
        except ProxyError as error:
            answer, outcome = early_error(error, endpoint=endpoint.value, request_id=request_id)
            snapshot.observer.told(outcome)
            return answer
        return begun if isinstance(begun, Answer) else Begun(snapshot, begun)

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
        head = Head(
            endpoint=endpoint,
            path=scope["raw_path"][len(API_ROOT) :].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            identity=identity,
        )
        body = await read_body(receive, headers, snapshot.max_body_bytes)
        begun = await snapshot.service.begin(head.call(body, request_id))
        if self._direct is not None:
            self._direct.learn(scope, snapshot, head, begun)
        return begun

    async def _finish(self, begun: Begun, send: Send) -> None:
        await send_answer(await begun.snapshot.service.finish(begun.plan), send)


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
