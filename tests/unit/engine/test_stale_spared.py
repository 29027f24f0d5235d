"""While an upstream is left alone, whoever has a stale answer waits for nobody, nor for a probe (B15)."""

import asyncio
from dataclasses import replace

import pytest

from proxy.coalesce.base import FlightEnd
from proxy.core.rules import OnDisconnect
from proxy.engine.probing import Probes
from proxy.errors import CircuitOpen, UpstreamTimeout
from tests.fakes import FakeClock
from tests.unit.engine.batch_kit import Worker
from tests.unit.engine.freshness import BOTH, SIE, Ageing, ageing, cache_status, saying
from tests.unit.engine.kit import COMPLETION, going, told
from tests.unit.engine.test_batching_stale import ITEMS, aged, expected, vectors
from tests.unit.engine.test_batching_stale import SIE as SIE_ITEMS
from tests.unit.engine.upstreams import DONE, turns

pytestmark = pytest.mark.anyio

OPEN = CircuitOpen("left alone", retry_after_seconds=3.0)
PROBED = CircuitOpen("left alone", retry_after_seconds=0.0)
SPARED = 'detail="stale-if-error:upstream_circuit_open"'


async def left_alone(here: Ageing, refusal: CircuitOpen = PROBED) -> None:
    """The stored answer is stale by now, and its upstream is known to fail."""
    here.pass_time(100)
    here.upstream.refusal = refusal


@pytest.mark.parametrize(("refusal", "calls"), [(OPEN, 1), (PROBED, 2)], ids=["open", "probed"])
async def test_B15_who_has_a_stale_answer_does_not_wait_for_a_circuit(
    refusal: CircuitOpen, calls: int
) -> None:
    async with ageing(SIE) as here:
        await left_alone(here, refusal)

        assert await here.asked() == ("STALE", COMPLETION)
        x_cache, stream = await here.asked(stream=True)
        assert x_cache == "STALE"
        assert stream.endswith(DONE)
        answer = await here.engine.ask()
        await turns()

        assert cache_status(answer) == f"magic-proxy; fwd=stale; ttl=-40; {SPARED}"
        assert answer.repeatable is None
        assert here.calls == calls


async def test_B15_a_probe_that_is_answered_brings_the_new_answer() -> None:
    async with ageing(SIE) as here:
        await left_alone(here)
        assert (await here.asked())[0] == "STALE"
        await turns()

        here.answer(saying("new"))
        await turns()
        await here.engine.settled()

        assert await here.asked() == ("HIT", saying("new"))
        assert here.engine.witness.unattended == [("refresh", FlightEnd.STORED)]


@pytest.mark.parametrize("on_disconnect", OnDisconnect)
async def test_B15_a_probe_that_hangs_holds_nobody_up(on_disconnect: OnDisconnect) -> None:
    async with ageing(replace(SIE, on_disconnect=on_disconnect)) as here:
        await here.store(COMPLETION, "another")
        await left_alone(here)
        assert (await here.asked())[0] == "STALE"
        await turns()
        assert here.calls == 3, "the probe is on its way"

        here.upstream.refusal = OPEN
        assert (await here.asked())[0] == "STALE"
        here.upstream.refusal = None
        asked = going(here.engine.ask())
        await turns()
        here.answer(saying("new"))

        assert (await asked).body == saying("new"), "not that of the probe, which still hangs"
        here.upstream.answer(2, UpstreamTimeout("late"))
        await turns()
        assert here.engine.witness.unattended == [("refresh", FlightEnd.FAILED)]


async def test_B15_the_more_probes_hang_the_later_the_next_one_begins() -> None:
    async with ageing(replace(SIE, stale_if_error_seconds=3600)) as here:
        here.limited(SIE, most=1)
        await here.store(COMPLETION, "another")
        await left_alone(here)

        for begun, seconds in enumerate((2, 4, 30, 30), start=1):
            for content in ("hi", "another") * 3:
                assert (await here.asked(content))[0] == "STALE"
            await turns()
            assert here.calls == 2 + begun
            here.pass_time(seconds - 0.1)
            assert (await here.asked())[0] == "STALE"
            await turns()
            assert here.calls == 2 + begun
            here.pass_time(0.1)


async def hang() -> None:
    await asyncio.Event().wait()


async def test_B15_no_more_than_three_probes_hang_and_the_oldest_is_given_up() -> None:
    clock = FakeClock()
    probes = Probes(clock)
    hanging = [asyncio.create_task(hang()) for _ in range(4)]
    for probe in hanging:
        assert probes.may_begin("up")
        probes.began("up", probe)
        assert probes.may_begin("another")
        assert not probes.may_begin("up")
        clock.advance(30)
    await turns()

    assert [probe.cancelled() for probe in hanging] == [True, False, False, False]
    probes.began("up", done := asyncio.create_task(asyncio.sleep(0)))
    await done
    await turns()
    assert not probes.may_begin("up")
    clock.advance(1)
    assert probes.may_begin("up"), "one of them has ended: it does not hang"
    for probe in hanging:
        probe.cancel()


async def test_B15_who_wants_no_stale_answer_is_the_probe() -> None:
    async with ageing(SIE) as here:
        await left_alone(here)

        asked = going(here.engine.ask_with((b"cache-control", b"max-age=10")))
        await turns()
        here.answer(saying("new"))

        assert (await asked).body == saying("new")


async def test_B13_B15_what_is_fetched_for_who_forbids_to_store_is_not_stored() -> None:
    async with ageing(SIE) as here:
        await left_alone(here)

        answer = await here.engine.ask_with((b"cache-control", b"no-store"))
        await turns()
        here.answer(saying("new"))
        await turns()

        assert told(answer, b"x-cache") == "STALE"
        assert here.calls == 2, "also they see whether the upstream works again"
        assert await here.asked() == ("STALE", COMPLETION)


async def test_B15_while_it_revalidates_a_refresh_is_the_probe() -> None:
    async with ageing(BOTH) as here:
        here.pass_time(70)
        here.upstream.refusal = PROBED

        answer = await here.engine.ask()
        await turns()

        assert 'detail="revalidating"' in cache_status(answer)
        assert here.calls == 2


@pytest.mark.parametrize(("refusal", "calls"), [(OPEN, 1), (PROBED, 2)], ids=["open", "probed"])
async def test_B15_B30_a_batch_does_not_wait_for_a_circuit_either(
    refusal: CircuitOpen, calls: int
) -> None:
    worker = await aged(Worker(rule=SIE_ITEMS))
    worker.upstream.refusal = refusal
    worker.upstream.gate = asyncio.Event()

    for _ in range(3):
        answer = await worker.ask(ITEMS)
        assert vectors(answer) == expected(ITEMS)
        assert told(answer, b"x-cache") == "STALE"
        assert told(answer, b"cache-status") == f"magic-proxy; fwd=stale; ttl=-40; {SPARED}"
        await turns()
    assert len(worker.upstream.sent) == calls
    assert len(worker.fetches) == 0, "nobody joins a probe"

    worker.upstream.gate.set()
    await turns()
    worker.upstream.refusal = None
    assert told(await worker.ask(ITEMS), b"x-cache") == ("HIT" if refusal is PROBED else "MISS")
    await worker.stop()


async def test_B15_B30_a_batch_with_an_unknown_item_waits_as_it_must() -> None:
    worker = await aged(Worker(rule=SIE_ITEMS))
    worker.upstream.refusal = PROBED
    answer = await worker.ask([*ITEMS, "unknown"])
    assert vectors(answer) == expected([*ITEMS, "unknown"])
    assert told(answer, b"x-cache") == "MISS"
    await worker.stop()
