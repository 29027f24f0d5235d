"""Purges while answers are under way, on two workers over one store and one log of purges (B54).

Every answer says at which purge its upstream was asked. Whoever begins to ask a worker that knows
of a purge must not get an answer from before it: from no tier, no queue, and nobody else's call.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import orjson
import pytest

from proxy.core.codec import peek_expiry
from proxy.core.selectors import Selector
from proxy.core.wire import Endpoint
from proxy.engine.base import Answer
from proxy.engine.plan import Plan
from proxy.errors import StoreUnavailable, UpstreamUnreachable
from proxy.stores.base import Put
from proxy.stores.memory import MemoryStore
from proxy.stores.tiered import TieredStore
from tests.coalescing import FakeCoalescer, FakeMedium
from tests.fakes import FakeClock
from tests.unit.engine.batch_kit import Worker
from tests.unit.engine.kit import COMPLETION, RULE, Engine, FaultyStore, call, told
from tests.unit.engine.test_generations import FakeLog, Shared
from tests.unit.engine.upstreams import (
    DONE,
    JSON,
    LiveForwarder,
    LiveResponse,
    body_of,
    chunk,
    turns,
)
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(20)]

AGED = replace(RULE, stale_while_revalidate_seconds=0.0)
SELECTORS = [
    Selector(),
    Selector(rule="all"),
    Selector(model="m"),
]


class Truth(LiveForwarder):
    """An upstream whose answers tell the epoch in which it was asked: the number of purges."""

    def __init__(self, world: "World") -> None:
        super().__init__()
        self._world = world
        self.epochs: list[int] = []

    async def send(self, chain: Any, outgoing: Any) -> Any:
        self.epochs.append(self._world.epoch)
        return await super().send(chain, outgoing)

    @property
    def open_calls(self) -> list[int]:
        return [number for number, asked in enumerate(self.calls) if not asked.done()]

    def tell(self, number: int) -> None:
        """Answer one call, with what was true when it came."""
        asked, epoch = orjson.loads(cast("bytes", self.sent[number].body)), self.epochs[number]
        if asked.get("stream"):
            response = LiveResponse()
            response.say(chunk(f"{epoch}"), chunk(finish="stop"), DONE, None)
        else:
            response = LiveResponse(headers=JSON)
            response.say(_answer(asked, epoch), None)
        self.answer(number, response)


def _answer(asked: dict[str, Any], epoch: int) -> bytes:
    if "input" not in asked:
        return COMPLETION.replace(b'"hi"', b'"%d"' % epoch)
    items = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    rows = [
        {"object": "embedding", "index": at, "embedding": [epoch, int(item)]}
        for at, item in enumerate(items)
    ]
    usage = {"prompt_tokens": len(items), "total_tokens": len(items)}
    return orjson.dumps({"object": "list", "data": rows, "model": "m", "usage": usage})


class SlowStore(FaultyStore):
    """What is asked of it takes some turns of the loop, more or fewer."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self._dice = dice

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        await turns(self._dice.randrange(8))
        values = await super().get_many(keys)
        await turns(self._dice.randrange(8))
        return values

    async def put_many(self, puts: Sequence[Put]) -> None:
        await turns(self._dice.randrange(8))
        await super().put_many(puts)
        await turns(self._dice.randrange(8))


@dataclass(slots=True)
class Asked:
    """A client's request: what it wants, and the last purge that its worker knew of."""

    task: "asyncio.Task[Answer]"
    items: list[str]
    floor: int


class Replica:
    """One worker; it hears of others' purges when it is told."""

    def __init__(self, world: "World", *, tiered: bool, wall: float) -> None:
        self.world = world
        self.log = FakeLog(world.shared)
        self.known = 0
        store: Any = world.store
        if tiered:
            memory = MemoryStore(max_bytes=1_000_000, clock=FakeClock(wall))
            store = TieredStore([memory, store], expires_at_of=peek_expiry)
        self.upstream = Truth(world)
        self.engine = Engine(
            store, self.upstream, rule=AGED, coalescer=FakeCoalescer(world.medium), marks=self.log
        )
        self.engine.clock.set_wall(wall)

    async def purge(self, selector: Selector, *, soft: bool) -> None:
        self.world.epoch += 1
        epoch = self.world.epoch
        try:
            await self.engine.generations.add(selector, soft=soft)
        except StoreUnavailable:
            self.world.owed = True
        self.known = max(self.known, epoch)

    async def hear(self) -> None:
        """Read the log, and take in what is there now."""
        before, epoch = self.log.reads, self.world.epoch
        self.engine.generations.heard()
        await until(lambda: self.log.reads > before)
        await turns()
        if not self.world.owed:
            self.known = max(self.known, epoch)

    def ask(self, items: list[str], *, stream: bool = False) -> Asked:
        async def answer() -> Answer:
            if items:
                body = orjson.dumps({"model": "m", "input": items})
                asked = replace(call(body), endpoint=Endpoint.EMBEDDINGS, path="/embeddings")
                begun = await self.engine.service.begin(asked)
                if isinstance(begun, Plan):
                    begun = await self.engine.service.finish(begun)
                return begun
            asked_chat = await self.engine.ask(stream=True) if stream else await self.engine.ask()
            return replace(asked_chat, body=await body_of(asked_chat))

        return Asked(asyncio.create_task(answer()), items, self.known)


