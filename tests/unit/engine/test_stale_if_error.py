"""Stale entries serve where the upstream fails, and say so (B15)."""

import asyncio
from dataclasses import replace

import pytest

from proxy.core.outcome import Forwarded, XCache
from proxy.core.wire import Headers
from proxy.errors import (
    KeysExhausted,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.unit.engine.freshness import BOTH, SIE, Ageing, ageing, cache_status, saying
from tests.unit.engine.kit import COMPLETION, RULE, going, told
from tests.unit.engine.upstreams import JSON, SSE, STREAM, LiveResponse, body_of, turns

pytestmark = pytest.mark.anyio
ERROR = b'{"error":{"message":"no"}}'


def fail(here: Ageing, failure: UpstreamError | int) -> None:
    """Have the call that is under way fail, by an error or by a status."""
    if isinstance(failure, int):
        here.answer(ERROR, status=failure)
    else:
        here.upstream.answer(here.calls - 1, failure)


FAILURES = [
    (UpstreamUnreachable("refused"), "upstream_unreachable"),
    (UpstreamTimeout("late"), "upstream_timeout"),
    (UpstreamProtocolError("broken"), "upstream_protocol_error"),
    (KeysExhausted("all rest", retry_after_seconds=9), "upstream_keys_exhausted"),
    (UpstreamError("no", code="upstream_credentials_rejected"), "upstream_credentials_rejected"),
    (402, "upstream_failing"),
    (408, "upstream_failing"),
    (429, "upstream_failing"),
    (500, "upstream_failing"),
    (502, "upstream_failing"),
    (503, "upstream_failing"),
    (529, "upstream_failing"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(("failure", "reason"), FAILURES, ids=str)
async def test_B15_a_failing_upstream_is_told_with_the_stale_answer(
    failure: UpstreamError | int, reason: str, stream: bool
) -> None:
    async with ageing(SIE) as here:
        here.pass_time(100.5)

        asked = going(here.engine.ask(stream=stream))
        await turns()
        here.pass_time(7)
        fail(here, failure)
        answer = await asked

        assert answer.status == 200
        assert (told(answer, b"x-cache"), told(answer, b"age")) == ("STALE", "107")
        status = f"; fwd-status={failure}" if isinstance(failure, int) else ""
        detail = f'detail="stale-if-error:{reason}"'
        assert cache_status(answer) == f"magic-proxy; fwd=stale{status}; ttl=-47; {detail}"
        assert b"hi" in await body_of(answer)
        assert told(answer, b"content-type").startswith("text/event" if stream else "application/j")
        assert answer.repeatable is None
        _, outcome = here.engine.witness.outcomes
        assert (outcome.x_cache, outcome.forwarded) == (XCache.STALE, Forwarded.STALE)
        assert outcome.duration_seconds == 7.0, "the wait for the upstream is a part of it"
        assert (outcome.complete, outcome.stored, outcome.collapsed) == (True, None, False)
        assert outcome.usage is not None


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422])
async def test_B15_what_is_the_request_s_own_fault_passes_through(status: int) -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)

        asked = going(here.engine.ask())
        await turns()
        fail(here, status)
        answer = await asked

        assert (answer.status, await body_of(answer)) == (status, ERROR)
        assert told(answer, b"x-cache") == "MISS"
        assert cache_status(answer).startswith(f"magic-proxy; fwd=stale; fwd-status={status}")


@pytest.mark.parametrize("failure", [UpstreamUnreachable("refused"), 503, 429])
@pytest.mark.parametrize(
    "said", [b"no-cache", b"max-age=0", b"max-age=99999", b"no-cache, no-store"]
)
async def test_B13_who_does_not_take_stale_answers_gets_the_error(
    said: bytes, failure: UpstreamError | int
) -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)

        asked = going(here.engine.ask_with((b"cache-control", said)))
        await turns()
        fail(here, failure)

        assert (await asked).status == (failure if isinstance(failure, int) else 502)
        # What there is stays for the others.
        again = going(here.engine.ask())
        await turns()
        fail(here, failure)
        assert told(await again, b"x-cache") == "STALE"


async def test_B13_who_forbids_to_store_is_served_what_is_there() -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)

        asked = going(here.engine.ask_with((b"cache-control", b"no-store")))
        await turns()
        fail(here, 503)

        assert told(await asked, b"x-cache") == "STALE"


async def test_B13_only_if_cached_gets_no_answer_that_only_errors_allow() -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)

        answer = await here.engine.ask_with((b"cache-control", b"only-if-cached"))

        assert answer.status == 504
        assert here.calls == 1


