"""Limits and headroom as requests meet them."""

from dataclasses import replace

import orjson
import pytest

from proxy.core.wire import Headers
from proxy.errors import KeysExhausted
from proxy.upstream.base import Outgoing
from proxy.upstream.config import KeySecret
from tests.unit.upstream.scripted import Answer, World, chat, up

pytestmark = pytest.mark.anyio


def remaining(requests: int, reset: str = "60s") -> Headers:
    return (
        (b"X-RateLimit-Limit-Requests", b"100"),
        (b"X-RateLimit-Remaining-Requests", str(requests).encode()),
        (b"X-RateLimit-Reset-Requests", reset.encode()),
    )


def limited_up(rpm: int | None = None, tpm: int | None = None, **settings: object) -> World:
    """An upstream with one key that has limits."""
    return World(replace(up("up", **settings), keys=(KeySecret("a", 1.0, rpm, tpm),)))


async def test_B62_a_key_that_the_upstream_tells_is_empty_is_not_used_while_another_is_left() -> (
    None
):
    world = World(up("up", "a", "b"))
    transport = world.on(a=[Answer(headers=remaining(0))], b=[Answer(headers=remaining(50))])
    for _ in range(5):
        await world.ok()
    assert transport.used == ["a", "b", "b", "b", "b"]
    world.clock.advance(60.0)
    await world.ok()
    assert transport.used[-1] == "a", "full again"


async def test_B64_all_keys_at_their_limit_end_in_429_with_the_soonest_time() -> None:
    world = limited_up(rpm=2)
    await world.ok()
    await world.ok()
    with pytest.raises(KeysExhausted) as caught:
        await world.send()
    wait = caught.value.retry_after_seconds
    assert wait is not None
    assert 60.0 <= wait <= 61.0
    assert len(world.transports["up"].requests) == 2, "the upstream is not asked"
    world.clock.advance(wait)
    await world.ok()
    assert world.in_flight() == 0


async def test_B64_a_request_can_wait_for_its_turn_under_the_limit() -> None:
    world = limited_up(rpm=1, wait_for_key_seconds=61.0)
    await world.ok()
    await world.ok()
    assert world.clock.slept == [pytest.approx(60.5, abs=0.51)]


async def test_B62_what_an_answer_cost_counts_in_place_of_the_estimate() -> None:
    world = limited_up(tpm=1000)
    body = orjson.dumps({"model": "m", "messages": [], "max_tokens": 900})
    exchange = await world.ok(chat(body))
    with pytest.raises(KeysExhausted):
        await world.send(chat(body))
    exchange.spent(30)
    await world.ok(chat(body))


async def test_B62_an_attempt_that_fails_gives_its_key_back_and_counts() -> None:
    world = limited_up(rpm=1)
    world.on(a=[Answer(500)])
    assert (await world.ok()).response.status == 500
    assert world.in_flight() == 0
    with pytest.raises(KeysExhausted):
        await world.send()


def conversation(system: str, question: str) -> Outgoing:
    messages = [{"role": "system", "content": system * 30}, {"role": "user", "content": question}]
    return chat(orjson.dumps({"model": "m", "messages": messages}))


async def test_B62_prompts_with_the_same_start_stick_to_one_key() -> None:
    world = World(up("up", "a", "b", "c", sticky_prefix_chars=60))
    transport = world.transports["up"]
    for name in ("one", "two", "three", "four", "five", "six"):
        for question in ("why?", "how?", "when?"):
            await world.ok(conversation(name, question))
    by_prompt = [set(transport.used[at : at + 3]) for at in range(0, 18, 3)]
    assert all(len(keys) == 1 for keys in by_prompt)
    assert len(set.union(*by_prompt)) > 1


async def test_B62_by_default_prompts_stick_to_no_key() -> None:
    world = World(up("up", "a", "b"))
    for _ in range(4):
        await world.ok(conversation("one", "why?"))
    assert world.transports["up"].used == ["a", "b", "a", "b"]
