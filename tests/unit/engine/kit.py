"""Fakes for the engine: a store that fails in every way, an upstream that says what it is told."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import orjson

from proxy.access.base import Identity
from proxy.coalesce.base import Coalescer
from proxy.core.entry import Usage
from proxy.core.matching import RuleSet
from proxy.core.outcome import Outcome
from proxy.core.paths import FieldPath
from proxy.core.rules import Rule
from proxy.core.trailers import Trailers
from proxy.core.variants import Turns
from proxy.core.wire import Endpoint, Headers
from proxy.engine.base import Answer, Call
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.entries import Entries
from proxy.engine.flights import Flights
from proxy.engine.generations import Generations
from proxy.engine.item_fetches import Fetches
from proxy.engine.plan import Plan
from proxy.engine.refresh import Refreshes
from proxy.engine.service import CachePolicy, CacheService, Lasting
from proxy.engine.write_behind import WriteBehind, WriteLimits
from proxy.errors import CircuitOpen, StoreUnavailable, UpstreamError
from proxy.stores.base import Put, StoreStats
from proxy.stores.marks import MarkLog
from proxy.stores.marks_local import LocalMarkLog
from proxy.tasks import TaskGroup
from proxy.upstream.base import Chain, Exchange, Outgoing, Profile
from tests.fakes import FakeClock

T = TypeVar("T")

COMPLETION = (
    b'{"id":"c","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"hi"}}],'
    b'"usage":{"prompt_tokens":2,"completion_tokens":1,"total_tokens":3}}'
)
RULE = Rule(
    name="all", model_names=("*",), include_in_key=(FieldPath.parse("*"),), ttl_seconds=60.0
)


class FaultyStore:
    """A `Store` in a dictionary that can be down, stall, or hold rubbish.

    `down` and `stalled` name operations (`get`, `put`, `delete`); those stalled wait for `gate`.
    `log` lists what was asked of it. `instant` answers without waiting, as a memory tier does.
    """

    def __init__(self, *, instant: bool = False) -> None:
        self.values: dict[str, bytes] = {}
        self.log: list[str] = []
        self.reached = {name: asyncio.Event() for name in ("get", "put", "delete")}
        self.down: set[str] = set()
        self.instant = instant
        self.stalled: set[str] = set()
        self.gate = asyncio.Event()
        self.put_error: Exception | None = None

    @property
    def name(self) -> str:
        return "faulty"

    @property
    def available(self) -> bool:
        return not self.down

    async def open(self) -> None:
        return

    def get_now(self, key: str) -> bytes | None:
        self.log.append("get_now")
        return self.values.get(key) if self.instant else None

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        await self._met("get")
        return [self.values.get(key) for key in keys]

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        await self._met("get")
        return [self.values.get(key, b"")[:length] or None for key in keys]

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self.get_many(keys)

    async def put_many(self, puts: Sequence[Put]) -> None:
        await self._met("put")
        if self.put_error is not None:
            raise self.put_error
        self.values.update({put.key: put.value for put in puts})

    async def delete_many(self, keys: Sequence[str]) -> int:
        await self._met("delete")
        return sum(self.values.pop(key, None) is not None for key in keys)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        for key in list(self.values):
            if key.startswith(prefix):
                yield key

    async def stats(self) -> StoreStats:
        return StoreStats(entries=len(self.values))

    async def close(self) -> None:
        return

    async def _met(self, operation: str) -> None:
        self.log.append(operation)
        self.reached[operation].set()
        if operation in self.stalled:
            await self.gate.wait()
        if operation in self.down:
            raise StoreUnavailable(f"no {operation}")


@dataclass(slots=True, eq=False)
class Said:
    """One answer of the upstream: its chunks in order; an error among them is raised."""

    chunks: Sequence[bytes | Exception] = (COMPLETION,)
    status: int = 200
    headers: Headers = ((b"Content-Type", b"application/json"),)
    closed: int = 0
    trailers: Trailers | None = None

    async def aiter_raw(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            await asyncio.sleep(0)
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    async def aclose(self) -> None:
        self.closed += 1


class ScriptedForwarder:
    """A `Forwarder` that gives the answers it was given, the last one again and again."""

    def __init__(self, *answers: Said | UpstreamError) -> None:
        self._answers = list(answers or (Said(),))
        self.sent: list[Outgoing] = []
        self.fallback = False
        self.refusal: CircuitOpen | None = None

    def resolve(self, model: str | None) -> Chain:
        return Chain(model or "", (Profile("main", "main"),))

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        self.sent.append(outgoing)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, UpstreamError):
            raise answer
        return Exchange(answer, "main", "main", fallback=self.fallback)

    def spared(self, chain: Chain) -> CircuitOpen | None:
        return self.refusal

    def account_headers(self, chain: Chain) -> tuple[bytes, ...]:
        return (b"openai-organization",)

    def uses_client_credentials(self, chain: Chain) -> bool:
        return True

    def max_batch(self, chain: Chain) -> int | None:
        return None


@dataclass(slots=True)
class Witness:
    """An observer that remembers."""

    outcomes: list[Outcome] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unattended: list[tuple[str, str]] = field(default_factory=list)
    dropped: int = 0
    unreadable: int = 0

    def told(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def told_again(self, outcome: Outcome, request_id: str) -> None:
        self.outcomes.append(replace(outcome, request_id=request_id))

    def store_failed(self, operation: str) -> None:
        self.failed.append(operation)

    def finished_unattended(self, purpose: str, end: str, model: str, usage: Usage | None) -> None:
        self.unattended.append((purpose, end))

    def write_dropped(self) -> None:
        self.dropped += 1

    def entry_unreadable(self) -> None:
        self.unreadable += 1


class Engine:
    """A service over fakes."""

    def __init__(
        self,
        store: FaultyStore | None = None,
        forwarder: ScriptedForwarder | None = None,
        *,
        rule: Rule = RULE,
        limits: WriteLimits | None = None,
        coalescer: Coalescer | None = None,
        marks: MarkLog | None = None,
        ready_bytes: int = 0,
    ) -> None:
        self.store = store or FaultyStore()
        self.forwarder = forwarder or ScriptedForwarder()
        self.clock = FakeClock()
        self.witness = Witness()
        self.tasks = TaskGroup()
        self.flying = TaskGroup()
        self.dictionaries = Dictionaries(
            self.store, self.clock, self.tasks, self.witness, writing=False
        )
        self.writes = WriteBehind(
            self.store, self.tasks, limits or WriteLimits(), self.witness, self.dictionaries
        )
        self.generations = Generations(
            marks or LocalMarkLog(self.clock), self.clock, self.tasks, self.witness
        )
        self.entries = Entries(
            self.store,
            self.writes,
            self.generations,
            self.clock,
            self.tasks,
            self.witness,
            self.dictionaries,
            ready_bytes=ready_bytes,
        )
        self.flights = Flights(
            self.entries, self.generations, self.clock, self.flying, self.witness, coalescer
        )
        self.refreshes = Refreshes(self.flights, self.clock)
        self.fetches = Fetches(self.entries, self.flying, self.witness, coalescer)
        lasting = Lasting(
            self.entries, self.generations, self.flights, self.fetches, self.refreshes, Turns()
        )
        self.service = CacheService(
            CachePolicy(RuleSet((rule,))), lasting, self.forwarder, self.clock, self.witness
        )
        self.writes.start()

    async def ask(self, content: str = "hi", /, **members: object) -> Answer:
        """One chat request, to its answer; a streamed body is not read."""
        body = {"model": "m", "messages": [{"role": "user", "content": content}], **members}
        begun = await self.service.begin(call(orjson.dumps(body)))
        return await self.service.finish(begun) if isinstance(begun, Plan) else begun

    async def ask_with(self, *headers: tuple[bytes, bytes], **members: object) -> Answer:
        """The same with request headers."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **members}
        begun = await self.service.begin(call(orjson.dumps(body), *headers))
        return await self.service.finish(begun) if isinstance(begun, Plan) else begun

    async def settled(self) -> None:
        """All that was to be written is written."""
        assert await self.writes.drain(5)

    async def stop(self) -> None:
        await self.flying.cancel()
        await self.tasks.cancel()


def call(body: bytes, *headers: tuple[bytes, bytes]) -> Call:
    """A call to the chat endpoint from one and the same client."""
    return Call(
        endpoint=Endpoint.CHAT,
        path="/chat/completions",
        query="",
        headers=headers,
        body=body,
        identity=Identity(credential="c"),
        request_id="req_1",
    )


def told(answer: Answer, name: bytes) -> str:
    """The value of one header of an answer."""
    return dict(answer.headers)[name].decode()


def going(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """The work, under way: a client that does this."""
    return asyncio.get_running_loop().create_task(work)
