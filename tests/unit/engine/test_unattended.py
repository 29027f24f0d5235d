"""Each upstream request is told of once: by its client's outcome, or as one that nobody waited for."""

import asyncio
from dataclasses import replace

import pytest

from proxy.core.rules import OnDisconnect
from proxy.errors import UpstreamProtocolError, UpstreamUnreachable
from tests.unit.engine.freshness import Ageing, ageing
from tests.unit.engine.kit import COMPLETION, RULE, going, told
from tests.unit.engine.upstreams import JSON, STREAM, LiveResponse, body_of, turns

pytestmark = pytest.mark.anyio


def unattended(here: Ageing) -> list[tuple[str, str]]:
    return here.engine.witness.unattended


@pytest.mark.parametrize("said", [b"", b"no-cache", b"no-store", b"no-cache, no-store"])
@pytest.mark.parametrize("stream", [False, True])
async def test_B16_an_answer_that_its_client_got_is_told_by_its_outcome(
    stream: bool, said: bytes
) -> None:
    here = Ageing(RULE)
    asked = going(here.engine.ask_with((b"cache-control", said), stream=stream))
    await turns()
    response = LiveResponse() if stream else LiveResponse(headers=JSON)
    here.upstream.answer(0, response)
    response.say_all(STREAM if stream else [COMPLETION])
    await body_of(await asked)
    await turns()

    assert unattended(here) == []
    assert len(here.engine.witness.outcomes) == 1
    await here.engine.stop()


async def test_B16_a_stream_that_its_client_leaves_at_its_end_is_told_by_its_outcome() -> None:
    here = Ageing(RULE)
    asked = going(here.engine.ask(stream=True))
    await turns()
    response = LiveResponse()
    here.upstream.answer(0, response)
    response.say(*STREAM)
    answer = await asked
    assert not isinstance(answer.body, bytes)
    async for piece in answer.body:
        if b"[DONE]" in piece:
            break
    await answer.body.aclose()  # the upstream has not closed yet
    response.say(None)
    await turns()

    assert unattended(here) == []
    assert here.engine.witness.outcomes[0].complete
    await here.engine.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_B16_a_failure_that_its_client_was_told_is_told_by_its_outcome(stream: bool) -> None:
    here = Ageing(RULE)
    asked = [going(here.engine.ask(stream=stream)) for _ in range(3)]
    await turns()
    here.upstream.answer(0, UpstreamUnreachable("refused"))
    assert {answer.status for answer in await asyncio.gather(*asked)} == {502}
    await turns()

    assert unattended(here) == []
    await here.engine.stop()


async def test_B16_a_stream_that_breaks_off_is_told_by_its_outcome() -> None:
    here = Ageing(RULE)
    asked = going(here.engine.ask(stream=True))
    await turns()
    response = LiveResponse()
    here.upstream.answer(0, response)
    response.say(STREAM[0], UpstreamProtocolError("cut"))
    with pytest.raises(UpstreamProtocolError):
        await body_of(await asked)
    await turns()

    assert unattended(here) == []
    await here.engine.stop()


async def test_B16_what_its_client_left_is_told_for_itself_though_others_got_it() -> None:
    here = Ageing(RULE)
    asked = [going(here.engine.ask(stream=True)) for _ in range(3)]
    await turns()
    response = LiveResponse()
    here.upstream.answer(0, response)
    response.say(STREAM[0])
    leader, *followers = await asyncio.gather(*asked)
    assert not isinstance(leader.body, bytes)
    await leader.body.aclose()
    response.say_all(STREAM[1:])
    bodies = [await body_of(follower) for follower in followers]
    await turns()

    assert bodies == [b"".join(STREAM)] * 2
    assert unattended(here) == [("finish", "stored")]
    # The upstream's bill is that of the one who left; the others saved as much.
    told_of = here.engine.witness.outcomes
    assert [outcome.collapsed for outcome in told_of] == [False, True, True]
    assert [outcome.complete for outcome in told_of] == [False, True, True]
    await here.engine.stop()


async def test_B16_what_a_follower_left_is_told_by_the_one_who_stayed() -> None:
    here = Ageing(RULE)
    asked = [going(here.engine.ask()) for _ in range(2)]
    await turns()
    asked[1].cancel()
    await turns()
    here.answer(COMPLETION)
    await asked[0]
    await turns()

    assert unattended(here) == []
    await here.engine.stop()


@pytest.mark.parametrize("passing", [False, True], ids=["cancel", "bypass"])
async def test_B42_what_was_given_up_with_its_client_is_told_for_itself(passing: bool) -> None:
    here = Ageing(replace(RULE, on_disconnect=OnDisconnect.CANCEL))
    said = (b"cache-control", b"no-cache, no-store" if passing else b"")
    asked = going(here.engine.ask_with(said))
    await turns()
    asked.cancel()
    await turns()

    assert here.upstream.calls[0].cancelled()
    assert unattended(here) == [("finish", "abandoned")]
    assert [outcome.detail for outcome in here.engine.witness.outcomes] == ["client-gone"]
    await here.engine.stop()


async def test_B44_a_flight_that_is_cancelled_before_its_first_step_leaves_nothing() -> None:
    async with ageing() as here:
        here.pass_time(60)
        assert told(await here.engine.ask(), b"x-cache") == "STALE"
        assert here.calls == 1, "the refresh has not begun"

        await here.engine.flying.cancel()

        assert here.calls == 1
        assert len(here.engine.flights) == len(here.engine.refreshes) == 0
        assert unattended(here) == [("refresh", "abandoned")]
