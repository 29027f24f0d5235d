"""Whoever is cancelled, at any step, leaves nothing behind and takes nothing from the others (B42)."""

import asyncio
from dataclasses import replace

import pytest

from proxy.core.rules import OnDisconnect
from tests.unit.engine.crowds import (
    WHOLE,
    answered,
    asking_whole,
    calls,
    replicas,
    upstream,
)
from tests.unit.engine.kit import COMPLETION, RULE, Engine
from tests.unit.engine.upstreams import JSON, STREAM, LiveResponse, turns
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

BOTH_FORMS = pytest.mark.parametrize("stream", [True, False])
POLICIES = pytest.mark.parametrize("policy", list(OnDisconnect))


class Course:
    """An upstream that goes on by one step now and then, so that each turn meets another state."""

    def __init__(self, engine: Engine, *, stream: bool) -> None:
        self._upstream = upstream(engine)
        self.response = LiveResponse() if stream else LiveResponse(headers=JSON)
        self._steps: list[bytes | None] = [*(STREAM if stream else [COMPLETION]), None]

    def step(self, turn: int) -> None:
        """What happens in this turn of the loop, if anything."""
        if turn == 6:
            self.answer()
        elif turn > 6 and turn % 4 == 0 and self._steps:
            self.response.say(self._steps.pop(0))

    def answer(self) -> None:
        """Answer the first call, unless that is done or nobody waits for it."""
        if self._upstream.calls and not self._upstream.calls[0].done():
            self._upstream.answer(0, self.response)

    def finish(self) -> None:
        """Go on to the end."""
        self.answer()
        self.response.say(*self._steps)
        self._steps = []

    @property
    def is_closed(self) -> bool:
        """True where the connection is not held any more, or never was."""
        calls = self._upstream.calls
        return not calls or calls[0].cancelled() or self.response.closed.is_set()


async def steps(course: Course, count: int) -> None:
    for turn in range(count):
        course.step(turn)
        await asyncio.sleep(0)


@POLICIES
@BOTH_FORMS
@pytest.mark.parametrize("follower_streams", [True, False])
@pytest.mark.parametrize("step", range(1, 28))
async def test_B42_a_follower_elsewhere_may_go_at_any_step(
    step: int, follower_streams: bool, stream: bool, policy: OnDisconnect
) -> None:
    before = asyncio.all_tasks()
    async with replicas(replace(RULE, on_disconnect=policy)) as here:
        one, other = here.engines
        idle = asyncio.all_tasks() - before
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, 2)
        (goes,) = asking_whole(other, stream=follower_streams)
        await steps(course, step)
        goes.cancel()
        await asyncio.wait({goes})
        await turns()
        assert len(other.flights) == 0
        course.finish()
        assert await leader == (WHOLE if stream else COMPLETION)
        await here.over()
        await until(lambda: asyncio.all_tasks() - before == idle)
        assert calls(one, other) == [1, 0]
        assert course.is_closed


@BOTH_FORMS
@pytest.mark.parametrize("step", range(1, 28))
async def test_B42_one_of_two_followers_may_go_at_any_step(step: int, stream: bool) -> None:
    async with replicas(replace(RULE, on_disconnect=OnDisconnect.CANCEL)) as here:
        one, other = here.engines
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, 2)
        goes, stays = asking_whole(other, 2, stream=stream)
        await steps(course, step)
        goes.cancel()
        await turns()
        course.finish()
        assert await leader == await stays == (WHOLE if stream else COMPLETION)
        await here.over()
        assert calls(one, other) == [1, 0]


