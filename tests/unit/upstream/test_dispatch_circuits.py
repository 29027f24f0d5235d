"""Circuits and retry budgets along a chain: who is asked, who is spared, and what is told."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

import pytest

from proxy.core.breaker import CircuitState
from proxy.errors import (
    CircuitOpen,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.upstream.base import Chain, Outgoing, Timeouts, UpstreamRequest
from proxy.upstream.budget import BudgetPolicy
from proxy.upstream.circuit import NEVER_OPENS, CircuitPolicy
from tests.fakes import FakeClock
from tests.unit.upstream.scripted import (
    Answer,
    Step,
    World,
    body_of,
    limited,
    refused,
    refused_connection,
    up,
)

pytestmark = pytest.mark.anyio

# After four calls of which all failed, and for exactly a second but for the jitter.
QUICK = CircuitPolicy(failure_rate=1.0, min_calls=4, connect_failures=2)


NOT_AGAIN = ((b"x-should-retry", b"false"),)


async def opened(world: World, step: Step | None = None, calls: int = 4) -> None:
    world.on("up", any=[step or Answer(503)])
    for _ in range(calls):
        await failing(world)
    assert world.set.circuit_states()["up"] is CircuitState.OPEN


async def failing(world: World, outgoing: Outgoing | None = None) -> None:
    with suppress(UpstreamUnreachable, UpstreamTimeout, UpstreamProtocolError):
        await world.ok(outgoing)


FAULTS: list[Step] = [
    *(Answer(status) for status in (408, 500, 502, 503, 504, 529)),
    UpstreamUnreachable("reset"),
    UpstreamTimeout("no first byte"),
    UpstreamProtocolError("not HTTP"),
]


@pytest.mark.parametrize("step", FAULTS, ids=str)
async def test_B62_what_counts_for_the_circuit(step: Step) -> None:
    await opened(World(up(circuit=QUICK)), step)


@pytest.mark.parametrize("status", [200, 204, 304, 400, 401, 402, 403, 404, 409, 413, 422, 429])
async def test_B62_answers_and_refusals_do_not(status: int) -> None:
    world = World(up(circuit=QUICK))
    world.on("up", any=[Answer(status)])
    for _ in range(20):
        await world.ok()
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}


async def test_B62_clients_that_go_away_do_not() -> None:
    world = World(up(circuit=QUICK))

    def ends(request: UpstreamRequest) -> Answer:
        raise asyncio.CancelledError

    world.on("up", any=[ends])
    for _ in range(20):
        with pytest.raises(asyncio.CancelledError):
            await world.send()
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}


async def test_B62_connections_that_fail_open_it_sooner() -> None:
    await opened(World(up(circuit=QUICK)), refused_connection(), calls=2)


class TickingClock(FakeClock):
    """As a real one: each reading is a little later."""

    def monotonic(self) -> float:
        self.advance(1e-6)
        return super().monotonic()


@pytest.mark.parametrize("first_byte_seconds", [600.0, 60.0, None])
async def test_B62_time_outs_count_also_where_the_total_is_the_shortest(
    first_byte_seconds: float | None,
) -> None:
    timeouts = Timeouts(total_seconds=60.0, first_byte_seconds=first_byte_seconds)
    world = World(up(circuit=QUICK, timeouts=timeouts), clock=TickingClock())
    await opened(world, UpstreamTimeout("late"))


async def test_an_open_circuit_is_a_503_with_the_time_to_come_again() -> None:
    world = World(up(circuit=QUICK))
    await opened(world)
    with pytest.raises(CircuitOpen) as caught:
        await world.send()
    assert (caught.value.status, caught.value.error_code) == (503, "upstream_circuit_open")
    assert caught.value.retry_after_seconds is not None
    assert 0.0 < caught.value.retry_after_seconds <= 1.2
    assert not caught.value.may_be_done
    assert len(world.transports["up"].requests) == 4


async def test_B63_an_open_circuit_leads_to_the_next_profile_at_once() -> None:
    world = World(up(circuit=QUICK), up("back", "z"))
    await opened(world)
    exchange = await world.ok()
    assert (exchange.upstream, exchange.fallback, exchange.attempts) == ("back", True, 1)
    assert len(world.transports["up"].requests) == 4


async def test_an_answer_says_more_than_a_circuit_that_is_open() -> None:
    world = World(up("up"), up("back", "z", circuit=QUICK))
    world.on("back", any=[refused_connection()])
    world.on("up", any=[Answer(500, b"first")])
    for _ in range(2):
        await world.ok()
    assert world.set.circuit_states()["back"] is CircuitState.OPEN
    assert await body_of(await world.send()) == b"first"
    world.on("up", any=[UpstreamUnreachable("reset")])
    with pytest.raises(UpstreamUnreachable):
        await world.send()


SLOW = replace(QUICK, open_seconds=60.0, max_open_seconds=60.0)


@pytest.mark.parametrize(("first", "second"), [(SLOW, QUICK), (QUICK, SLOW)])
async def test_of_several_open_circuits_the_soonest_time_is_told(
    first: CircuitPolicy, second: CircuitPolicy
) -> None:
    world = World(up(circuit=first), up("back", circuit=second))
    world.on("up", any=[refused_connection()])
    world.on("back", any=[refused_connection()])
    for _ in range(2):
        with pytest.raises(UpstreamUnreachable):
            await world.send()
    with pytest.raises(CircuitOpen) as caught:
        await world.send()
    assert caught.value.retry_after_seconds is not None
    assert caught.value.retry_after_seconds < 2.0


async def test_one_real_request_probes_and_its_answer_closes_the_circuit() -> None:
    world = World(up(circuit=QUICK))
    await opened(world)
    world.clock.advance(1.3)
    waiting = asyncio.Event()

    async def send_slowly(request: UpstreamRequest) -> Answer:
        await waiting.wait()
        return Answer()

    world.transports["up"].send = send_slowly  # type: ignore[method-assign]
    probe = asyncio.create_task(world.ok())
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await world.send()
    waiting.set()
    assert (await probe).response.status == 200
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}


async def test_a_probe_that_is_given_up_leaves_the_way_to_the_next() -> None:
    world = World(up(circuit=QUICK))
    await opened(world)
    world.clock.advance(1.3)

    def ends(request: UpstreamRequest) -> Answer:
        raise asyncio.CancelledError

    world.on("up", any=[ends])
    with pytest.raises(asyncio.CancelledError):
        await world.send()
    world.on("up", any=[Answer()])
    assert (await world.ok()).response.status == 200


async def test_a_probe_without_a_key_leaves_the_way_to_the_next() -> None:
    world = World(up("up", "a", circuit=QUICK))
    await opened(world)
    world.clock.advance(1.3)
    world.on("up", any=[limited(30)])
    await world.ok()
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}, "a limit is an answer"


@pytest.mark.parametrize(
    ("connecting", "state"), [(False, CircuitState.CLOSED), (True, CircuitState.OPEN)]
)
async def test_B62_a_time_out_in_time_that_others_left_over_says_nothing_but_of_connecting(
    connecting: bool, state: CircuitState
) -> None:
    late = UpstreamTimeout("late")
    late.connecting = connecting
    world = World(
        up("up", timeouts=Timeouts(total_seconds=30.0)),
        up(
            "back",
            "z",
            circuit=replace(QUICK, window_seconds=1_000.0),
            timeouts=Timeouts(first_byte_seconds=20.0),
        ),
    )

    def slow(request: UpstreamRequest) -> Answer:
        world.clock.advance(25.0)
        return Answer(500)

    world.on("up", any=[slow])
    world.on("back", any=[late])
    for _ in range(8):
        await world.ok()
    assert world.set.circuit_states()["back"] is state


async def test_each_change_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    world = World(up(circuit=QUICK))
    with caplog.at_level(logging.INFO, logger="magic_proxy.upstream"):
        await opened(world)
        for _ in range(5):
            with pytest.raises(CircuitOpen):
                await world.send()
        for _ in range(3):
            world.clock.advance(10.0)
            await failing(world)
        world.on("up", any=[Answer()])
        world.clock.advance(20.0)
        await world.ok()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(":")[1].split()[0] for line in lines] == ["fails,", "answers"]


async def test_no_circuit_where_it_is_switched_off() -> None:
    world = World(up(circuit=NEVER_OPENS))
    world.on("up", any=[Answer(500)])
    for _ in range(200):
        assert (await world.ok()).response.status == 500
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}


async def test_by_default_an_upstream_that_fails_often_but_not_always_is_not_cut_off() -> None:
    world = World(up())
    world.on(
        "up", any=[lambda _: Answer(500 if len(world.transports["up"].requests) % 10 else 200)]
    )
    for _ in range(8):
        assert (await world.ok()).response.status == 500
    world = World(up())
    pattern = iter([500, 500, 500, 500, 200] * 200)
    world.on("up", any=[lambda _: Answer(next(pattern))])
    for _ in range(1_000):
        await world.ok()
    assert world.set.circuit_states() == {"up": CircuitState.CLOSED}


# ---- calls that can do without an answer ----


async def test_B15_a_call_that_can_do_without_is_spared_while_nobody_may_be_asked() -> None:
    world = World(up(circuit=QUICK))
    assert world.set.spared(world.chain) is None
    await opened(world)

    refusal = world.set.spared(world.chain)

    assert refusal is not None
    assert 0.0 < refusal.seconds <= 1.2
    assert refusal.error_code == "upstream_circuit_open"


async def test_B15_it_is_not_to_be_the_probe_but_may_have_one_made() -> None:
    world = World(up(circuit=QUICK))
    await opened(world)
    world.clock.advance(1.3)
    for _ in range(2):  # asking is no probe
        refusal = world.set.spared(world.chain)
        assert refusal is not None
        assert refusal.seconds == 0.0

    waiting = asyncio.Event()

    async def send_slowly(request: UpstreamRequest) -> Answer:
        await waiting.wait()
        return Answer()

    world.transports["up"].send = send_slowly  # type: ignore[method-assign]
    probe = asyncio.create_task(world.ok())
    await asyncio.sleep(0)
    refusal = world.set.spared(world.chain)
    assert refusal is not None
    assert refusal.seconds == QUICK.open_seconds
    waiting.set()
    await probe
    assert world.set.spared(world.chain) is None


async def test_B15_nobody_is_spared_whom_a_fallback_can_answer() -> None:
    world = World(up(circuit=QUICK), up("back", "z", circuit=QUICK))
    await opened(world)
    assert world.set.spared(world.chain) is None
    world.clock.advance(1.3)
    assert world.set.spared(world.chain) is None, "a new answer is better than a stale one"


async def test_B15_of_a_chain_that_fails_as_a_whole_the_soonest_time_counts() -> None:
    world = World(up(circuit=SLOW), up("back", circuit=QUICK))
    for name in ("up", "back"):
        world.on(name, any=[refused_connection()])
    for _ in range(2):
        with pytest.raises(UpstreamUnreachable):
            await world.send()
    refusal = world.set.spared(world.chain)
    assert refusal is not None
    assert 0.0 < refusal.seconds < 2.0
    world.clock.advance(1.3)
    refusal = world.set.spared(world.chain)
    assert refusal is not None
    assert refusal.seconds == 0.0


async def test_a_chain_of_nobody_spares_nobody() -> None:
    assert World(up()).set.spared(Chain("", ())) is None


# ---- reload ----


async def test_what_a_circuit_knows_outlives_a_reload() -> None:
    world = World(up("up", "a", circuit=QUICK))
    await opened(world)
    after = World(up("up", "a", "b", circuit=QUICK, max_attempts=5))
    after.set.take_over(world.set)
    with pytest.raises(CircuitOpen):
        await after.send()
    world.clock.advance(1.3)
    world.on("up", any=[Answer()])
    await world.ok()
    assert after.set.circuit_states() == {"up": CircuitState.CLOSED}, "both look at the same one"


@pytest.mark.parametrize("another", ["address", "policy"])
async def test_a_circuit_begins_anew_for_an_upstream_that_is_another(another: str) -> None:
    world = World(up(circuit=QUICK))
    await opened(world)
    config = up(circuit=QUICK if another == "address" else CircuitPolicy())
    if another == "address":
        config = replace(config, base_url="https://elsewhere.example/v1")
    after = World(config)
    after.set.take_over(world.set)
    assert after.set.circuit_states() == {"up": CircuitState.CLOSED}


# ---- retries ----


async def test_B63_retries_stop_when_the_budget_is_spent_and_the_answer_passes() -> None:
    nothing = BudgetPolicy(share=0.0, per_second=0.0)
    world = World(up("up", "a", "b", retry_budget=nothing))
    answer = Answer(503, b"busy", ((b"x-request-id", b"r"),))
    transport = world.on(any=[answer])
    exchange = await world.send()
    assert (exchange.response.status, exchange.response.headers) == (503, answer.headers)
    assert await body_of(exchange) == b"busy"
    assert transport.used == ["a"]


async def test_B63_a_spent_budget_does_not_keep_from_another_profile() -> None:
    nothing = BudgetPolicy(share=0.0, per_second=0.0)
    world = World(up("up", "a", "b", retry_budget=nothing), up("back", "z", retry_budget=nothing))
    transport = world.on("up", any=[Answer(503)])
    assert (await world.ok()).upstream == "back"
    assert transport.used == ["a"]


async def test_B63_a_retry_that_is_not_made_takes_no_key() -> None:
    world = World(up("up", "a", "b", retry_budget=BudgetPolicy(share=0.0, per_second=0.0)))
    world.on(any=[Answer(503)])
    await world.ok()
    assert [key.uses for key in world.set.key_states()["up"]] == [1, 0]


async def test_B63_a_retry_for_which_there_is_no_key_takes_none_of_the_budget() -> None:
    one = BudgetPolicy(share=0.0, per_second=0.1)
    world = World(up("up", "a", "b", retry_budget=one))
    world.on(a=[limited(2), Answer(503)], b=[Answer(), Answer(503, headers=NOT_AGAIN)])
    await world.ok()
    await world.ok()
    world.clock.advance(3.0)
    transport = world.transports["up"]
    before = len(transport.requests)
    await world.ok()
    assert sorted(transport.used[before:]) == ["a", "b"]


@pytest.mark.parametrize("refusal", [limited(30), refused()], ids=["limited", "refused"])
async def test_B63_another_key_after_one_that_was_refused_costs_no_budget(refusal: Answer) -> None:
    world = World(up("up", "a", "b", retry_budget=BudgetPolicy(share=0.0, per_second=0.0)))
    transport = world.on(a=[refusal])
    assert (await world.ok()).response.status == 200
    assert transport.used == ["a", "b"]


async def test_B63_the_turns_of_keys_out_of_service_are_taken_by_one_that_works() -> None:
    world = World(up("up", "a", "b", max_attempts=5))
    transport = world.on(a=[Answer(500), Answer(500), Answer()], b=[limited(30)])
    assert (await world.ok()).response.status == 200
    assert transport.used == ["a", "b", "a", "a"]


async def test_B63_a_refusal_between_two_failures_is_not_a_retry() -> None:
    one = BudgetPolicy(share=0.0, per_second=0.1)
    world = World(up("up", "a", "b", "c", max_attempts=9, retry_budget=one))
    transport = world.on(a=[Answer(500)], b=[limited(30)], c=[Answer(502)])
    assert (await world.ok()).response.status == 502
    assert transport.used == ["a", "b", "c"]


@pytest.mark.parametrize(
    "header", [(b"X-Should-Retry", b"false"), (b"Retry-After", b"2"), (b"retry-after-ms", b"5")]
)
async def test_B65_an_upstream_that_says_not_now_meets_no_key_twice(
    header: tuple[bytes, bytes],
) -> None:
    world = World(up("up", "a", "b", max_attempts=5))
    answer = Answer(503, b"later", (header,))
    transport = world.on(a=[refused()], b=[answer])
    assert await body_of(await world.send()) == b"later"
    assert transport.used == ["a", "b"]


async def test_B63_nobody_is_asked_twice_with_a_key_who_is_not_there() -> None:
    world = World(up("up", "a", "b", max_attempts=5))
    transport = world.on(a=[refused()], b=[refused_connection()])
    with pytest.raises(UpstreamUnreachable):
        await world.send()
    assert transport.used == ["a", "b"]


# ---- time ----


async def test_B68_a_wait_for_a_key_ends_with_the_time_of_the_request() -> None:
    world = World(up("up", "a", wait_for_key_seconds=60.0, timeouts=Timeouts(total_seconds=20.0)))
    world.on(a=[limited(30)])
    await world.ok()
    with pytest.raises(Exception, match="rate limited"):
        await world.send()
    assert world.clock.slept == []


async def test_B68_the_attempts_together_stay_within_the_total() -> None:
    timeouts = Timeouts(total_seconds=10.0)
    world = World(up("up", "a", "b", "c", max_attempts=9, timeouts=timeouts), up("back", "z"))

    def slow(request: UpstreamRequest) -> Answer:
        world.clock.advance(4.0)
        return Answer(500)

    first = world.on("up", any=[slow])
    await world.ok()
    budgets = [request.budget_seconds for request in first.requests]
    assert budgets == pytest.approx([10.0, 6.0, 2.0])
    assert world.transports["back"].requests == []
