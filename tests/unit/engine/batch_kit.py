"""Fakes for batches of embeddings: an upstream that makes vectors up, and the engine's part."""

import asyncio
import base64
import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, cast

import orjson

from proxy.access.base import Identity
from proxy.coalesce.base import Coalescer
from proxy.core.items import Items, items_of, split_input
from proxy.core.matching import RuleSet
from proxy.core.paths import FieldPath
from proxy.core.rules import Rule
from proxy.core.wire import Endpoint, Headers
from proxy.engine.base import Answer, Call
from proxy.engine.batching import Batches
from proxy.engine.item_fetches import Fetches
from proxy.engine.plan import Plan, make_plan
from proxy.engine.write_behind import WriteLimits
from proxy.errors import CircuitOpen, UpstreamError
from proxy.stores.marks import MarkLog
from proxy.tasks import TaskGroup
from proxy.upstream.base import Chain, Exchange, Outgoing, Profile
from tests.unit.engine.kit import Engine, FaultyStore, Said, ScriptedForwarder

JSON: Headers = ((b"Content-Type", b"application/json"),)
RULE = Rule(
    name="vectors", model_names=("*",), include_in_key=(FieldPath.parse("*"),), ttl_seconds=60.0
)
Row = dict[str, Any]


def packed(item: Any, dimensions: int = 3) -> bytes:
    """An item's vector as binary32, little-endian."""
    seed = hashlib.sha256(orjson.dumps(item)).digest()
    numbers = struct.unpack(f"<{dimensions}h", seed[: 2 * dimensions])
    return struct.pack(f"<{dimensions}f", *(number / 1000 for number in numbers))


def floats(vector: bytes) -> list[float]:
    """Binary32 as the shortest decimals."""
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    return [float(f"{number:.6g}") for number in numbers]


def cost(item: Any) -> int:
    """What the upstream counts for an item: a token for each byte, so that a split is exact."""
    return len(item) if isinstance(item, list) else len(item.encode())


class Embedder:
    """A `Forwarder` to an upstream that has a vector for everything.

    `sent` are the inputs of each request. What it answers can be bent: `changed` alters the answer,
    `says` replaces it (None: not this one), `encoding` is what it gives whatever it is asked for,
    `order` puts the rows in another order, and while `gate` is there it waits for it.
    """

    def __init__(self, *, max_batch: int | None = None) -> None:
        self.sent: list[list[Any]] = []
        self.bodies: list[bytes] = []
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.encoding: str | None = None
        self.order: Callable[[list[Row]], Sequence[Row]] = list
        self.changed: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.says: Callable[[list[Any]], Said | UpstreamError | None] = lambda _: None
        self.headers: Headers = JSON
        self.answers: list[Said] = []
        self.under_way = 0
        self.most_at_once = 0
        self._max_batch = max_batch
        self.refusal: CircuitOpen | None = None

    @property
    def items(self) -> list[Any]:
        """All items that were ever asked for, in order."""
        return [item for items in self.sent for item in items]

    def resolve(self, model: str | None) -> Chain:
        return Chain(model or "", (Profile("main", "main"),))

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        assert isinstance(outgoing.body, bytes)
        request = orjson.loads(outgoing.body)
        items = list(split_input(request["input"]) or ())
        self.bodies.append(outgoing.body)
        self.sent.append(items)
        self.reached.set()
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            said = self.says(items)
            if isinstance(said, UpstreamError):
                raise said
        finally:
            self.under_way -= 1
        said = said or Said((self.answer(request, items),), headers=self.headers)
        self.answers.append(said)
        return Exchange(said, "main", "main")

    def answer(self, request: dict[str, Any], items: Sequence[Any]) -> bytes:
        """The body for these items."""
        encoding = self.encoding or request.get("encoding_format", "float")
        rows = [
            {"object": "embedding", "index": index, "embedding": _written(item, encoding)}
            for index, item in enumerate(items)
        ]
        tokens = sum(map(cost, items))
        answer = {
            "object": "list",
            "data": list(self.order(rows)),
            "model": "m-1",
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return orjson.dumps(self.changed(answer))

    def spared(self, chain: Chain) -> CircuitOpen | None:
        return self.refusal

    def account_headers(self, chain: Chain) -> tuple[bytes, ...]:
        return ()

    def uses_client_credentials(self, chain: Chain) -> bool:
        return True

    def max_batch(self, chain: Chain) -> int | None:
        return self._max_batch


def _written(item: Any, encoding: str) -> str | list[float]:
    vector = packed(item)
    return base64.b64encode(vector).decode() if encoding == "base64" else floats(vector)


class Worker:
    """What answers batches in one worker, over fakes."""

    def __init__(
        self,
        upstream: Embedder | None = None,
        store: FaultyStore | None = None,
        *,
        rule: Rule = RULE,
        limits: WriteLimits | None = None,
        coalescer: Coalescer | None = None,
        marks: MarkLog | None = None,
        max_refreshes: int = 16,
    ) -> None:
        self.upstream = upstream or Embedder()
        self._engine = engine = Engine(
            store,
            cast("ScriptedForwarder", self.upstream),
            rule=rule,
            limits=limits,
            coalescer=coalescer,
            marks=marks,
        )
        self.rules = RuleSet((rule,))
        self.store, self.clock, self.witness = engine.store, engine.clock, engine.witness
        self.generations, self.entries = engine.generations, engine.entries
        self.fetching = TaskGroup()
        self.fetches = Fetches(self.entries, self.fetching, self.witness, coalescer)
        self.refreshes = engine.refreshes
        self.batches = Batches(
            self.entries,
            self.fetches,
            self.upstream,
            self.clock,
            self.witness,
            "p:",
            self.refreshes,
            max_refreshes,
        )

    def plan(self, given: Any, *headers: tuple[bytes, bytes], **members: Any) -> tuple[Plan, Items]:
        """A request for these inputs, planned."""
        body = orjson.dumps({"model": "m", "input": given, **members})
        call = Call(
            endpoint=Endpoint.EMBEDDINGS,
            path="/embeddings",
            query="",
            headers=headers,
            body=body,
            identity=Identity(credential="c"),
            request_id="req_1",
        )
        plan = make_plan(
            call,
            self.upstream,
            self.rules,
            started=self.clock.monotonic(),
            generation=self.generations.current,
        )
        items = items_of(plan.derivation)
        assert items is not None
        return plan, items

    async def ask(self, given: Any, *headers: tuple[bytes, bytes], **members: Any) -> Answer:
        """The answer to a request for these inputs."""
        plan, items = self.plan(given, *headers, **members)
        return await self.batches.answer(plan, items, with_key=False)

    async def settled(self) -> None:
        """All that was to be written is written."""
        await self._engine.settled()

    async def stop(self) -> None:
        await self.fetching.cancel()
        await self._engine.stop()


def parsed(answer: Answer) -> dict[str, Any]:
    """The body of an answer that came whole."""
    assert isinstance(answer.body, bytes)
    told: dict[str, Any] = orjson.loads(answer.body)
    return told


def told_usage(worker: Worker) -> int:
    """The tokens that all outcomes say were billed."""
    outcomes = worker.witness.outcomes
    return sum(outcome.billed.total_tokens for outcome in outcomes if outcome.billed is not None)
