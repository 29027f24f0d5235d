"""Keys and profiles of a chain, over a transport that answers by script."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import pytest

from proxy.core.wire import Headers, header
from proxy.errors import (
    KeysExhausted,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.upstream.base import (
    Chain,
    Exchange,
    Outgoing,
    Profile,
    Timeouts,
    Transport,
    UpstreamRequest,
)
from proxy.upstream.config import KeySecret, UpstreamConfig
from proxy.upstream.dispatch import UpstreamSet
from proxy.upstream.keypool import KeyState
from proxy.upstream.router import Route, Router
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio


@dataclass
class Answer:
    """An upstream's answer; `cut` ends its body with an error."""

    status: int = 200
    body: bytes = b"{}"
    headers: Headers = ()
    cut: bool = False
    closed: int = 0
    read: bool = False

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        self.read = True
        for start in range(0, len(self.body), 16_384):
            yield self.body[start : start + 16_384]
        if self.cut:
            raise UpstreamProtocolError("cut")

    async def aclose(self) -> None:
        self.closed += 1


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

    def __init__(self, *configs: UpstreamConfig, strip: bool = False) -> None:
        self.clock = FakeClock()
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


def limited(seconds: int | None = None, body: bytes = b"{}") -> Answer:
    headers = () if seconds is None else ((b"Retry-After", str(seconds).encode()),)
    return Answer(429, body, headers)


def refused(code: str = "invalid_api_key") -> Answer:
    return Answer(401, b'{"error": {"code": "%s"}}' % code.encode())


# -- pools


async def test_B62_clients_see_successes_while_one_good_key_is_left() -> None:
    world = World(up("up", "a", "b", "c"))
    transport = world.on(a=[limited(30)], b=[refused()])
    exchanges = [await world.ok() for _ in range(6)]
    assert [exchange.response.status for exchange in exchanges] == [200] * 6
    assert exchanges[0].attempts == 3
    assert transport.used == ["a", "b", "c", "c", "c", "c", "c", "c"]
    assert world.states() == [KeyState.COOLING, KeyState.RETIRED, KeyState.AVAILABLE]


async def test_B64_a_limited_and_a_rejected_key_end_in_429_with_the_soonest_time() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[limited(30)], b=[refused()])
    for expected in (30.0, 20.0):
        with pytest.raises(KeysExhausted) as caught:
            await world.send()
        assert caught.value.retry_after_seconds == pytest.approx(expected)
        world.clock.advance(10.0)
    assert transport.used == ["a", "b"], "no upstream is asked while no key is left"
    assert world.in_flight() == 0


async def test_B64_the_soonest_of_all_limited_keys_counts() -> None:
    world = World(up("up", "a", "b"))
    world.on(a=[limited(30)], b=[limited(10)])
    with pytest.raises(KeysExhausted) as caught:
        await world.send()
    assert caught.value.retry_after_seconds == pytest.approx(10.0)
    assert caught.value.status == 429
    world.clock.advance(10.0)
    world.on(b=[Answer()])
    assert (await world.ok()).response.status == 200


async def test_B64_the_only_key_s_own_429_passes_then_the_proxy_answers() -> None:
    world = World(up("up", "a"))
    answer = limited(30, b'{"error": {"message": "slow down"}}')
    transport = world.on(a=[answer])
    exchange = await world.send()
    assert exchange.response.status == 429
    assert exchange.response.headers == ((b"Retry-After", b"30"),)
    assert await body_of(exchange) == answer.body
    await exchange.response.aclose()
    with pytest.raises(KeysExhausted):
        await world.send()
    assert len(transport.requests) == 1


async def test_B64_a_request_can_wait_for_a_key_instead() -> None:
    world = World(up("up", "a", wait_for_key_seconds=60.0))
    world.on(a=[limited(30), Answer()])
    await world.ok()
    assert (await world.ok()).response.status == 200
    assert world.clock.slept == [30.0]


async def test_B64_a_wait_that_is_too_long_is_not_begun() -> None:
    world = World(up("up", "a", wait_for_key_seconds=29.0))
    world.on(a=[limited(30)])
    await world.ok()
    with pytest.raises(KeysExhausted):
        await world.send()
    assert world.clock.slept == []


async def test_B62_a_rejected_pool_key_is_not_the_client_s_401() -> None:
    world = World(up("up", "a"))
    world.on(a=[refused()])
    for _ in range(2):
        with pytest.raises(UpstreamError) as caught:
            await world.send()
        assert caught.value.status == 502
        assert caught.value.error_code == "upstream_credentials_rejected"
    assert len(world.transports["up"].requests) == 1


