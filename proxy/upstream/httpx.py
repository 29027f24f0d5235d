"""The alternative transport, over httpx: the same contract, at several times the CPU."""

import asyncio
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from proxy.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.tasks import TaskGroup
from proxy.upstream.base import UpstreamRequest, UpstreamResponse
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.connection import (
    Places,
    is_status,
    least,
    no_status,
    socket_options,
    tls_context,
)
from proxy.upstream.headers import end_to_end
from proxy.upstream.upload import Upload

_IDLE_SECONDS = 15.0
_READ_BYTES = 65_536
# What httpcore raises for a network stream, which httpx does not translate.
_STREAM_ERRORS = (httpcore.NetworkError, httpcore.TimeoutException, OSError)


class HttpxTransport:
    """One pool for one upstream.

    httpx's transport is used without its client: no redirects, no cookies, nothing from the
    environment. A lost pooled connection is told from a broken answer by httpx's own words, so
    that a server which closes in the middle of the status line also counts as not answering.
    """

    def __init__(self, config: UpstreamConfig) -> None:
        self._config = config
        parts = urlsplit(config.base_url)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._transport = httpx.AsyncHTTPTransport(
            verify=tls_context(config) if parts.scheme == "https" else False,
            trust_env=False,
            limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
            proxy=config.http_proxy,
            socket_options=socket_options(),
        )
        self._tasks = TaskGroup()
        self._places = Places(config)

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send, and return when the response's headers are there. Raises `UpstreamError`."""
        total = least(self._config.timeouts.total_seconds, request.budget_seconds)
        deadline = None if total is None else asyncio.get_running_loop().time() + total
        leave = await self._places.enter(total)
        try:
            timeouts: dict[str, float | None] = {
                "connect": self._config.timeouts.connect_seconds,
                "read": self._config.timeouts.first_byte_seconds,
            }
            response = await self._answered(request, timeouts, deadline)
            if response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
                return await _upgraded(response, self._config.name, leave, asked=request.upgrade)
            timeouts["read"] = self._config.timeouts.between_bytes_seconds
            return await self._begun(response, deadline, leave)
        except BaseException:  # cancellation too: the place in the pool must come free
            leave()
            raise

    async def _begun(
        self, response: httpx.Response, deadline: float | None, leave: Callable[[], None]
    ) -> "_Response":
        if not is_status(response.status_code):
            await response.aclose()
            raise no_status(self._config.name)
        return _Response(response, self._config.name, deadline, leave, self._tasks)

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        await self._tasks.cancel()
        await self._transport.aclose()

    async def _answered(
        self, request: UpstreamRequest, timeouts: dict[str, float | None], deadline: float | None
    ) -> httpx.Response:
        upload = Upload.of(request.body)
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    route = _Route()
                    try:
                        return await self._sent(
                            self._built(request, upload, timeouts, route), route
                        )
                    except (httpx.ReadError, httpx.RemoteProtocolError) as error:
                        # Only a connection from the pool can be stale: it failed before any byte.
                        if route.fresh or upload is not None or not _unanswered(error):
                            raise
        except (httpx.TransportError, TimeoutError) as error:
            if upload is not None and upload.failure is not None:
                raise upload.failure from None
            raise _as_upstream_error(error, self._config.name) from error

    async def _sent(self, request: httpx.Request, route: "_Route") -> httpx.Response:
        """Cancellation is kept from httpcore while that could lose a connection.

        Cancelled between connecting and sending, it keeps an open socket that no request will
        ever use (encode/httpcore#1093).
        """
        work = self._transport.handle_async_request(request)
        task = self._tasks.start(work, name="httpx-request", awaited=True)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            route.abandoned = True
            if route.sending:
                task.cancel()
            task.add_done_callback(self._let_go)
            raise

    def _let_go(self, task: asyncio.Task[httpx.Response]) -> None:
        """Close an answer that came when nobody wanted it any more."""
        if not task.cancelled() and task.exception() is None:
            self._tasks.start(task.result().aclose(), name="httpx-close")

    def _built(
        self,
        request: UpstreamRequest,
        upload: Upload | None,
        timeouts: dict[str, float | None],
        route: "_Route",
    ) -> httpx.Request:
        # The dictionary of time-outs is read anew for each phase: `send` changes it in between.
        extensions: dict[str, Any] = {"timeout": timeouts, "trace": route.trace}
        url = request.url
        if self._config.http_proxy is None:
            extensions["target"] = request.url[len(self._origin) :].encode()
            url = self._origin
        return httpx.Request(
            request.method,
            url,
            headers=list(request.headers),
            content=request.body if upload is None else upload,
            extensions=extensions,
        )


class _Route:
    """Learns whether a request went out on a connection made for it, and ends one unwanted."""

    fresh = False
    sending = False
    abandoned = False

    async def trace(self, event: str, _: Any) -> None:
        self.fresh = self.fresh or event.startswith("connection.connect_")
        if event == "http11.send_request_headers.started":
            self.sending = True
            if self.abandoned:
                raise asyncio.CancelledError


