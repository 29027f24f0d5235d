"""Everything else under `/v1`: passed on as it comes, in both directions, unread."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus

from proxy.core.outcome import CLIENT_GONE, BypassReason, Forwarded, Outcome, XCache
from proxy.core.stored_headers import shown_request_id
from proxy.core.targets import leaves_root
from proxy.core.wire import Headers
from proxy.edge import websockets
from proxy.edge.asgi import ClientGone, Receive, Scope, Send, has_body, headers_of
from proxy.edge.disconnect import Upload, disconnected, while_connected
from proxy.edge.http_protocol import NAMES, BoundedProtocol
from proxy.edge.responses import early_error, send_answer, send_stream
from proxy.engine.patience import Patience
from proxy.errors import ProxyError, RequestError, UpstreamError
from proxy.runtime import Runtime, Snapshot
from proxy.upstream.base import Chain, Exchange, Outgoing, UpstreamResponse
from proxy.upstream.outgoing import model_in

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
    """Forwards requests of any method and path to the default upstream.

    WebSockets go where the model in their query leads.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def __call__(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on; `path` is the raw path after the API root."""
        snapshot = self._runtime.snapshot
        headers = headers_of(scope)
        upload, connection = None, None
        if has_body(headers):
            upload = Upload(receive)
        else:
            connection = websockets.connection_to_upgrade(scope, headers)
        outgoing = Outgoing(
            method=scope["method"],
            path=path,
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            body=aiter(upload) if upload is not None else None,
            upgrade=connection is not None,
            written=as_written(scope, headers),
        )
        gone = upload.disconnected() if upload is not None else disconnected(receive)
        work = self._forward(snapshot, outgoing, send, connection)
        await while_connected(work, gone, self._runtime.tasks)

    async def _forward(
        self,
        snapshot: Snapshot,
        outgoing: Outgoing,
        send: Send,
        connection: BoundedProtocol | None,
    ) -> None:
        endpoint = ENDPOINT if connection is None else websockets.ENDPOINT
        started = self._runtime.clock.monotonic()
        request_id = self._runtime.request_ids.next()
        # What is told if the client goes away first, in whatever state.
        gone = Outcome(
            x_cache=XCache.BYPASS,
            endpoint=endpoint,
            status=CLIENT_GONE,
            detail=BypassReason.NOT_CACHEABLE.value,
            request_id=request_id,
            complete=False,
        )

        def tell(outcome: Outcome) -> None:
            duration = self._runtime.clock.monotonic() - started
            snapshot.observer.told(replace(outcome, duration_seconds=duration))

        # A fault of this program is not told here: who answers for it tells it.
        try:
            tell(await self._passed(snapshot, outgoing, send, gone, started, connection))
        except ClientGone:
            tell(gone)
        except asyncio.CancelledError:
            tell(gone)
            raise
        except ProxyError as error:
            answer, outcome = early_error(error, endpoint=endpoint, request_id=request_id)
            tell(outcome)
            await send_answer(answer, send)

    async def _passed(
        self,
        snapshot: Snapshot,
        outgoing: Outgoing,
        send: Send,
        gone: Outcome,
        started: float,
        connection: BoundedProtocol | None,
    ) -> Outcome:
        identity = snapshot.access.identify(outgoing.headers)
        refuse_dot_segments(outgoing.path)
        outgoing = replace(outgoing, party=identity.party)
        uploads = outgoing.body is not None
        patience = Patience(outgoing.headers, self._runtime.clock, started, uploads=uploads)
        chain = snapshot.forwarder.resolve(model_in(outgoing.query) if outgoing.upgrade else None)
        async with patience.beginning():
            exchange = await self._sent(snapshot, chain, outgoing)
        response = exchange.response
        try:
            await snapshot.resources.written(outgoing.method, outgoing.path, response.status)
        except BaseException:  # cancellation too: nobody else has this response
            await response.aclose()
            raise
        told = replace(
            gone,
            client=identity.client,
            model=chain.model,
            profile=exchange.profile,
            fallback=exchange.fallback,
        )
        if connection is not None and response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return await websockets.carry(connection, exchange, self._runtime, snapshot, told)
        body = patience.bounded_body(RawBody(response))
        complete = await send_stream(
            response.status, list(response.headers), body, send, response.trailers
        )
        return replace(
            told,
            status=response.status,
            forwarded=Forwarded.BYPASS,
            forward_status=response.status,
            upstream=exchange.upstream,
            request_id=shown_request_id(response.headers) or gone.request_id,
            complete=complete,
        )

    async def _sent(self, snapshot: Snapshot, chain: Chain, outgoing: Outgoing) -> Exchange:
        """The upstream's answer; a write without one may have been done all the same."""
        try:
            return await snapshot.forwarder.send(chain, outgoing)
        except BaseException as error:  # cancellation too: the upstream has what it has
            if not isinstance(error, UpstreamError) or error.may_be_done:
                await snapshot.resources.written(outgoing.method, outgoing.path, None)
            raise


def as_written(scope: Scope, headers: Headers) -> Headers | None:
    """The headers with their names as the client spelled them; None where nobody noted that."""
    names: list[bytes] | None = scope.get(NAMES)
    if names is None:
        return None
    return tuple((name, value) for name, (_, value) in zip(names, headers, strict=True))


def refuse_dot_segments(path: str) -> None:
    """Raises `RequestError` for a path that could leave the API root, in any spelling."""
    if leaves_root(path):
        raise RequestError("The path must not have '.' or '..' segments.", code="invalid_path")
