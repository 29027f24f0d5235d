"""The course of a soak: what is started, sent, broken and mended, and when."""

import asyncio
import functools
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.checked import Ask, Came, Result
from bench.machine import resident_bytes
from bench.processes import free_port
from bench.restartable import Restartable, proxy, redis
from bench.scrape import Scrape
from bench.soak_accounts import attempts
from bench.soak_client import SoakClient
from bench.soak_judge import Judge, Window
from bench.soak_load import STEADY, Load
from bench.soak_purges import Purges
from bench.soak_rules import SURVIVOR, VICTIM, settings
from bench.soak_upstream import MOST_INPUTS, PROXY_HEADER, SoakUpstream
from bench.stamped import chat_digest

# For an answer that failed in the window and is read a little later.
_TAIL_SECONDS = 0.5
_QUIET_SECONDS = 20.0
_ERRORS = frozenset({429, 500, 502, 503, 504})
_WARM_SHARE = 0.2
# Circuits look again after one second, then two, four, eight: Redis is down for less than that.
_CIRCUIT_SECONDS = 9.0
# From the first request of a crowd to the middle of its stream.
_IN_STREAM_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much, and what is broken."""

    seconds: float
    rate: float
    seed: int
    stops_redis: bool

    @property
    def fault_seconds(self) -> float:
        """How long the upstream misbehaves each time."""
        return min(4.0, self.seconds / 12)

    @property
    def kills(self) -> Sequence[tuple[float, float]]:
        """When a proxy is killed, as a share of the time; seconds after it began to lead a crowd.

        Once in the middle of a stream, and where there is time, once before its first event.
        """
        in_stream, before = (0.35, _IN_STREAM_SECONDS), (0.5, 0.2)
        return [in_stream, before] if self.stops_redis else [in_stream]

    @property
    def faults_every_seconds(self) -> float:
        return min(60.0, self.seconds / 2)


@dataclass(frozen=True, slots=True)
class Crowd:
    """Equal requests at once, and the upstream calls that came of them."""

    size: int
    calls: int
    most: int
    model: str
    began: float


@dataclass(slots=True)
class Counted:
    """How many calls there were between upstream and proxy, by the one and by the other."""

    proxy: str
    upstream: int
    proxys: int


@dataclass(slots=True)
class Seen:
    """All that a soak has seen."""

    results: list[Result] = field(default_factory=list)
    crowds: list[Crowd] = field(default_factory=list)
    counted: list[Counted] = field(default_factory=list)
    resident: dict[str, int] = field(default_factory=dict)
    exit_codes: dict[str, int] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    uncounted_calls: int = 0
    final: dict[str, Scrape] = field(default_factory=dict)


class Course:
    """One soak, from start to end; used once."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.seen = Seen()
        self.upstream = SoakUpstream()
        self.judge = Judge(self.upstream.calls)
        self.load = Load(plan.seed)
        self._directory = directory
        self._redis = redis(directory)
        self._proxies: dict[str, Restartable] = {}
        self._up: list[str] = []
        self._flows = asyncio.Event()
        self._over = False
        self._began = 0.0
        self._client = SoakClient()
        self.purges = Purges(self._client, self.upstream, self.judge, self.load)
        # Of each proxy: how many calls the upstream had of it before its present start.
        self._before: dict[str, int] = {SURVIVOR: 0, VICTIM: 0}

    async def run(self) -> None:
        """Start everything, let it run, stop it, and count."""
        try:
            await self._start()
            await self._through_the_plan()
            await self._settle()
            for name in self._up:
                await self._count(name)
                self.seen.final[name] = await self._scrape(name)
            self.seen.resident["end"] = resident_bytes(self._proxies[SURVIVOR].pid)
            for name in self._up:
                self.seen.exit_codes[name] = await self._proxies[name].end(signal.SIGTERM)
        finally:
            await self._client.close()
            for server in (*self._proxies.values(), self._redis):
                server.kill_now()
            await self.upstream.stop()

    async def _start(self) -> None:
        await self.upstream.start()
        await self._redis.start()
        for name in (SURVIVOR, VICTIM):
            given = settings(
                proxy=name,
                port=free_port(),
                upstream_url=self.upstream.url,
                redis_url=f"{self._redis.url.replace('http', 'redis')}/0",
                proxy_header=PROXY_HEADER,
                max_batch=MOST_INPUTS,
            )
            self._proxies[name] = proxy(name, given, self._directory)
            await self._proxies[name].start()
            self._up.append(name)
        await self._client.open({name: server.url for name, server in self._proxies.items()})
        self._flows.set()
        self._began = time.monotonic()

    async def _through_the_plan(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._arrivals(tasks))
            tasks.create_task(self._crowds())
            tasks.create_task(self.purges.run(self._up, self._flows))
            tasks.create_task(self._upstream_faults())
            tasks.create_task(self._at(_WARM_SHARE, self._note_memory))
            tasks.create_task(self._disasters())
            await self._until(self.plan.seconds)
            self._over = True
            self.purges.over = True

    # ---- what is sent ----

    async def _arrivals(self, tasks: asyncio.TaskGroup) -> None:
        while not self._over:
            await asyncio.sleep(self.load.pause(self.plan.rate))
            await self._flows.wait()
            tasks.create_task(self._one(self.load.any(self.load.one_of(self._up))))

    async def _crowds(self) -> None:
        while not self._over:
            await self._flows.wait()
            await self._crowd(list(self.load.crowd(self._up)))
            await asyncio.sleep(self.load.between(0.5, 2.0))

    async def _crowd(self, asks: Sequence[Ask], *, ahead: float = 0.0) -> None:
        """All at once, but for the first one, which has a lead of `ahead` seconds."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._one(asks[0]))
            await asyncio.sleep(ahead)
            for ask in asks[1:]:
                tasks.create_task(self._one(ask))
        most = 1
        if self.judge.disturbed(began, time.monotonic()) or self.purges.touched(asks[0], began):
            most = 2 * len(asks)  # each tried twice
        calls = self.upstream.by_digest[chat_digest(asks[0].body)]
        self.seen.crowds.append(Crowd(len(asks), calls, most, asks[0].model, began - self._began))

    async def _one(self, ask: Ask) -> Result:
        result = await self._client.send(ask)
        self.judge.judge(result)
        self.purges.learn(result)
        self.seen.results.append(result)
        return result

    # ---- what is broken ----

    async def _upstream_faults(self) -> None:
        """Slow, failing, breaking streams off, in turn, again and again."""
        mood, pause = self.upstream.mood, self.plan.faults_every_seconds / 4
        while True:
            for status in (500, 503):
                if not await self._sleep(pause):
                    return
                mood.slower = 6.0
                await asyncio.sleep(self.plan.fault_seconds)
                mood.slower = 1.0
                if not await self._sleep(pause):
                    return
                async with self._window("upstream errors", {Came.STATUS}, _ERRORS):
                    mood.status = status
                    await asyncio.sleep(self.plan.fault_seconds)
                    mood.status = None
                if not await self._sleep(pause):
                    return
                broken = {Came.BROKEN, Came.STATUS, Came.NO_ANSWER}
                async with self._window("streams break off", broken, frozenset({502})):
                    mood.breaks_streams = True
                    await asyncio.sleep(self.plan.fault_seconds)
                    mood.breaks_streams = False

    async def _disasters(self) -> None:
        """One after the other, none before its time."""
        for share, seconds in self.plan.kills:
            await self._at(share, functools.partial(self._kill_one, seconds))
        if self.plan.stops_redis:
            await self._at(0.65, self._stop_redis)

    async def _kill_one(self, after: float) -> None:
        """Kill a proxy while it leads a crowd; it comes back on the same port."""
        await self._quietly(lambda: self._count(VICTIM))
        counted = self._calls_of(VICTIM)
        # The upstream says the same again to a steady crowd, also after a purge.
        self.purges.pauses = True
        await asyncio.sleep(min(2.0, self.plan.seconds / 20))  # what was purged is known everywhere
        leading = asyncio.gather(self._steady_crowd())
        await asyncio.sleep(after)
        # Who follows the killed one in the middle of a stream may be cut off too, where a second
        # answer is another one; those of the steady crowd are not.
        async with (
            self._window(
                "proxy killed", {Came.NO_ANSWER, Came.BROKEN}, proxy=VICTIM, loses_leaders=True
            ),
            self._window("its followers", {Came.BROKEN}, proxy=SURVIVOR, spares=STEADY),
        ):
            self._up.remove(VICTIM)
            await self._proxies[VICTIM].end(signal.SIGKILL)
            self._before[VICTIM] = self._calls_of(VICTIM)
            self.seen.uncounted_calls += self._before[VICTIM] - counted
            await leading
            self.purges.pauses = False
            await asyncio.sleep(min(3.0, self.plan.seconds / 20))
            await self._proxies[VICTIM].start()
        self._up.append(VICTIM)

    async def _stop_redis(self) -> None:
        """Redis goes in order, while a stream is followed over it, and comes back with nothing."""
        self.purges.pauses = True
        await asyncio.sleep(1.5)  # what was purged is known everywhere
        following = asyncio.gather(self._steady_crowd())
        await asyncio.sleep(_IN_STREAM_SECONDS)
        async with (
            self._window("Redis stopped", set(), loses_leaders=True),
            self._window("who followed over Redis", {Came.BROKEN}, spares=STEADY) as lost,
        ):
            self.purges.pauses, self.purges.redis_down = False, True
            await self._redis.end(signal.SIGTERM)
            await following
            lost.ended = time.monotonic() + _TAIL_SECONDS
            await asyncio.sleep(min(8.0, self.plan.seconds / 10))
            await self._redis.start()
            await asyncio.sleep(_CIRCUIT_SECONDS)
        self.purges.redis_back()

    async def _steady_crowd(self) -> None:
        """The one that is killed leads it, and both have followers."""
        crowd = list(self.load.crowd([VICTIM, SURVIVOR], steady=True))
        await self._crowd(crowd, ahead=0.06)

    @asynccontextmanager
    async def _window(
        self,
        name: str,
        excuses: set[Came],
        statuses: frozenset[int] = frozenset(),
        *,
        proxy: str | None = None,
        spares: str = "",
        loses_leaders: bool = False,
    ) -> AsyncIterator[Window]:
        window = Window(
            name, time.monotonic(), frozenset(excuses), statuses, proxy, spares, loses_leaders
        )
        self.judge.windows.append(window)
        try:
            yield window
        finally:
            window.ended = min(window.ended, time.monotonic() + _TAIL_SECONDS)

    # ---- what is counted ----

    async def _note_memory(self) -> None:
        self.seen.resident["start"] = resident_bytes(self._proxies[SURVIVOR].pid)

    async def _count(self, name: str) -> None:
        scrape = await self._scrape(name)
        came = self._calls_of(name) - self._before[name]
        self.seen.counted.append(Counted(name, came, attempts(scrape)))

    async def _scrape(self, name: str) -> Scrape:
        return Scrape.parse(await self._client.get(name, "/metrics"))

    def _calls_of(self, name: str) -> int:
        return sum(call.proxy == name for call in self.upstream.calls)

    async def _quietly(self, look: Callable[[], Awaitable[None]]) -> None:
        """Stop sending, wait until nothing is under way, look, and go on."""
        self._flows.clear()
        await self._settle()
        await look()
        self._flows.set()

    async def _settle(self) -> None:
        deadline = time.monotonic() + _QUIET_SECONDS
        while time.monotonic() < deadline:
            if self._client.under_way == self.upstream.under_way == 0 and await self._idle():
                return
            await asyncio.sleep(0.05)
        self.seen.troubles.append(
            f"not quiet after {_QUIET_SECONDS} s: {self._client.under_way} requests and"
            f" {self.upstream.under_way} upstream calls under way"
        )

    async def _idle(self) -> bool:
        """Whether no proxy has anything to do but to answer this."""
        for name in self._up:
            scrape = await self._scrape(name)
            if scrape.total("magic_proxy_in_flight") > 1:
                return False
            if scrape.total("magic_proxy_write_queue_entries") > 0:
                return False
        return True

    # ---- time ----

    async def _until(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, self._began + seconds - time.monotonic()))

    async def _sleep(self, seconds: float) -> bool:
        """False where the time of the whole soak is over, or would be after a fault."""
        await asyncio.sleep(seconds)
        left = self._began + self.plan.seconds - time.monotonic()
        return left > self.plan.fault_seconds

    async def _at(self, share: float, do: Callable[[], Awaitable[None]]) -> None:
        await self._until(share * self.plan.seconds)
        await do()
