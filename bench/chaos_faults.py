"""What breaks in an hour of chaos, when, and for how long: each thing by itself, by chance."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench.chaos_rules import KEYS
from bench.chaos_upstream import ChaosUpstream
from bench.chaos_weather import (
    KEY_TROUBLES,
    REDIS,
    REDIS_TROUBLES,
    UPSTREAM_TROUBLES,
    WORKER,
    Trouble,
    Weather,
    Window,
)
from bench.restartable import Restartable

_SHARES = (0.3, 0.7, 1.0)
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds: how long each thing is well on average, and at least and at most in trouble."""

    upstream: float
    key: float
    redis: float
    worker: float
    shortest: float
    longest: float


class Faults:
    """Breaks and mends until `over`, and leaves everything mended."""

    def __init__(
        self,
        weather: Weather,
        upstreams: Sequence[ChaosUpstream],
        redis: Restartable,
        kill_worker: Callable[[], Awaitable[None]],
        pace: Pace,
        seed: int,
    ) -> None:
        self.over = asyncio.Event()
        self._weather = weather
        self._upstreams = upstreams
        self._redis = redis
        self._kill_worker = kill_worker
        self._pace = pace
        self._seed = seed

    async def run(self) -> None:
        """Return when everything is mended, after `over`."""
        async with asyncio.TaskGroup() as tasks:
            for upstream in self._upstreams:
                tasks.create_task(self._upstream(upstream))
                for key in KEYS[upstream.name]:
                    tasks.create_task(self._key(upstream, key))
            tasks.create_task(self._stop_redis())
            tasks.create_task(self._kill_workers())

    async def _upstream(self, upstream: ChaosUpstream) -> None:
        chance, name = self._chance(upstream.name), upstream.name
        while await self._passes(chance.expovariate(1 / self._pace.upstream)):
            trouble = chance.choice(UPSTREAM_TROUBLES)
            window = self._weather.begins(trouble, name, time.monotonic())
            if trouble is Trouble.REFUSE:
                await upstream.refuse(window)
            else:
                upstream.window, upstream.share = window, chance.choice(_SHARES)
            await self._passes(self._duration(chance))
            upstream.window = None
            if trouble is Trouble.REFUSE:
                await upstream.listen()
            await self._mended(window)

    async def _key(self, upstream: ChaosUpstream, key: str) -> None:
        chance = self._chance(key)
        while await self._passes(chance.expovariate(1 / self._pace.key)):
            window = self._weather.begins(chance.choice(KEY_TROUBLES), key, time.monotonic())
            upstream.keys[key] = window
            await self._passes(self._duration(chance))
            del upstream.keys[key]
            await self._mended(window)

    async def _stop_redis(self) -> None:
        chance = self._chance(REDIS)
        while await self._passes(chance.expovariate(1 / self._pace.redis)):
            window = self._weather.begins(chance.choice(REDIS_TROUBLES), REDIS, time.monotonic())
            if window.trouble is Trouble.FROZEN:
                os.kill(self._redis.pid, signal.SIGSTOP)
                await self._passes(self._duration(chance))
                os.kill(self._redis.pid, signal.SIGCONT)
            else:
                await self._redis.end(signal.SIGKILL)
                await self._passes(self._duration(chance))
                await self._redis.start()
            await self._mended(window)

    async def _kill_workers(self) -> None:
        chance = self._chance(WORKER)
        while await self._passes(chance.expovariate(1 / self._pace.worker)):
            window = self._weather.begins(Trouble.KILLED, WORKER, time.monotonic())
            await self._kill_worker()
            await self._mended(window)

    def _chance(self, of: str) -> random.Random:
        return random.Random(f"{self._seed}:{of}:faults")

    def _duration(self, chance: random.Random) -> float:
        return chance.uniform(self._pace.shortest, self._pace.longest)

    async def _passes(self, seconds: float) -> bool:
        """Wait; False, and at once, when it is over."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            return True
        return False

    async def _mended(self, window: Window) -> None:
        """It is mended; return when nobody can feel it any more, so that windows stay apart."""
        window.ended = time.monotonic()
        await passed(lambda: window.until)


async def passed(until: Callable[[], float]) -> None:
    """Return after that moment, which may be put off meanwhile."""
    left = until() - time.monotonic()
    while left > 0.0:
        await asyncio.sleep(min(left, _LOOK_SECONDS))
        left = until() - time.monotonic()