async def test_B62_a_client_s_own_header_does_not_retire_the_pool() -> None:
    world = World(up("up", "a", "b"))
    world.on(any=[refused("mismatched_organization")])
    exchange = await world.ok()
    assert exchange.response.status == 401
    assert world.states() == [KeyState.AVAILABLE] * 2


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_B62_a_client_s_mistake_touches_no_key_and_is_not_retried(status: int) -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(any=[Answer(status)])
    assert (await world.ok()).response.status == status
    assert len(transport.requests) == 1
    assert world.states() == [KeyState.AVAILABLE] * 2


async def test_B62_a_fault_of_the_upstream_goes_to_the_next_key_and_touches_none() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[Answer(503)])
    assert (await world.ok()).response.status == 200
    assert transport.used == ["a", "b"]
    assert world.states() == [KeyState.AVAILABLE] * 2


async def test_B62_a_retired_key_comes_back_through_a_probe() -> None:
    world = World(up("up", "a", "b", key_retire_seconds=600.0))
    transport = world.on(a=[refused(), refused(), Answer()])
    await world.ok()
    world.clock.advance(600.0)
    assert (await world.ok()).response.status == 200, "a failed probe costs the client nothing"
    world.clock.advance(1200.0)
    await world.ok()
    assert world.states() == [KeyState.AVAILABLE] * 2
    assert transport.used == ["a", "b", "a", "b", "a"]


async def test_B63_each_key_is_tried_once_and_attempts_are_capped() -> None:
    world = World(up("up", "a", "b", max_attempts=5))
    transport = world.on(any=[Answer(500)])
    assert (await world.ok()).response.status == 500
    assert transport.used == ["a", "b"]
    world = World(up("up", "a", "b", "c", "d", max_attempts=3))
    transport = world.on(any=[Answer(500)])
    exchange = await world.ok()
    assert transport.used == ["a", "b", "c"]
    assert exchange.attempts == 3


async def test_B63_each_key_meets_a_broken_connection_once() -> None:
    world = World(up("up", "a", "b", max_attempts=5))
    transport = world.on(any=[UpstreamUnreachable("refused")])
    with pytest.raises(UpstreamUnreachable):
        await world.send()
    assert transport.used == ["a", "b"]
    assert world.in_flight() == 0


async def test_B62_a_failed_attempt_s_key_is_free_during_the_next_one() -> None:
    world = World(up("up", "a", "b"))
    seen: list[int] = []

    def counts(request: UpstreamRequest) -> Answer:
        seen.append(world.in_flight())
        return Answer()

    world.on(a=[Answer(500)], b=[counts])
    await world.ok()
    assert seen == [1]


async def test_B63_total_time_is_capped() -> None:
    world = World(up("up", "a", "b", "c", timeouts=Timeouts(total_seconds=10.0)))

    def slow(request: UpstreamRequest) -> Answer:
        world.clock.advance(6.0)
        return Answer(500)

    transport = world.on(any=[slow])
    assert (await world.ok()).response.status == 500
    assert transport.used == ["a", "b"]
    assert [request.budget_seconds for request in transport.requests] == [10.0, 4.0]


# -- chains


async def test_B63_the_next_profile_after_the_keys() -> None:
    world = World(up("up", "a", "b"), up("back", "z"))
    first = world.on("up", any=[UpstreamUnreachable("refused")])
    second = world.on("back")
    exchange = await world.ok()
    assert (exchange.upstream, exchange.profile, exchange.fallback) == ("back", "back", True)
    assert exchange.attempts == 3
    assert first.used == ["a", "b"]
    assert [request.body for request in second.requests] == [b'{"model":"back-model"}']
    assert second.requests[0].url == "https://back.example/v1/chat/completions"


async def test_B63_attempts_leave_one_for_each_profile_that_follows() -> None:
    world = World(up("up", "a", "b", "c", "d"), up("back", "z"))
    first = world.on("up", any=[Answer(500)])
    assert (await world.ok()).upstream == "back"
    assert first.used == ["a", "b"]


async def test_B63_an_upstream_that_may_still_be_at_work_is_not_asked_again() -> None:
    world = World(up("up", "a", "b"), up("back", "z"))
    first = world.on("up", any=[UpstreamTimeout("late")])
    assert (await world.ok()).upstream == "back"
    assert first.used == ["a"]


async def test_B63_a_cooling_pool_is_passed_over() -> None:
    world = World(up("up", "a"), up("back", "z"))
    first = world.on("up", a=[limited(30)])
    assert (await world.ok()).upstream == "back"
    assert (await world.ok()).upstream == "back"
    assert first.used == ["a"]


@pytest.mark.parametrize("most", [1, 3])
async def test_B64_a_rejected_key_after_a_cooling_pool_ends_in_429(most: int) -> None:
    world = World(up("up", "a", max_attempts=most), up("back", "z"))
    world.on("up", any=[limited(30)])
    world.on("back", z=[refused()])
    cooled = await world.set.send(Chain("m", world.chain.profiles[:1]), chat())
    assert cooled.response.status == 429
    with pytest.raises(KeysExhausted) as caught:
        await world.send()
    assert caught.value.retry_after_seconds == pytest.approx(30.0)


