"""What the engine asks of upstreams: resolve a model, send along its chain, read raw bytes."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from proxy.core.trailers import Trailers
from proxy.core.values import value
from proxy.core.wire import Headers, JsonValue
from proxy.errors import CircuitOpen


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds; None is no limit. `first_byte_seconds` counts from the request's last byte."""

    connect_seconds: float | None = 5.0
    first_byte_seconds: float | None = 600.0
    between_bytes_seconds: float | None = 300.0
    total_seconds: float | None = 1800.0


@value(frozen=True, slots=True)
class UpstreamRequest:
    """One attempt on the wire: `url` is absolute, percent-encoded, and sent as it stands.

    `headers` hold no host; a `content-length` only for a streamed body whose length the client
    announced (else it goes out chunked). `budget_seconds` is what is left of the whole
    request's time, where that is less than the upstream's own `total_seconds`. `upgrade` allows
    the answer to be a 101, which is then an `Upgraded`.
    """

    method: str
    url: str
    headers: Headers = field(repr=False)
    body: bytes | AsyncIterator[bytes] | None = field(default=None, repr=False)
    budget_seconds: float | None = None
    upgrade: bool = False


class UpstreamResponse(Protocol):
    """Status and headers have arrived; the body is read as it comes, still content-coded."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers:
        """End-to-end headers only, in order, names as the upstream wrote them."""
        ...

    @property
    def trailers(self) -> Trailers | None:
        """Complete once the body was read whole; None where none were announced."""
        ...

    def aiter_raw(self) -> AsyncIterator[bytes]:
        """The body's bytes as they arrive. Raises `UpstreamError` if it ends before its end."""
        ...

    async def aclose(self) -> None:
        """Let go of the connection: back to the pool if the body was read whole, else closed."""
        ...


@runtime_checkable
class Upgraded(UpstreamResponse, Protocol):
    """An answer with status 101: its body goes on until either side closes, without time-outs."""

    async def write(self, data: bytes) -> None:
        """Send; waits while the upstream does not read. Raises `UpstreamError`."""
        ...


class Transport(Protocol):
    """One connection pool and one TLS context, for one upstream in one worker."""

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """Send, and return when the response's headers are there. Raises `UpstreamError`."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to serve a model: an upstream and the name and parameters that it wants.

    `model` None keeps the client's own name. `params` override the body's members,
    `default_params` fill those that are absent.
    """

    name: str
    upstream: str
    model: str | None = None
    params: Mapping[str, JsonValue] = field(default_factory=dict)
    default_params: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chain:
    """What a model name resolves to: the internal name, and its profiles in the order to try.

    `context_window` are those to try instead where one finds the request too long for its model,
    `content_policy` where one's filter does not let it through.
    """

    model: str
    profiles: tuple[Profile, ...]
    context_window: tuple[Profile, ...] = ()
    content_policy: tuple[Profile, ...] = ()

    @property
    def every(self) -> tuple[Profile, ...]:
        """All profiles that a request along this chain may come to."""
        if not (self.context_window or self.content_policy):
            return self.profiles
        return (*self.profiles, *self.context_window, *self.content_policy)


@value(frozen=True, slots=True)
class Outgoing:
    """What is to be sent, before an upstream and a key are chosen.

    `path` is the raw path after the API root (`/chat/completions`), `query` the raw query string
    without `?`. A streamed body can be sent once, so it is never retried after its first byte.
    `request_usage` allows asking a stream for its usage chunk where the upstream is set so.
    `party` is who gets a fair share where requests have to wait for each other.
    `upgrade` is True for the opening handshake of a WebSocket. `written` are the same headers with
    their names as the client spelled them, where that is known. Of an answer that is no stream,
    so many bytes are `awaited` before anybody is sent any: one that breaks off before is none.
    """

    method: str
    path: str
    query: str
    headers: Headers
    body: bytes | AsyncIterator[bytes] | None = None
    request_usage: bool = False
    party: str = ""
    upgrade: bool = False
    written: Headers | None = None
    awaited: int = 0


def not_counted(tokens: int) -> None:
    """Nobody keeps account of the tokens that an answer cost."""


@value(frozen=True, slots=True)
class Exchange:
    """An upstream's answer, and how it was come by.

    `usage_requested` is True where the proxy itself asked for the usage chunk. `shown_as` is what
    clients are told of who answered; None is nothing. Closing `response` also gives the key back
    to its pool. `spent` is called once, with all tokens that the answer cost, where they become
    known.
    """

    response: UpstreamResponse
    upstream: str
    profile: str
    fallback: bool = False
    usage_requested: bool = False
    attempts: int = 1
    shown_as: str | None = None
    spent: Callable[[int], None] = field(default=not_counted, repr=False, compare=False)


class AttemptObserver(Protocol):
    """Is told of every attempt, retries included, and of those that were not made."""

    def attempted(self, upstream: str, result: str) -> None:
        """`result` is `ok`, `key-limited`, `key-rejected`, `key-unfit`, `fault`, `refused`, an
        error code, or `cancelled` where nobody waited any more for the answer to begin.
        """
        ...

    def withheld(self, upstream: str, reason: str) -> None:
        """`reason` is `circuit-open`, `retry-budget`, `queue-full`, `queue-timeout` or
        `no-connection-free`.
        """
        ...

    def waited(self, upstream: str, seconds: float) -> None:
        """A request got its turn after so long; told where `max_concurrent` is set."""
        ...


class Forwarder(Protocol):
    """All upstreams of one configuration."""

    def resolve(self, model: str | None) -> Chain:
        """The chain for a client's model name (None: the default upstream).

        Raises `UnknownModel` where the model list is closed.
        """
        ...

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        """Try keys, then profiles, until one answers or the attempts are used up.

        An upstream's own error answer is returned, not raised, where there is nothing left to
        try. Raises `UpstreamError`.
        """
        ...

    def spared(self, chain: Chain) -> CircuitOpen | None:
        """Why a call that has something else to answer with is not to wait for this chain.

        None where it would be sent as usual. Its `seconds` are 0 where the call would be a
        circuit's probe, which may take as long as the upstream's time-outs: it is to be made with
        nobody waiting.
        """
        ...

    def account_headers(self, chain: Chain) -> tuple[bytes, ...]:
        """Names (lower case) of the request headers that choose an account at this upstream."""
        ...

    def uses_client_credentials(self, chain: Chain) -> bool:
        """True where the client's own credential goes upstream (no keys are configured)."""
        ...

    def max_batch(self, chain: Chain) -> int | None:
        """Most inputs that every upstream of the chain takes in one embeddings request."""
        ...


class ResourceForwarder(Forwarder, Protocol):
    """The upstreams as reads of resources see them; paths are raw, after the API root."""

    def merges(self, path: str) -> bool:
        """Whether the answer for this path is made here, out of those of upstreams."""
        ...

    def chain(self, path: str) -> Chain:
        """Whom a read of this path asks, by `send`. Raises `UnknownModel`."""
        ...
