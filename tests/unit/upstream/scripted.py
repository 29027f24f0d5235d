"""Upstreams that answer by script, and one chain over all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from proxy.core.trailers import Trailers
from proxy.core.wire import Headers, header
from proxy.errors import UpstreamError, UpstreamProtocolError, UpstreamUnreachable
from proxy.upstream.base import Chain, Exchange, Outgoing, Profile, Transport, UpstreamRequest
from proxy.upstream.config import KeySecret, UpstreamConfig
from proxy.upstream.dispatch import UpstreamSet
from proxy.upstream.pooled_key import KeyState
from proxy.upstream.router import Route, Router
from tests.fakes import FakeClock


@dataclass
class Answer:
    """An upstream's answer; `cut` ends its body with an error."""

    status: int = 200
    body: bytes = b"{}"
    headers: Headers = ()
    cut: bool = False
    closed: int = 0
    read: bool = False
    trailers: Trailers | None = None

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        self.read = True
        for start in range(0, len(self.body), 16_384):
            yield self.body[start : start + 16_384]
        if self.cut:
            raise UpstreamProtocolError("cut")

    async def aclose(self) -> None:
        self.closed += 1


@dataclass
class Clinging(Answer):
    """An answer that was read, and whose last closing does not end."""

    clings: asyncio.Event = field(default_factory=asyncio.Event)

    async def aclose(self) -> None:
        await super().aclose()
        if self.closed > 1:
            self.clings.set()
            await asyncio.Event().wait()


Step = Answer | UpstreamError | Callable[[UpstreamRequest], Answer]


@dataclass
class Scripted:
    """A transport whose answers depend on the credential; without a script it answers 200."""

    script: dict[str, list[Step]] = field(default_factory=dict)
    requests: list[UpstreamRequest] = field(default_factory=list)
    takes_body: bool = True
    closed: bool = False

    async def send(self, request: UpstreamRequest) -> Answer:
        self.requests.append(request)
        if self.takes_body and isinstance(request.body, AsyncIterator):
            async for _ in request.body:
                pass
        steps = self.script.get(credential(request)) or self.script.get("*") or [Answer()]
        step = steps.pop(0) if len(steps) > 1 else steps[0]
        if isinstance(step, UpstreamError):
            raise step
        return step if isinstance(step, Answer) else step(request)

    async def aclose(self) -> None:
        self.closed = True

    @property
    def used(self) -> list[str]:
        return [credential(request) for request in self.requests]


def credential(request: UpstreamRequest) -> str:
    return (header(request.headers, b"authorization") or b"").decode().removeprefix("Bearer ")


def keys(*names: str) -> tuple[KeySecret, ...]:
    return tuple(KeySecret(name) for name in names)


class World:
    """Upstreams by name with a scripted transport each, and one chain over all of them."""

    def __init__(
        self, *configs: UpstreamConfig, strip: bool = False, clock: FakeClock | None = None
    ) -> None:
        self.clock = clock or FakeClock()
        self.transports = {config.name: Scripted() for config in configs}
        names = [config.name for config in configs]
        routes = {name: Route(Profile(name, name, model=f"{name}-model")) for name in names}
        routes["m"] = Route(Profile("m", names[0], model="m"), tuple(names[1:]))
        self.set = UpstreamSet(
            configs,
            Router(default_upstream=names[0], routes=routes),
            clock=self.clock,
            strip_client_credentials=strip,
            transport_factory=self._transport,
        )
        self.chain: Chain = self.set.resolve("m")

    def _transport(self, config: UpstreamConfig) -> Transport:
        return self.transports[config.name]

    def on(self, upstream: str = "up", **script: Sequence[Step]) -> Scripted:
        transport = self.transports[upstream]
        spelled = {"any": "*"}
        transport.script.update({spelled.get(k, k): list(v) for k, v in script.items()})
        return transport

    async def send(self, outgoing: Outgoing | None = None) -> Exchange:
        return await self.set.send(self.chain, outgoing or chat())

    async def ok(self, outgoing: Outgoing | None = None) -> Exchange:
        """A request that is answered, read and closed."""
        exchange = await self.send(outgoing)
        await body_of(exchange)
        await exchange.response.aclose()
        return exchange

    def in_flight(self) -> int:
        states = self.set.key_states().values()
        return sum(status.in_flight for pool in states for status in pool)

    def states(self, upstream: str = "up") -> list[KeyState]:
        return [status.state for status in self.set.key_states()[upstream]]


def chat(body: bytes = b'{"model":"m"}', headers: Headers = ()) -> Outgoing:
    return Outgoing("POST", "/chat/completions", "", headers, body)


def up(name: str = "up", *names: str, **settings: object) -> UpstreamConfig:
    return UpstreamConfig(name, f"https://{name}.example/v1", keys(*names), **settings)  # type: ignore[arg-type]


async def body_of(exchange: Exchange) -> bytes:
    return b"".join([chunk async for chunk in exchange.response.aiter_raw()])


def refused_connection() -> UpstreamUnreachable:
    error = UpstreamUnreachable("refused")
    error.connecting = True
    return error


def limited(seconds: int | None = None, body: bytes = b"{}") -> Answer:
    headers = () if seconds is None else ((b"Retry-After", str(seconds).encode()),)
    return Answer(429, body, headers)


def refused(code: str = "invalid_api_key") -> Answer:
    return Answer(401, b'{"error": {"code": "%s"}}' % code.encode())