@pytest.mark.parametrize("most", [2, 3])
async def test_B62_the_rejection_that_came_last_is_told(most: int) -> None:
    world = World(up("up", "a", max_attempts=most), up("back", "z"))
    world.on("up", any=[UpstreamUnreachable("refused")])
    world.on("back", any=[refused()])
    with pytest.raises(UpstreamError) as caught:
        await world.send()
    assert caught.value.error_code == "upstream_credentials_rejected"


async def test_B63_unrepeatable_work_is_not_given_to_the_next_profile() -> None:
    world = World(up("up", "a"), up("back", "z"))
    world.on("up", any=[UpstreamUnreachable("reset")])
    with pytest.raises(UpstreamUnreachable):
        await world.send(Outgoing("POST", "/batches", "", (), b"{}"))
    assert world.transports["back"].requests == []


async def test_B65_when_all_fail_the_last_answer_is_the_client_s() -> None:
    world = World(up("up", "a"), up("back", "z"))
    first = Answer(500, b"first")
    last = Answer(503, b"last", ((b"x-request-id", b"r1"), (b"x-should-retry", b"true")))
    world.on("up", any=[first])
    world.on("back", any=[last])
    exchange = await world.send()
    assert exchange.response.status == 503
    assert exchange.response.headers == last.headers
    assert await body_of(exchange) == b"last"
    await exchange.response.aclose()
    assert first.closed
    assert last.closed


async def test_B65_an_answer_is_better_than_no_connection() -> None:
    world = World(up("up", "a"), up("back", "z"))
    world.on("up", any=[Answer(500, b"first")])
    world.on("back", any=[UpstreamUnreachable("refused")])
    exchange = await world.send()
    assert await body_of(exchange) == b"first"
    assert exchange.upstream == "up"


async def test_B63_without_any_answer_the_last_error_is_raised() -> None:
    world = World(up("up", "a"), up("back", "z"))
    world.on("up", any=[UpstreamUnreachable("first")])
    world.on("back", any=[UpstreamUnreachable("last")])
    with pytest.raises(UpstreamUnreachable, match="last"):
        await world.send()


# -- transparent


@pytest.mark.parametrize("status", [401, 402, 403, 429, 500, 503])
async def test_B65_a_transparent_upstream_s_errors_pass_unread_and_unretried(status: int) -> None:
    world = World(up())
    answer = Answer(
        status,
        b'{"error": 1}',
        ((b"Retry-After", b"7"), (b"x-ratelimit-reset-tokens", b"6m0s"), (b"x-request-id", b"r")),
    )
    transport = world.on(any=[answer])
    exchange = await world.send(chat(headers=((b"authorization", b"Bearer mine"),)))
    assert not answer.read
    assert exchange.response.status == status
    assert exchange.response.headers == answer.headers
    assert await body_of(exchange) == answer.body
    assert transport.used == ["mine"]
    assert exchange.attempts == 1


async def test_B61_bytes_go_out_as_they_came() -> None:
    world = World(up())
    raw = b'{ "model" :"m",\n"temperature": 1.0, "x": "\\u00e9" }\r\n'
    await world.ok(chat(raw))
    assert world.transports["up"].requests[0].body is raw


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_B71_a_refused_client_does_not_get_past_to_a_profile_with_keys(status: int) -> None:
    world = World(up(), up("back", "z"))
    world.on("up", any=[Answer(status)])
    assert (await world.ok()).response.status == status
    assert world.transports["back"].requests == []


async def test_B63_a_transparent_upstream_falls_back_on_its_own_failures() -> None:
    world = World(up(), up("back", "z"))
    world.on("up", any=[Answer(429), Answer(500), UpstreamUnreachable("refused")])
    outgoing = chat(headers=((b"authorization", b"Bearer mine"),))
    for _ in range(3):
        assert (await world.ok(outgoing)).upstream == "back"
    assert set(world.transports["back"].used) == {"z"}


async def test_B69_checked_credentials_never_go_upstream() -> None:
    world = World(up(), strip=True)
    await world.ok(chat(headers=((b"authorization", b"Bearer mine"),)))
    assert world.transports["up"].used == [""]


# -- what can be sent again


@pytest.mark.parametrize("step", [Answer(500), UpstreamUnreachable("reset")])
async def test_B63_work_that_may_have_been_done_is_not_repeated(step: Step) -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(any=[step])
    outgoing = Outgoing("POST", "/fine_tuning/jobs", "", (), b"{}")
    try:
        exchange = await world.ok(outgoing)
        assert exchange.response.status == 500
    except UpstreamUnreachable:
        pass
    assert transport.used == ["a"]