class _Response:
    """An answer whose headers have come."""

    trailers = None  # httpcore drops them

    def __init__(
        self,
        response: httpx.Response,
        name: str,
        deadline: float | None,
        leave: Callable[[], None],
        tasks: TaskGroup,
    ) -> None:
        self._response = response
        self._tasks = tasks
        self._name = name
        self._deadline = deadline
        self._leave = leave
        self.status = response.status_code
        self.headers = end_to_end(response.headers.raw)
        # Its reader, who waits for a client, may never come back.
        loop = asyncio.get_running_loop()
        self._expiry = None if deadline is None else loop.call_at(deadline, leave)

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `UpstreamError` if it ends before its end."""
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        chunks = aiter(stream)
        try:
            while True:
                async with asyncio.timeout_at(self._deadline):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                yield chunk
        except TimeoutError as error:
            message = f"The answer of the upstream {self._name!r} took too long."
            raise UpstreamTimeout(message) from error
        except httpx.TimeoutException as error:
            raise UpstreamTimeout(f"The upstream {self._name!r} fell silent.") from error
        except httpx.TransportError as error:
            message = f"The answer of the upstream {self._name!r} ended in the middle."
            raise UpstreamProtocolError(message) from error

    async def aclose(self) -> None:
        """Back to the pool if the body was read whole, else closed at once."""
        if self._expiry is not None:
            self._expiry.cancel()
        # A close that is cancelled halfway counts as done, and its connection is lost.
        closing = self._tasks.start(self._close(), name="httpx-close", awaited=True)
        closing.add_done_callback(lambda _: self._leave())
        await asyncio.shield(closing)

    async def _close(self) -> None:
        stream = self._response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        if _has_more(stream):
            await self._response.extensions["network_stream"].aclose()
        await stream.aclose()


class _Upgraded:
    """A connection that has switched protocols."""

    trailers = None

    def __init__(self, response: httpx.Response, name: str, leave: Callable[[], None]) -> None:
        self._response = response
        self._wire: httpcore.AsyncNetworkStream = response.extensions["network_stream"]
        self._name = name
        self._leave = leave
        self.status = response.status_code
        self.headers = end_to_end(response.headers.raw)

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """What the upstream sends, as it arrives. Raises `UpstreamError` if it is cut off."""
        try:
            while chunk := await self._wire.read(_READ_BYTES):
                yield chunk
        except _STREAM_ERRORS as error:
            raise self._lost() from error

    async def write(self, data: bytes) -> None:
        """Send; waits while the upstream does not read. Raises `UpstreamError`."""
        try:
            await self._wire.write(data)
        except _STREAM_ERRORS as error:
            raise self._lost() from error

    async def aclose(self) -> None:
        """Close at once."""
        self._leave()
        try:
            await self._wire.aclose()
        finally:
            await self._response.aclose()

    def _lost(self) -> UpstreamError:
        return UpstreamProtocolError(f"The upstream {self._name!r} closed the connection.")


async def _upgraded(
    response: httpx.Response, name: str, leave: Callable[[], None], *, asked: bool
) -> _Upgraded:
    if not asked:
        await response.aclose()
        raise UpstreamProtocolError(f"The upstream {name!r} switched protocols unasked.")
    return _Upgraded(response, name, leave)


def _has_more(stream: Any) -> bool:
    """Whether bytes came after the answer: httpcore would take them for the next one's."""
    connection = stream._httpcore_stream._stream._connection  # noqa: SLF001  # nobody tells it
    return bool(connection._h11_state.trailing_data[0])  # noqa: SLF001


def _unanswered(error: httpx.TransportError) -> bool:
    return isinstance(error, httpx.ReadError) or "without sending a response" in str(error)


def _as_upstream_error(error: Exception, name: str) -> UpstreamError:
    told = _told(error, name)
    told.connecting = isinstance(
        error, httpx.ConnectTimeout | httpx.ConnectError | httpx.ProxyError
    )
    return told


def _told(error: Exception, name: str) -> UpstreamError:
    """The messages name no URL and no header: both can hold credentials."""
    match error:
        case httpx.ConnectTimeout():
            return UpstreamTimeout(f"Connecting to the upstream {name!r} took too long.")
        case httpx.TimeoutException() | TimeoutError():
            return UpstreamTimeout(f"The upstream {name!r} did not answer in time.")
        case httpx.ProxyError():
            return UpstreamUnreachable(f"The proxy before the upstream {name!r} refused.")
        case httpx.NetworkError():
            return UpstreamUnreachable(f"No connection to the upstream {name!r}.")
        case httpx.RemoteProtocolError() if _unanswered(error):
            return UpstreamUnreachable(
                f"The upstream {name!r} closed the connection without an answer."
            )
        case _:
            return UpstreamProtocolError(f"The upstream {name!r} did not answer in HTTP.")
