"""The keys of one upstream: which one is asked, rests, and comes back."""

import logging

import pytest

from proxy.errors import KeysExhausted, UpstreamError, UpstreamUnreachable
from proxy.upstream.base import Timeouts, UpstreamRequest
from proxy.upstream.config import KeySecret
from proxy.upstream.pooled_key import KeyState
from tests.fakes import FakeClock
from tests.unit.upstream.scripted import (
    Answer,
    World,
    body_of,
    limited,
    refused,
    refused_connection,
    up,
)

pytestmark = pytest.mark.anyio


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


NOT_AGAIN = ((b"x-should-retry", b"false"),)
UNREADABLE = Answer(401, b"\x1b\x03", ((b"Content-Encoding", b"br"),))


@pytest.mark.parametrize("refusal", [refused("missing_scope"), UNREADABLE])
async def test_B62_a_request_that_no_key_may_make_empties_no_pool(refusal: Answer) -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(any=[refusal])
    exchange = await world.send()
    assert (exchange.response.status, transport.used) == (401, ["a", "b"])
    assert await body_of(exchange) == refusal.body
    await exchange.response.aclose()
    assert world.states() == [KeyState.AVAILABLE] * 2
    assert world.in_flight() == 0


async def test_B62_a_key_that_lacks_a_permission_is_stood_in_for_by_another() -> None:
    world = World(up("up", "a", "b"))
    world.on(a=[refused("missing_scope")])
    assert [(await world.ok()).response.status for _ in range(3)] == [200] * 3
    assert world.states() == [KeyState.AVAILABLE] * 2


@pytest.mark.parametrize("before", [refused("missing_scope"), Answer(500, headers=NOT_AGAIN)])
async def test_B65_a_key_that_is_refused_does_not_hide_what_another_was_told(
    before: Answer,
) -> None:
    world = World(up("up", "a", "b"))
    transport = world.on(a=[before], b=[refused()])
    exchange = await world.send()
    assert (exchange.response.status, transport.used) == (before.status, ["a", "b"])
    assert await body_of(exchange) == before.body
    await exchange.response.aclose()
    assert world.states() == [KeyState.AVAILABLE, KeyState.RETIRED]
    assert world.in_flight() == 0


async def test_B65_nor_that_there_was_no_connection() -> None:
    world = World(up("up", "a", "b"))
    world.on(a=[refused_connection()], b=[refused()])
    with pytest.raises(UpstreamUnreachable):
        await world.send()


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


class Ticking(FakeClock):
    """Time passes whenever somebody looks."""

    def monotonic(self) -> float:
        self.advance(0.001)
        return super().monotonic()


@pytest.mark.parametrize("ticks", range(1, 21))
async def test_B64_a_refused_key_that_is_due_in_this_moment_makes_no_time_out(ticks: int) -> None:
    clock = Ticking()
    world = World(up("up", "a", "b", key_retire_seconds=10.0), clock=clock)
    world.on(a=[limited(100)], b=[refused()])
    for seconds in (10.0 - 0.001 * ticks, 0.0):
        with pytest.raises(KeysExhausted):
            await world.send()
        clock.advance(seconds)