async def test_B63_work_that_was_refused_is_asked_of_the_next_key() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[limited(5)])
    await world.ok(Outgoing("POST", "/fine_tuning/jobs", "", (), b"{}"))
    assert transport.used == ["a", "b"]


async def source() -> AsyncIterator[bytes]:
    yield b"upload"


async def test_B63_an_upload_is_not_sent_twice() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[limited(5, b"slow")])
    exchange = await world.send(Outgoing("POST", "/files", "", (), source()))
    assert exchange.response.status == 429
    assert await body_of(exchange) == b"slow"
    assert transport.used == ["a"]


async def test_B63_an_upload_that_was_not_begun_can_be_sent_on_another_key() -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[UpstreamUnreachable("refused")])
    transport.takes_body = False
    assert (await world.ok(Outgoing("POST", "/files", "", (), source()))).response.status == 200
    assert transport.used == ["a", "b"]


# -- what is held, and given back


async def test_B62_a_key_is_in_flight_until_the_answer_is_closed() -> None:
    world = World(up("up", "a"))
    exchange = await world.send()
    assert world.in_flight() == 1
    await body_of(exchange)
    await exchange.response.aclose()
    await exchange.response.aclose()
    assert world.in_flight() == 0


@pytest.mark.parametrize("error", [asyncio.CancelledError(), RuntimeError("broken")])
async def test_B62_a_key_is_given_back_when_sending_ends_otherwise(error: BaseException) -> None:
    world = World(up("up", "a"))

    def ends(request: UpstreamRequest) -> Answer:
        raise error

    world.on(a=[ends])
    with pytest.raises(type(error)):
        await world.send()
    assert world.in_flight() == 0
    assert world.states() == [KeyState.AVAILABLE]


async def test_B62_a_cancelled_retry_closes_what_was_held() -> None:
    world = World(up("up", "a", "b"))
    held = Answer(500, b"x" * 200_000)

    def ends(request: UpstreamRequest) -> Answer:
        raise asyncio.CancelledError

    world.on(a=[held], b=[ends])
    with pytest.raises(asyncio.CancelledError):
        await world.send()
    assert held.closed
    assert world.in_flight() == 0


async def test_B65_a_long_error_is_read_in_part_and_passes_whole() -> None:
    world = World(up("up", "a"))
    answer = limited(5, bytes(range(256)) * 1000)
    world.on(a=[answer])
    exchange = await world.send()
    assert answer.closed == 0
    assert await body_of(exchange) == answer.body
    await exchange.response.aclose()
    assert answer.closed == 1


async def test_B65_an_error_that_breaks_off_breaks_off_for_the_client() -> None:
    world = World(up("up", "a"))
    world.on(a=[Answer(403, b"half", cut=True)])
    exchange = await world.send()
    chunks = aiter(exchange.response.aiter_raw())
    assert await anext(chunks) == b"half"
    with pytest.raises(UpstreamProtocolError):
        await anext(chunks)


# -- what is told


async def test_B62_one_line_for_each_change_of_a_key(caplog: pytest.LogCaptureFixture) -> None:
    world = World(up("up", "sk-a"))
    world.on(any=[limited(30), Answer()])
    with caplog.at_level(logging.INFO, "magic_proxy.upstream"):
        await world.ok()
        for _ in range(3):
            with pytest.raises(KeysExhausted):
                await world.send()
        world.clock.advance(30.0)
        await world.ok()
        await world.ok()
    fingerprint = KeySecret("sk-a").fingerprint
    assert [record.getMessage() for record in caplog.records] == [
        f"upstream up: {fingerprint} is cooling for 30 s: rate limited",
        f"upstream up: {fingerprint} is available: its time is over",
    ]
    assert "sk-a" not in caplog.text


async def test_the_account_headers_of_the_whole_chain_count() -> None:
    world = World(up(), up("back", "z", account_headers=("X-Team", "OpenAI-Project")))
    names = world.set.account_headers(world.chain)
    assert names == (b"openai-organization", b"openai-project", b"x-team")


async def test_B70_client_credentials_count_where_any_profile_sends_them() -> None:
    world = World(up("up", "a"), up("back"))
    assert world.set.uses_client_credentials(world.chain)
    assert not world.set.uses_client_credentials(Chain("m", world.chain.profiles[:1]))
    assert not World(up(), strip=True).set.uses_client_credentials(world.chain)


async def test_closing_closes_every_transport() -> None:
    world = World(up(), up("back"))
    await world.set.aclose()
    assert all(transport.closed for transport in world.transports.values())


async def test_a_route_to_an_unknown_upstream_is_refused() -> None:
    with pytest.raises(ValueError, match="gone"):
        UpstreamSet([up()], Router(default_upstream="gone"), clock=FakeClock())
