"""Everything else under `/v1`: passed on as it comes, in both directions, unread."""

from collections.abc import AsyncIterator

from proxy.core.outcome import BypassReason, Forwarded, Outcome, XCache
from proxy.edge.asgi import ClientGone, Receive, Scope, Send, has_body, headers_of
from proxy.edge.disconnect import Upload, disconnected, while_connected
from proxy.edge.responses import early_error, send_answer, send_stream
from proxy.errors import ProxyError
from proxy.runtime import Runtime, Snapshot
from proxy.upstream.base import Outgoing, UpstreamResponse

ENDPOINT = "other"


class RawBody:
    """An upstream's body on its way to the client, still in its content coding."""

    def __init__(self, response: UpstreamResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._response.aiter_raw()

    async def aclose(self) -> None:
        """Let go of the upstream."""
        await self._response.aclose()


class PassThrough:
    """Forwards requests of any method and path to the default upstream."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; `path` is the raw path after the API root."""
        snapshot = self._runtime.snapshot
        headers = headers_of(scope)
        upload = Upload(receive) if has_body(headers) else None
        outgoing = Outgoing(
            method=scope["method"],
            path=path,
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            body=aiter(upload) if upload is not None else None,
        )
        gone = upload.disconnected() if upload is not None else disconnected(receive)
        work = self._forward(snapshot, outgoing, send)
        await while_connected(work, gone, self._runtime.tasks)

    async def _forward(self, snapshot: Snapshot, outgoing: Outgoing, send: Send) -> None:
        request_id = self._runtime.request_ids.next()
        started = self._runtime.clock.monotonic()
        try:
            identity = snapshot.access.identify(outgoing.headers)
            chain = snapshot.forwarder.resolve(None)
            exchange = await snapshot.forwarder.send(chain, outgoing)
        except ClientGone:
            return
        except ProxyError as error:
            answer, outcome = early_error(error, endpoint=ENDPOINT, request_id=request_id)
            snapshot.observer.told(outcome)
            await send_answer(answer, send)
            return
        response = exchange.response
        await send_stream(response.status, list(response.headers), RawBody(response), send)
        snapshot.observer.told(
            Outcome(
                x_cache=XCache.BYPASS,
                endpoint=ENDPOINT,
                status=response.status,
                forwarded=Forwarded.BYPASS,
                forward_status=response.status,
                detail=BypassReason.NOT_CACHEABLE.value,
                upstream=exchange.upstream,
                client=identity.client,
                request_id=request_id,
                duration_seconds=self._runtime.clock.monotonic() - started,
            )
        )
