"""The default transport, over aiohttp: raw bytes in, raw bytes out."""

import asyncio
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict

from proxy.core.trailers import Trailers
from proxy.core.wire import Headers
from proxy.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.upstream.aiohttp_upgraded import upgraded
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

_HEADER_BYTES = 65_536
_HEADER_COUNT = 512
_READ_BYTES = 65_536

# aiohttp adds these where they are absent; what is sent is the client's choice alone.
_ADDED_BY_AIOHTTP = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")


class AiohttpTransport:
    """One session for one upstream; it is opened by the first request, in the running loop.

    Requests are never redirected, carry no cookies, and take no proxy or credential from the
    environment. aiohttp gives out no trailers: they are read off the bytes beside its parser.
    """

    def __init__(self, config: UpstreamConfig) -> None:
        self._config = config
        needs_tls = config.base_url.startswith("https:")
        self._tls: ssl.SSLContext | None = tls_context(config) if needs_tls else None
        self._places = Places(config)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send, and return when the response's headers are there. Raises `UpstreamError`."""
        total = least(self._config.timeouts.total_seconds, request.budget_seconds)
        loop = asyncio.get_running_loop()
        deadline = None if total is None else loop.time() + total
        leave = await self._places.enter(total)
        try:
            response = await self._answered(request, deadline)
            if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return upgraded(response, self._config.name, leave, asked=request.upgrade)
            return self._begun(response, deadline, leave)
        except BaseException:  # cancellation too: the place in the pool must come free
            leave()
            raise

    def _begun(
        self,
        response: aiohttp.ClientResponse,
        deadline: float | None,
        leave: Callable[[], None],
    ) -> "_Response":
        if not is_status(response.status):
            response.close()
            raise no_status(self._config.name)
        return _Response(response, self._config, deadline, leave)

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _answered(
        self, request: UpstreamRequest, deadline: float | None
    ) -> aiohttp.ClientResponse:
        upload = Upload.of(request.body)
        name = self._config.name
        try:
            async with asyncio.timeout_at(deadline):
                return await self._opened().request(
                    request.method,
                    yarl.URL(request.url, encoded=True),
                    headers=_multidict(request.headers),
                    data=request.body if upload is None else upload,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if upload is not None and upload.failure is not None:
                raise upload.failure from None
            raise _as_upstream_error(error, name) from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            timeouts = self._config.timeouts
            self._session = aiohttp.ClientSession(
                connector=_Connector(self._tls),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=timeouts.connect_seconds,
                    sock_read=timeouts.first_byte_seconds,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                proxy=self._config.http_proxy,
                skip_auto_headers=_ADDED_BY_AIOHTTP,
                read_bufsize=_READ_BYTES,
                max_line_size=_HEADER_BYTES,
                max_field_size=_HEADER_BYTES,
                max_headers=_HEADER_COUNT,
                request_class=_Request,
                response_class=_Answer,
                middlewares=(_past_stale_connections,),
            )
            # aiohttp would send a GET again by itself, also where an answer had begun.
            self._session._retry_connection = False  # noqa: SLF001  # its own tests use it so
        return self._session


class _Carrier(ResponseHandler):
    """A connection that knows whether it was used before and whether this answer has begun.

    While it `rests` in the pool, nothing may come: what does is no answer to the next request.
    """

    uses = 0
    answered = False
    rests = False
    body: aiohttp.StreamReader | None = None
    trailers: Trailers | None = None

    def is_connected(self) -> bool:
        """Whether it can be used; aiohttp would take one with an unread answer for free."""
        return super().is_connected() and not (self.rests and self.should_close)

    def set_response_params(self, **params: Any) -> None:
        self.uses += 1
        self.answered = self.rests = False
        self.body = self.trailers = None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        self.answered = True
        if self.rests and data:
            self.force_close()
            return
        super().data_received(data)
        if self.trailers is not None:
            self.trailers.feed(data)

    def feed_data(self, data: Any, *size: int) -> None:
        """Called by the parser for each head, while the bytes that it came in are received."""
        head = data[0]
        # aiohttp promises neither to call this nor what it gives: without, there are no trailers.
        if getattr(head, "chunked", False):
            self.trailers = Trailers.announced(head.raw_headers)
        super().feed_data(data, *size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Also tell the body's reader: of a malformed chunk aiohttp does not, and it would hang."""
        super().set_exception(exc, *cause)
        if self.body is not None and not self.body.is_eof() and self.body.exception() is None:
            known = isinstance(exc, aiohttp.ClientError)
            self.body.set_exception(exc if known else aiohttp.ClientPayloadError("not HTTP"), exc)


class _Connector(aiohttp.TCPConnector):
    """Unlimited: the gate counts, so that waiting in line is no connect time-out."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        super().__init__(limit=0, ssl=tls or True, ttl_dns_cache=30, socket_factory=_socket)
        self._factory = functools.partial(self._carrier)

    def _carrier(self) -> ResponseHandler:
        return _Carrier(self._loop)

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if isinstance(protocol, _Carrier):
            protocol.rests = True
        super()._release(key, protocol, should_close=should_close)


class _Request(aiohttp.ClientRequest):
    """Remembers the connection that it went out on."""

    carrier: _Carrier | None = None

    async def send(self, conn: Any) -> aiohttp.ClientResponse:
        self.carrier = conn.protocol
        return await super().send(conn)


class _Answer(aiohttp.ClientResponse):
    """Knows what follows its body."""

    trailers: Trailers | None = None

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        carrier = connection.protocol
        await super().start(connection)
        if isinstance(carrier, _Carrier):  # nobody else can have got the connection yet
            self.trailers = carrier.trailers
        return self


async def _past_stale_connections(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Send again where a pooled connection turned out closed before any byte came back.

    A server may close an idle connection while a request is on its way; it has then not read the
    request (RFC 9112 section 9.3.1). A failure on a fresh connection is final.
    """
    assert isinstance(request, _Request)
    while True:
        try:
            return await handler(request)
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
            carrier = request.carrier
            if carrier is None or carrier.uses == 1 or carrier.answered:
                raise
            if isinstance(request.body, aiohttp.AsyncIterablePayload):
                raise
            request.carrier = None
            await request.close()  # the writer of the failed attempt


class _Response:
    """An answer whose headers have come."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        config: UpstreamConfig,
        deadline: float | None,
        leave: Callable[[], None],
    ) -> None:
        self._response = response
        self._name = config.name
        self._leave = leave
        self.status = response.status
        self.headers: Headers = end_to_end(response.raw_headers)
        self.trailers = response.trailers if isinstance(response, _Answer) else None
        self._expiry: asyncio.TimerHandle | None = None
        connection = response.connection
        if connection is None:  # there is no body, or it came with the headers
            return
        carrier = connection.protocol
        if isinstance(carrier, _Carrier):
            carrier.body = response.content
            carrier.read_timeout = config.timeouts.between_bytes_seconds
            carrier.start_timeout()
        if deadline is not None:
            self._expiry = asyncio.get_running_loop().call_at(deadline, self._expire)

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `UpstreamError` if it ends before its end."""
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except UpstreamError:
            raise
        except TimeoutError as error:
            raise UpstreamTimeout(f"The upstream {self._name!r} fell silent.") from error
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            # RuntimeError is what aiohttp raises for reading on a connection that is gone.
            message = f"The answer of the upstream {self._name!r} ended in the middle."
            raise UpstreamProtocolError(message) from error
        finally:
            self._stop()

    async def aclose(self) -> None:
        """Back to the pool if the body was read whole, else closed at once."""
        self._stop()
        response = self._response
        connection = response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.abort()
        response.close()

    def _stop(self) -> None:
        self._leave()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _expire(self) -> None:
        message = f"The answer of the upstream {self._name!r} took too long."
        self._response.content.set_exception(UpstreamTimeout(message))
        connection = self._response.connection
        if connection is not None and connection.protocol is not None:
            connection.protocol.abort()
        self._leave()  # also if its reader, who waits for a client, never comes back


def _socket(address: Any) -> socket.socket:
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    for option in socket_options():
        sock.setsockopt(*option)
    return sock


def _multidict(headers: Headers) -> CIMultiDict[str]:
    """Repeats in the spelling of the first: aiohttp takes another one for a replacement."""
    spelled: dict[bytes, str] = {}
    return CIMultiDict(
        [
            (spelled.setdefault(name.lower(), name.decode("latin-1")), _text(value))
            for name, value in headers
        ]
    )


def _text(value: bytes) -> str:
    """aiohttp writes UTF-8; bytes that are not (RFC 9110 allows any) are taken for Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


# What fails before there is a connection.
_CONNECTING = (
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
)


def _as_upstream_error(error: Exception, name: str) -> UpstreamError:
    told = _told(error, name)
    told.connecting = isinstance(error, _CONNECTING)
    return told


def _told(error: Exception, name: str) -> UpstreamError:
    """The messages name no URL and no header: both can hold credentials."""
    upstream = f"the upstream {name!r}"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UpstreamTimeout(f"Connecting to {upstream} took too long.")
    if isinstance(error, TimeoutError):
        return UpstreamTimeout(f"No answer of {upstream} in time.")
    if (reason := _unreachable(error)) is not None:
        return UpstreamUnreachable(f"No connection to {upstream}: {reason}.")
    return UpstreamProtocolError(f"The answer of {upstream} is not HTTP.")


def _unreachable(error: Exception) -> str | None:
    match error:
        case aiohttp.ClientHttpProxyError():
            return f"the proxy before it answered {error.status}"
        case aiohttp.ClientConnectorCertificateError():
            return "its certificate is not trusted"
        case aiohttp.ClientConnectorError():
            return error.os_error.strerror or "it failed"
        case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError():
            return "it was closed without an answer"
        case aiohttp.ClientConnectionError():
            return "it failed"
        case _:
            return None
