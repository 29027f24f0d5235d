"""Engines whose entries grow old, and what tests of freshness ask of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from proxy.core.matching import RuleSet
from proxy.core.rules import Rule
from proxy.core.variants import Turns
from proxy.core.wire import Headers
from proxy.engine.base import Answer
from proxy.engine.service import CachePolicy, CacheService, Lasting
from tests.unit.engine.kit import COMPLETION, RULE, Engine, FaultyStore, going, told
from tests.unit.engine.upstreams import JSON, LiveForwarder, LiveResponse, body_of, turns

SWR = replace(RULE, stale_while_revalidate_seconds=30.0)
SIE = replace(RULE, stale_if_error_seconds=300.0)
BOTH = replace(SWR, stale_if_error_seconds=300.0)


def saying(text: str) -> bytes:
    """A completion that says `text`."""
    return COMPLETION.replace(b'"hi"', f'"{text}"'.encode())


class Ageing:
    """An engine over an upstream that answers when the test says so."""

    def __init__(self, rule: Rule = SWR, store: FaultyStore | None = None) -> None:
        self.upstream = LiveForwarder()
        self.engine = Engine(store or FaultyStore(), self.upstream, rule=rule)

    @property
    def calls(self) -> int:
        """How often the upstream was asked."""
        return len(self.upstream.calls)

    def limited(self, rule: Rule, most: int) -> None:
        """Let no more than `most` refreshes be under way at once."""
        engine = self.engine
        lasting = Lasting(
            engine.entries,
            engine.generations,
            engine.flights,
            engine.fetches,
            engine.refreshes,
            Turns(),
        )
        policy = CachePolicy(RuleSet((rule,)), max_refreshes=most)
        engine.service = CacheService(policy, lasting, self.upstream, engine.clock, engine.witness)

    def answer(
        self, body: bytes, *, call: int = -1, status: int = 200, headers: Headers = JSON
    ) -> None:
        """Give the answer to one of the calls (the last one) now, whole."""
        number = call % self.calls
        response = LiveResponse(status, headers)
        self.upstream.answer(number, response)
        response.say(body, None)

    async def store(
        self, body: bytes = COMPLETION, content: str = "hi", /, **members: object
    ) -> None:
        """Have this answer stored, and written."""
        asked = going(self.engine.ask(content, **members))
        await turns()
        self.answer(body)
        assert told(await asked, b"x-cache") == "MISS"
        await self.engine.settled()
        await turns()

    async def asked(self, content: str = "hi", /, **members: object) -> tuple[str, bytes]:
        """`X-Cache` and the body of an answer that is there without the upstream's help."""
        async with asyncio.timeout(5):
            answer = await self.engine.ask(content, **members)
            return told(answer, b"x-cache"), await body_of(answer)

    def pass_time(self, seconds: float) -> None:
        self.engine.clock.advance(seconds)


@asynccontextmanager
async def ageing(rule: Rule = SWR, store: FaultyStore | None = None) -> AsyncIterator[Ageing]:
    """One with a stored answer whose 60 s have just begun."""
    running = Ageing(rule, store)
    await running.store()
    try:
        yield running
    finally:
        await running.engine.stop()


def cache_status(answer: Answer) -> str:
    return told(answer, b"cache-status")