@pytest.mark.parametrize(("seconds", "status"), [(359.9, 200), (360.0, 503)])
async def test_B15_the_window_begins_where_the_answer_s_time_ended(
    seconds: float, status: int
) -> None:
    async with ageing(SIE) as here:
        here.pass_time(seconds)

        asked = going(here.engine.ask())
        await turns()
        fail(here, 503)

        assert (await asked).status == status


async def test_B15_without_the_setting_an_error_is_an_error() -> None:
    async with ageing(RULE) as here:
        here.pass_time(60)
        asked = going(here.engine.ask())
        await turns()
        fail(here, 503)
        assert (await asked).status == 503


async def test_B15_B40_a_crowd_shares_the_failure_and_each_is_served() -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)
        asked = [going(here.engine.ask(stream=bool(number % 2))) for number in range(10)]
        await turns()
        assert here.calls == 2
        fail(here, 503)

        answers = await asyncio.gather(*asked)

        assert {told(answer, b"x-cache") for answer in answers} == {"STALE"}
        assert here.calls == 2
        assert len(here.engine.witness.outcomes) == 11


@pytest.mark.parametrize("headers", [JSON, SSE])
async def test_B15_an_error_that_calls_itself_a_stream_is_an_error(headers: Headers) -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)
        asked = going(here.engine.ask(stream=True))
        await turns()
        here.answer(b"data: {}\n\n", status=503, headers=headers)

        assert told(await asked, b"x-cache") == "STALE"
        await turns()
        assert len(here.engine.flights) == 0
        assert here.engine.flying.count("flight") == 0


async def test_B15_a_body_that_breaks_off_before_anything_was_sent_is_a_failure() -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)
        asked = going(here.engine.ask())
        await turns()
        response = LiveResponse(headers=JSON)
        here.upstream.answer(1, response)
        response.say(COMPLETION[:20], UpstreamProtocolError("cut"))

        assert await body_of(await asked) == COMPLETION
        assert told(await asked, b"x-cache") == "STALE"


async def test_B21_a_stream_that_has_begun_breaks_off_and_is_not_mended() -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)
        asked = going(here.engine.ask(stream=True))
        await turns()
        response = LiveResponse()
        here.upstream.answer(1, response)
        response.say(STREAM[0], UpstreamProtocolError("cut"))

        answer = await asked
        assert told(answer, b"x-cache") == "MISS"
        with pytest.raises(UpstreamProtocolError):
            await body_of(answer)


async def test_B15_B23_an_entry_that_can_t_take_the_form_asked_for_is_no_help() -> None:
    here = Ageing(SIE)
    asked = going(here.engine.ask(stream=True))
    await turns()
    here.answer(b"".join(STREAM), headers=SSE)
    await body_of(await asked)
    here.pass_time(100)

    asked = going(here.engine.ask(stream=True, stream_options={"include_usage": True}))
    await turns()
    fail(here, 503)
    refused = await asked
    unreachable = going(here.engine.ask(stream=True, stream_options={"include_usage": True}))
    await turns()
    fail(here, UpstreamUnreachable("refused"))

    # As it came, with all that it says.
    assert (refused.status, await body_of(refused)) == (503, ERROR)
    assert told(refused, b"x-cache") == "MISS"
    assert (await unreachable).status == 502
    await here.engine.stop()


async def test_B15_the_new_answer_is_served_and_stored_where_the_upstream_does_not_fail() -> None:
    async with ageing(SIE) as here:
        here.pass_time(100)
        asked = going(here.engine.ask())
        await turns()
        here.answer(saying("new"))

        assert (await asked).body == saying("new")
        assert cache_status(await asked) == (
            'magic-proxy; fwd=stale; fwd-status=200; ttl=60; stored; detail="expired"'
        )
        assert await here.asked() == ("HIT", saying("new"))


async def test_B15_both_windows_first_the_one_and_then_the_other() -> None:
    async with ageing(BOTH) as here:
        for seconds, waits in ((60, False), (29, False), (1, True), (269, True)):
            here.pass_time(seconds)
            asked = going(here.engine.ask())
            await turns()
            assert asked.done() is not waits
            fail(here, 503)
            answer = await asked
            assert told(answer, b"x-cache") == "STALE"
            assert ("stale-if-error" in cache_status(answer)) is waits
            await turns()
        here.pass_time(1)
        asked = going(here.engine.ask())
        await turns()
        fail(here, 503)
        assert (await asked).status == 503


async def test_B15_a_window_that_a_rule_no_longer_has_ends_at_once() -> None:
    async with ageing(replace(SIE, stale_if_error_seconds=300.0)) as here:
        here.pass_time(100)
        here.limited(RULE, most=16)
        asked = going(here.engine.ask())
        await turns()
        fail(here, 503)
        assert (await asked).status == 503
