"""Clients that ask at once: of one worker, and of several that share a medium and a store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from proxy.core.rules import Rule
from proxy.engine.base import Answer
from proxy.engine.write_behind import WriteLimits
from proxy.errors import UpstreamError
from tests.coalescing import FakeCoalescer, FakeMedium
from tests.unit.engine.kit import COMPLETION, RULE, Engine, FaultyStore, going
from tests.unit.engine.upstreams import (
    JSON,
    STREAM,
    LiveForwarder,
    LiveResponse,
    body_of,
    turns,
)
from tests.waiting import until


def started(rule: Rule = RULE, forwarder: LiveForwarder | None = None) -> Engine:
    """A worker that shares with nobody."""
    return Engine(forwarder=forwarder or LiveForwarder(), rule=rule)


def upstream(engine: Engine) -> LiveForwarder:
    """What this worker asks."""
    assert isinstance(engine.forwarder, LiveForwarder)
    return engine.forwarder


def calls(*engines: Engine) -> list[int]:
    """How often each has asked its upstream."""
    return [len(upstream(engine).calls) for engine in engines]


def asking(engine: Engine, count: int = 1, /, **members: object) -> list[asyncio.Task[Answer]]:
    """So many clients that ask the same, to their answers; streams are not read."""
    return [going(engine.ask(**members)) for _ in range(count)]


def asking_whole(engine: Engine, count: int = 1, /, **members: object) -> list[asyncio.Task[bytes]]:
    """The same, to the end of the bodies."""

    async def whole() -> bytes:
        return await body_of(await engine.ask(**members))

    return [going(whole()) for _ in range(count)]


def answered(
    engine: Engine, pieces: Sequence[bytes] | None = None, *, call: int = -1, status: int = 200
) -> LiveResponse:
    """Answer one of its calls (the last one) whole: with a stream, else with JSON."""
    response = LiveResponse(status, LiveResponse().headers if pieces is not None else JSON)
    upstream(engine).answer(call, response)
    response.say_all(list(pieces) if pieces is not None else [COMPLETION])
    return response


def saying(engine: Engine, *pieces: bytes | UpstreamError, call: int = -1) -> LiveResponse:
    """Answer one of its calls with a stream that goes on after these pieces."""
    response = LiveResponse()
    upstream(engine).answer(call, response)
    response.say(*pieces)
    return response


async def left(answer: Answer) -> None:
    """The client of a stream goes away."""
    assert not isinstance(answer.body, bytes)
    await answer.body.aclose()


async def nothing_left(*engines: Engine) -> None:
    """No flight can be joined, and no work of one is under way."""
    await turns()
    await until(lambda: not any(len(engine.flights) + len(engine.flying) for engine in engines))


class Replicas:
    """Workers over one medium and one store, each with an upstream of its own."""

    def __init__(self, rule: Rule = RULE, limits: WriteLimits | None = None) -> None:
        self.medium = FakeMedium()
        self.store = FaultyStore()
        self.engines: list[Engine] = []
        self.coalescers: list[FakeCoalescer] = []
        self._rule = rule
        self._limits = limits

    def add(self, rule: Rule | None = None, forwarder: LiveForwarder | None = None) -> Engine:
        """One worker more."""
        self.coalescers.append(FakeCoalescer(self.medium))
        self.engines.append(
            Engine(
                self.store,
                forwarder or LiveForwarder(),
                rule=rule or self._rule,
                limits=self._limits,
                coalescer=self.coalescers[-1],
            )
        )
        return self.engines[-1]

    async def kill(self, engine: Engine) -> None:
        """The worker is gone without a word; its leases have run out, when this returns."""
        self.medium.die(self.coalescers[self.engines.index(engine)])
        await turns()

    async def over(self) -> None:
        """No work is left anywhere, and no lease is held."""
        await nothing_left(*self.engines)
        assert self.medium.held == {}

    async def stop(self) -> None:
        for engine in self.engines:
            await engine.stop()


@asynccontextmanager
async def replicas(
    rule: Rule = RULE, *, count: int = 2, limits: WriteLimits | None = None
) -> AsyncIterator[Replicas]:
    """So many workers, started; stopped on the way out."""
    made = Replicas(rule, limits)
    for _ in range(count):
        made.add()
    try:
        yield made
    finally:
        await made.stop()


async def leading_and_following(
    here: Replicas, *, leads: bool, follows: bool, followers: int = 1
) -> tuple[asyncio.Task[bytes], list[asyncio.Task[bytes]]]:
    """A client of the first worker that leads, and clients of the second that follow it.

    `leads` and `follows` say whether they want streams.
    """
    (leader,) = asking_whole(here.engines[0], stream=leads)
    await turns()
    following = asking_whole(here.engines[1], followers, stream=follows)
    await turns()
    assert calls(*here.engines[:2]) == [1, 0]
    return leader, following


WHOLE = b"".join(STREAM)
