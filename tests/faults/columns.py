"""Runs all cells of one kind and setup at once, and tells what was seen of each."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile

import orjson
from uvicorn.loops.auto import auto_loop_factory

from proxy.upstream.pooled_key import KeyState
from tests.faults.asking import Got, ask
from tests.faults.fronting import Fronting, LabClock, serving
from tests.faults.kinds import request_of
from tests.faults.lab import Call
from tests.faults.settings import TTL_SECONDS, Ground, settings
from tests.faults.table import Cell, Expected, Setup
from tests.waiting import until

_STALE_SECONDS = TTL_SECONDS + 1
_AT_ONCE = 8


@dataclass(slots=True, eq=False)
class Seen:
    """One cell: what came of each of its requests, and how things stood after the fault."""

    cell: Cell
    proxy: Fronting
    clock: LabClock
    answers: dict[str, Got] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    key: str = ""
    circuit: str = ""
    leaks: list[str] = field(default_factory=list)

    @property
    def told(self) -> Expected:
        """The same in the words of the table."""
        return Expected(
            client=self._word("fault"),
            x_cache=self.answers["fault"]["x-cache"] or "-",
            calls=" ".join(self._caller(call) for call in self.calls["fault"]),
            key=self.key,
            circuit=self.circuit,
            then=f"{self._word('then')} {self.answers['then']['x-cache'] or '-'}",
        )

    def _caller(self, call: Call) -> str:
        """`a2` for the second key of `a`."""
        letter = call.upstream[-1]
        return f"{letter}{call.credential[-1] if call.credential[-2] == letter else 1}"

    def _word(self, step: str) -> str:
        got, calls = self.answers[step], self.calls[step]
        earlier = takewhile(lambda each: each != step, self.calls)
        old = {call.wire.body for each in earlier for call in self.calls[each]}
        wires = [call.wire for call in calls]
        if not got.whole:
            assert wires, "what breaks off comes from an upstream"
            assert wires[-1].body.startswith(got.body), (wires[-1].body, got.body)
            return "broken off"
        if wires and got.status == wires[-1].status and got.body == wires[-1].body:
            return "good" if wires[-1].is_good else "as told"
        if got.status == 200 and got.body in old:
            return "old"
        return f"{got.status} {_code(got.body)}"


class Column:
    """The cells of one kind and setup, with the proxies before them."""

    def __init__(self, cells: Sequence[Cell], ground: Ground) -> None:
        self._ground = ground
        self._proxies: list[Fronting] = []
        self.seen: dict[Cell, Seen] = {}
        # What passes through goes to the default upstream, of which a proxy has one.
        apart = not cells[0].kind.is_cached
        for group in [[cell] for cell in cells] if apart else [cells]:
            clock = LabClock()
            proxy = Fronting(settings(group, ground), clock)
            self._proxies.append(proxy)
            self.seen |= {cell: Seen(cell, proxy, clock) for cell in group}
        self._setup, self._kind = cells[0].setup, cells[0].kind

    def run(self) -> dict[Cell, Seen]:
        """Everything that happens, once: clients and proxies share a loop, in its own thread."""

        def run() -> None:
            with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
                runner.run(self._run())

        with ThreadPoolExecutor(1) as thread:
            thread.submit(run).result()
        return self.seen

    async def _run(self) -> None:
        async with serving(self._proxies):
            before = asyncio.all_tasks()
            await self._happen()
            with suppress(AssertionError):  # told with the cells, of which one is to blame
                await until(lambda: asyncio.all_tasks() <= before)
            tasks = [f"the task {task.get_name()}" for task in asyncio.all_tasks() - before]
            for seen in self.seen.values():
                seen.leaks = [*_keys_in_use(seen), *tasks]

    async def _happen(self) -> None:
        if self._setup is Setup.STALE:
            clocks = {seen.clock for seen in self.seen.values()}
            for clock in clocks:
                clock.advance(-_STALE_SECONDS)
            await self._all("before")
            for clock in clocks:
                clock.advance(_STALE_SECONDS)
        for cell in self.seen:
            self._ground.worsen(cell)
        await self._all("fault")
        for seen in self.seen.values():
            seen.key, seen.circuit = _standing(seen)
        await self._all("then")

    async def _all(self, step: str) -> None:
        """One request of each cell, at once; returns when nothing is under way any more."""
        calls = self._ground.lab.calls
        counts = {cell: len(calls[str(cell)]) for cell in self.seen}

        async def one(seen: Seen) -> None:
            asked = request_of(seen.cell.kind, str(seen.cell))
            seen.answers[step] = await ask(seen.proxy.url, asked, f"sk-{seen.cell}")

        # Those whose time is short get away one by one, before the crowd.
        loop, called = asyncio.get_running_loop(), asyncio.Event()
        self._ground.lab.on_call = partial(loop.call_soon_threadsafe, called.set)
        asking = []
        for seen in [seen for cell, seen in self.seen.items() if cell.fault.timeouts]:
            called.clear()
            asking.append(loop.create_task(one(seen)))
            if seen.cell.fault.is_heard:
                heard = loop.create_task(called.wait())
                await asyncio.wait({asking[-1], heard}, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
        # Of the crowd only some at once, or the loop would look at the time too late.
        places = asyncio.Semaphore(_AT_ONCE)

        async def in_turn(seen: Seen) -> None:
            async with places:
                await one(seen)

        others = [seen for cell, seen in self.seen.items() if not cell.fault.timeouts]
        await asyncio.gather(*asking, *map(in_turn, others))
        await until(lambda: not self._ground.lab.under_way)
        self._ground.lab.on_call = lambda: None
        for cell, seen in self.seen.items():
            seen.calls[step] = calls[str(cell)][counts[cell] :]


def _code(body: bytes) -> str:
    """Of the proxy's own error; else the body, which nobody has sent so."""
    try:
        error = orjson.loads(body)["error"]
    except (ValueError, TypeError, KeyError):
        return f"whole: {body[:80]!r}"
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["code"])


def _standing(seen: Seen) -> tuple[str, str]:
    """How the first key of `a`, and its circuit, stand: what no client can see."""
    forwarder = seen.proxy.app.runtime._forwarder
    assert forwarder is not None
    upstream = forwarder._upstreams[f"{seen.cell}-a"]
    now = upstream.clock.monotonic()
    calls, failures = upstream.guard._circuit._calls.totals(now)
    circuit = f"{failures} of {calls}"
    if upstream.pool is None:
        return "-", circuit
    status = upstream.pool.states(now)[0]
    if status.state is KeyState.AVAILABLE:
        return "available", circuit
    assert status.since_seconds is not None
    rests = round(status.seconds + status.since_seconds, 3)
    return f"{status.state.value} {rests:g}", circuit


def _keys_in_use(seen: Seen) -> list[str]:
    """Though nothing is under way any more."""
    forwarder = seen.proxy.app.runtime._forwarder
    assert forwarder is not None
    pools = [pool for name, pool in forwarder.pools.items() if name[:-2] == str(seen.cell)]
    keys = [key for pool in pools for key in pool.states(seen.clock.monotonic())]
    return [f"the key {key.fingerprint}" for key in keys if key.in_flight]