class World:
    """Two replicas over one store, one medium for leases, and one log."""

    def __init__(self, dice: random.Random) -> None:
        self.epoch = 0
        self.owed = False
        self.shared = Shared(deaf=True)
        self.medium = FakeMedium()
        self.store = SlowStore(dice)
        self.replicas: list[Replica] = []

    def heal(self) -> None:
        for replica in self.replicas:
            replica.log.down = False

    def check(self, asked: Asked) -> None:
        """What came is from no earlier epoch than its client may expect, and of its items."""
        answer = asked.task.result()
        if answer.status != 200:
            return
        assert isinstance(answer.body, bytes)
        if asked.items:
            rows = orjson.loads(answer.body)["data"]
            assert [row["embedding"][1] for row in rows] == [int(item) for item in asked.items]
            epochs = [int(row["embedding"][0]) for row in rows]
        else:
            epochs = [_epoch_of(answer.body)]
        assert min(epochs) >= asked.floor, told(answer, b"cache-status")


def _epoch_of(body: bytes) -> int:
    said = re.search(rb'"content":"([0-9]+)"', body)
    assert said is not None, body
    return int(said[1])


@asynccontextmanager
async def world_of(dice: random.Random, *, tiered: bool) -> AsyncIterator[World]:
    world = World(dice)
    for wall in (1_800_000_000.0, 1_800_000_030.0):
        replica = Replica(world, tiered=tiered, wall=wall)
        world.replicas.append(replica)
        await replica.engine.generations.open()
    try:
        yield world
    finally:
        for replica in world.replicas:
            await replica.engine.stop()


async def _step(world: World, dice: random.Random, asked: list[Asked]) -> None:
    here = dice.choice(world.replicas)
    match dice.choices(range(7), (30, 30, 4, 12, 12, 2, 3))[0]:
        case 0:
            items = [str(dice.randrange(5)) for _ in range(dice.choice((0, 0, 1, 2, 4)))]
            asked.append(here.ask(items, stream=dice.random() < 0.5))
        case 1 if calls := here.upstream.open_calls:
            here.upstream.tell(dice.choice(calls))
        case 2 if calls := here.upstream.open_calls:
            here.upstream.answer(dice.choice(calls), UpstreamUnreachable("refused"))
        case 3:
            await here.purge(dice.choice(SELECTORS), soft=dice.random() < 0.3)
        case 4 if not here.log.down:
            await here.hear()
        case 5:
            here.log.down = True
        case 6:
            world.heal()
    await turns(dice.randrange(12))


async def _finished(world: World, asked: list[Asked]) -> None:
    """Answer all that is open, until every client has its answer."""
    async with asyncio.timeout(10):
        while not all(each.task.done() for each in asked):
            for replica in world.replicas:
                for number in replica.upstream.open_calls:
                    replica.upstream.tell(number)
            await turns(3)


@pytest.mark.parametrize("tiered", [False, True], ids=["shared", "tiered"])
@pytest.mark.parametrize("seed", range(10))
async def test_B54_no_purge_is_outlived_by_an_answer_under_way(seed: int, tiered: bool) -> None:
    dice = random.Random(seed)
    async with world_of(dice, tiered=tiered) as world:
        asked: list[Asked] = []
        for _ in range(150):
            await _step(world, dice, asked)
        await _finished(world, asked)
        for each in asked:
            world.check(each)

        world.heal()
        for _ in range(2):  # what one owes the log, the other hears of afterwards
            for replica in world.replicas:
                await replica.hear()
        world.owed = False
        for replica in world.replicas:
            await replica.hear()
        for replica in world.replicas:
            last = [replica.ask([]), replica.ask([], stream=True), replica.ask(list("01234"))]
            await _finished(world, last)
            assert {each.floor for each in last} == {world.epoch}
            for each in last:
                world.check(each)


async def test_B54_what_lands_while_a_later_call_looks_it_up_is_not_taken() -> None:
    worker = Worker()
    worker.upstream.gate = asyncio.Event()
    first = asyncio.create_task(worker.ask(["a", "b"]))
    await worker.upstream.reached.wait()
    await worker.generations.add(Selector())
    worker.store.stalled = {"get"}
    later = asyncio.create_task(worker.ask(["a", "b"]))
    await turns()
    worker.upstream.gate.set()
    await first
    worker.store.stalled = set()
    worker.store.gate.set()
    await later
    assert worker.upstream.sent == [["a", "b"], ["a", "b"]]
    await worker.stop()


async def test_B54_a_purge_that_the_log_did_not_take_is_not_outlived_by_items_under_way() -> None:
    log = FakeLog(Shared())
    worker = Worker(marks=log)
    await worker.generations.open()
    worker.upstream.gate = asyncio.Event()
    first = asyncio.create_task(worker.ask(["a", "b"]))
    await worker.upstream.reached.wait()
    log.down = True
    with pytest.raises(StoreUnavailable):
        await worker.generations.add(Selector())
    later = asyncio.create_task(worker.ask(["a", "b"]))
    await turns()
    assert worker.upstream.sent == [["a", "b"], ["a", "b"]]
    worker.upstream.gate.set()
    await asyncio.gather(first, later)
    await worker.stop()
