"""Many entries fast: embeddings in batches of 1,000 inputs, an entry for each."""

import asyncio

import orjson

from bench.crowd import Caller, callers, request
from bench.metrics import gauge
from bench.processes import Running
from bench.question import Question

BATCH = 1_000
EMBEDDING = Question(path="/v1/embeddings", model="text-embedding-3-small")
# The queue of writes is bounded, and what it can't take is dropped.
_MOST_QUEUED = 5_000


def batch_body(number: int) -> bytes:
    """The same number, the same inputs: those that `EMBEDDING` asks for one by one."""
    inputs = [f"{number * BATCH + at:08d}" for at in range(BATCH)]
    return orjson.dumps({"model": EMBEDDING.model, "input": inputs})


async def fill(server: Running, first: int, batches: int) -> None:
    """Have so many batches stored. Raises AssertionError where entries were lost."""
    (caller,) = await callers([server], 1)
    for number in range(first, first + batches):
        await _ask(server, caller, number)
    await until_less(server, "magic_proxy_write_queue_entries", 1)
    held = gauge(server, "magic_proxy_store_entries")
    assert held >= batches * BATCH, f"{held:,.0f} entries held"
    caller.hang_up()


async def until_less(server: Running, name: str, bound: int) -> None:
    """Wait for a gauge of the proxy to be below a bound."""
    while True:
        if await asyncio.to_thread(gauge, server, name) < bound:
            return
        await asyncio.sleep(0.01)


async def _ask(server: Running, caller: Caller, number: int) -> None:
    heard = await caller.ask(request(server, batch_body(number), EMBEDDING.path))
    assert heard.status == 200, bytes(heard.body[:300])
    await until_less(server, "magic_proxy_write_queue_entries", _MOST_QUEUED)