@POLICIES
@BOTH_FORMS
@pytest.mark.parametrize("step", range(1, 28))
async def test_B42_a_leaders_only_client_may_go_at_any_step(
    step: int, stream: bool, policy: OnDisconnect
) -> None:
    before = asyncio.all_tasks()
    async with replicas(replace(RULE, on_disconnect=policy)) as here:
        one, other = here.engines
        idle = asyncio.all_tasks() - before
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, step)
        leader.cancel()
        await asyncio.wait({leader})
        await turns()
        course.finish()
        await here.over()
        await until(lambda: asyncio.all_tasks() - before == idle)
        assert course.is_closed
        assert all(flight.end is not None for flight in here.medium.flights)

        (again,) = asking_whole(other, stream=stream)
        await turns()
        if calls(other) == [1]:
            assert not here.store.values
            answered(other, STREAM if stream else None)
        assert await again == (WHOLE if stream else COMPLETION)


@POLICIES
@BOTH_FORMS
@pytest.mark.parametrize("step", range(1, 28))
async def test_B41_a_leaders_client_may_go_at_any_step_with_others_behind_it(
    step: int, stream: bool, policy: OnDisconnect
) -> None:
    async with replicas(replace(RULE, on_disconnect=policy)) as here:
        one, other = here.engines
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, 2)
        followers = asking_whole(other, 2, stream=stream)
        await steps(course, step)
        leader.cancel()
        await turns()
        course.finish()
        await turns()
        if calls(other) == [1]:
            # Nobody says that somebody waits for an entry: the leader gave up, the others did not.
            assert policy is OnDisconnect.CANCEL
            answered(other, STREAM if stream else None)
        for follower in followers:
            assert await follower == (WHOLE if stream else COMPLETION)
        await here.over()
        assert course.is_closed


@BOTH_FORMS
@pytest.mark.parametrize("follower_streams", [True, False])
@pytest.mark.parametrize("step", range(2, 28))
async def test_B44_the_work_of_a_leader_may_be_ended_at_any_step(
    step: int, follower_streams: bool, stream: bool
) -> None:
    """As at the stop of a worker whose time is over: others go on at once."""
    async with replicas() as here:
        one, other = here.engines
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, 2)
        followers = asking_whole(other, 2, stream=follower_streams)
        await steps(course, step)
        leader.cancel()
        await asyncio.wait({leader})
        await one.flying.cancel()
        await here.coalescers[0].close()
        await turns()
        if calls(other) == [1]:
            answered(other, STREAM if follower_streams else None)
        bodies = await asyncio.gather(*followers)
        assert len(set(bodies)) == 1
        assert bodies[0].endswith(b"[DONE]\n\n") is follower_streams
        await here.over()
        assert course.is_closed


@BOTH_FORMS
@pytest.mark.parametrize("step", range(1, 28))
async def test_B44_the_work_of_a_follower_may_be_ended_at_any_step(step: int, stream: bool) -> None:
    async with replicas() as here:
        one, other = here.engines
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, 2)
        (follower,) = asking_whole(other, stream=stream)
        await steps(course, step)
        await other.flying.cancel()
        await asyncio.wait({follower}, timeout=0.05)
        follower.cancel()  # it may have begun anew
        await turns()
        await other.flying.cancel()
        course.finish()
        assert await leader == (WHOLE if stream else COMPLETION)
        await here.over()


@BOTH_FORMS
@pytest.mark.parametrize("step", range(1, 28))
async def test_B41_a_leader_may_die_at_any_step(step: int, stream: bool) -> None:
    async with replicas(count=3) as here:
        one, two, three = here.engines
        course = Course(one, stream=stream)
        (leader,) = asking_whole(one, stream=stream)
        await steps(course, 2)
        followers = [*asking_whole(two, 2, stream=stream), *asking_whole(three, 2, stream=stream)]
        await steps(course, step)
        await here.kill(one)
        leader.cancel()
        course.finish()
        await turns()
        for engine in (two, three):
            if calls(engine) == [1]:
                answered(engine, STREAM if stream else None)
                await turns()
        assert set(await asyncio.gather(*followers)) == {WHOLE if stream else COMPLETION}
        assert sum(calls(two, three)) <= 1
        await turns()
        assert len(two.flights) == len(three.flights) == 0
