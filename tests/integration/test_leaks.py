"""Streams leave nothing behind: no task, no descriptor, no connection, however they end."""

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from proxy.standin import RunningStandIn, Script
from tests.integration.contract import metric
from tests.integration.servers import ProxyFactory, RunningProxy
from tests.waiting import eventually

AT_ONCE = 16
RULE = {
    "model_names": ["*"],
    "include_in_key": ["*"],
    "ttl_seconds": 600,
    # What is finished for nobody comes on top of what is under way for clients.
    "on_disconnect": "cancel",
}
SETTINGS = {
    "store": {"tiers": "memory", "memory": {"max_bytes": 1024 * 1024}},
    "cache_settings": {"rules": [RULE]},
}

Ask = Callable[[httpx.AsyncClient, int], Awaitable[None]]


@dataclass(frozen=True)
class Held:
    """What this process holds, in which the proxy, the upstream and the clients all run.

    `other_descriptors` are those that are no end of a connection between proxy and upstream.
    """

    tasks: int
    other_descriptors: int
    under_way: float


def held(proxy: RunningProxy, standin: RunningStandIn) -> Held:
    under_way = metric(proxy, "magic_proxy_in_flight")
    tasks = [each for each in gc.get_objects() if type(each) is asyncio.Task]
    return Held(
        tasks=sum(not task.done() for task in tasks),
        other_descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir())
        - 2 * len(standin.app.connections),
        under_way=under_way,
    )


def ask_all(proxy: RunningProxy, numbers: Iterator[int], count: int, ask: Ask) -> None:
    """So many requests, `AT_ONCE` of them at any time; the clients are gone afterwards."""
    left = iter(range(count))

    async def worker(client: httpx.AsyncClient) -> None:
        for _ in left:
            await ask(client, next(numbers))

    async def work() -> None:
        async with httpx.AsyncClient(
            base_url=proxy.base_url, timeout=30.0, verify=False, trust_env=False
        ) as client:
            await asyncio.gather(*(worker(client) for _ in range(AT_ONCE)))

    asyncio.run(work())


def question(number: int) -> dict[str, object]:
    message = {"role": "user", "content": f"Question {number}"}
    return {"model": "gpt-4o", "stream": True, "messages": [message]}


async def read_to_the_end(client: httpx.AsyncClient, number: int) -> None:
    answer = await client.post("/chat/completions", json=question(number))
    assert answer.headers["x-cache"] == "MISS"
    assert answer.text.endswith("data: [DONE]\n\n")


async def leave_early(client: httpx.AsyncClient, number: int) -> None:
    asked = client.stream("POST", "/chat/completions", json=question(number))
    async with asked as answer:
        async for _ in answer.aiter_raw():
            break


async def see_it_break(client: httpx.AsyncClient, number: int) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/chat/completions", json=question(number))


@pytest.mark.parametrize(
    ("count", "ask", "script"),
    [
        pytest.param(200, read_to_the_end, Script(), id="read to the end"),
        pytest.param(60, leave_early, Script(tokens=2_000), id="left by the client"),
        pytest.param(60, see_it_break, Script(close_after=3), id="broken off upstream"),
    ],
)
def test_B56_streams_leave_no_task_no_descriptor_and_no_connection(
    count: int, ask: Ask, script: Script, standin: RunningStandIn, proxy: ProxyFactory
) -> None:
    standin.app.script(script, times=None)
    running = proxy(SETTINGS)
    numbers = itertools.count()
    metric(running, "magic_proxy_in_flight")
    before = held(running, standin)

    ask_all(running, numbers, count, ask)

    assert standin.app.count("/chat/completions") == count
    eventually(lambda: held(running, standin) == before)
    # The stand-in may hear of the last close a moment later; idle connections expire after 5 s.
    eventually(lambda: len(standin.app.connections) <= AT_ONCE, timeout=4.0)
