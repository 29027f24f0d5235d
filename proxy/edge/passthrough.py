"""Everything else under `/v1`: passed on as it comes, in both directions, unread."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from http import HTTPStatus
from typing import TypeAlias

from proxy.core.outcome import CLIENT_GONE, BypassReason, Forwarded, Outcome, XCache
from proxy.core.stored_headers import shown_request_id
from proxy.core.targets import leaves_root
from proxy.core.wire import Headers, header
from proxy.edge import websockets
from proxy.edge.asgi import ClientGone, Receive, Scope, Send, has_body, headers_of
from proxy.edge.disconnect import Upload, while_connected
from proxy.edge.http_protocol import NAMES
from proxy.edge.responses import early_error, send_answer, send_stream
from proxy.engine.patience import Patience
from proxy.errors import ProxyError, RequestError, UpstreamError
from proxy.runtime import Runtime
from proxy.upstream.base import Chain, Exchange, Outgoing, UpstreamResponse
from proxy.upstream.outgoing import model_in

ENDPOINT = "other"
Body: TypeAlias = bytes | AsyncIterator[bytes] | None


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
        passing = _Passing(self._runtime, path, scope, receive)
        await while_connected(passing.run(send), receive, self._runtime.tasks)


class _Passing:
    """One request on its way through; it tells, once, what became of it."""

    def __init__(self, runtime: Runtime, path: str, scope: Scope, receive: Receive) -> None:
        self._runtime = runtime
        self._snapshot = runtime.snapshot
        self._path = path
        self._scope = scope
        self._query = scope["query_string"].decode("latin-1")
        self._headers = headers_of(scope)
        self._upload = Upload(receive) if has_body(self._headers) else None
        self._connection = None
        if self._upload is None:
            self._connection = websockets.connection_to_upgrade(scope, self._headers)
        self._endpoint = ENDPOINT if self._connection is None else websockets.ENDPOINT
        self._started = runtime.clock.monotonic()
        self._request_id = runtime.request_ids.next()
        self._client: str | None = None

    async def run(self, send: Send) -> None:
        """Pass it on, and the answer back; whatever goes wrong leaves in the OpenAI envelope."""
        observer = self._snapshot.observer
        # A fault of this program is not told here: who answers for it tells it.
        try:
            observer.told(await self._passed(send))
        except ClientGone:
            observer.told(self._gone())
        except asyncio.CancelledError:
            observer.told(self._gone())
            raise
        except ProxyError as error:
            answer, outcome = early_error(
                error, endpoint=self._endpoint, request_id=self._request_id
            )
            outcome = replace(outcome, client=self._client, duration_seconds=self._seconds)
            observer.told(outcome)
            await send_answer(answer, send)

    async def _passed(self, send: Send) -> Outcome:
        snapshot, connection = self._snapshot, self._connection
        identity = snapshot.access.identify(self._headers)
        self._client = identity.client
        refuse_dot_segments(self._path)
        body = await self._body()
        uploads = isinstance(body, AsyncIterator)
        began = self._runtime.clock.monotonic()
        patience = Patience(self._headers, self._runtime.clock, began, uploads=uploads)
        chain = self._chain()
        async with patience.beginning():
            exchange = await self._sent(chain, body, identity.party)
        response = exchange.response
        try:
            await self._written(response.status)
        except BaseException:  # cancellation too: nobody else has this response
            await response.aclose()
            raise
        if connection is not None and response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            told = self._told(chain, exchange, complete=False)
            told = await websockets.carry(connection, exchange, self._runtime, snapshot, told)
            return replace(told, duration_seconds=self._seconds)
        answer = patience.bounded_body(RawBody(response))
        complete = await send_stream(
            response.status, list(response.headers), answer, send, response.trailers
        )
        return self._told(chain, exchange, complete=complete)

    def _chain(self) -> Chain:
        """That of the model that a WebSocket names; else the default upstream's."""
        model = None if self._connection is None else model_in(self._query)
        return self._snapshot.forwarder.resolve(model)

    async def _sent(self, chain: Chain, body: Body, party: str) -> Exchange:
        """The upstream's answer; a write without one may have been done all the same."""
        scope = self._scope
        outgoing = Outgoing(
            method=scope["method"],
            path=self._path,
            query=self._query,
            headers=self._headers,
            body=body,
            party=party,
            upgrade=self._connection is not None,
            written=as_written(scope, self._headers),
        )
        try:
            return await self._snapshot.forwarder.send(chain, outgoing)
        except BaseException as error:  # cancellation too: the upstream has what it has
            if not isinstance(error, UpstreamError) or error.may_be_done:
                await self._written(None)
            raise

    async def _written(self, status: int | None) -> None:
        await self._snapshot.resources.written(self._scope["method"], self._path, status)

    async def _body(self) -> Body:
        """What comes at once can be sent again, and is; else it goes on as it comes."""
        if self._upload is None:
            return None
        whole = await self._upload.begin()
        is_chunked = header(self._headers, b"transfer-encoding") is not None
        return aiter(self._upload) if whole is None or is_chunked else whole

    def _told(self, chain: Chain, exchange: Exchange, *, complete: bool) -> Outcome:
        response = exchange.response
        return Outcome(
            x_cache=XCache.BYPASS,
            endpoint=self._endpoint,
            status=response.status,
            model=chain.model,
            forwarded=Forwarded.BYPASS,
            forward_status=response.status,
            detail=BypassReason.NOT_CACHEABLE.value,
            upstream=exchange.upstream,
            profile=exchange.profile,
            fallback=exchange.fallback,
            client=self._client,
            request_id=shown_request_id(response.headers) or self._request_id,
            complete=complete,
            duration_seconds=self._seconds,
        )

    def _gone(self) -> Outcome:
        """What is told if the client goes away first, in whatever state."""
        return Outcome(
            x_cache=XCache.BYPASS,
            endpoint=self._endpoint,
            status=CLIENT_GONE,
            detail=BypassReason.NOT_CACHEABLE.value,
            client=self._client,
            request_id=self._request_id,
            complete=False,
            duration_seconds=self._seconds,
        )

    @property
    def _seconds(self) -> float:
        return self._runtime.clock.monotonic() - self._started


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
