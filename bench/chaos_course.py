"""The course of an hour of chaos: what is started, when it is calm again, and what is left then."""

import asyncio
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from bench.chaos_client import ChaosClient
from bench.chaos_faults import Faults, Pace, passed
from bench.chaos_judge import ChaosJudge
from bench.chaos_ledger import Ledger
from bench.chaos_load import ChaosLoad
from bench.chaos_rules import ADMIN_KEY, KEYS, WORKERS, settings
from bench.chaos_upstream import ChaosUpstream
from bench.chaos_vitals import Vitals
from bench.chaos_weather import Weather
from bench.machine import cpu_seconds
from bench.processes import free_port
from bench.restartable import proxy, redis
from bench.scrape import Scrape

CLIENTS = 50
_SETTLE_SECONDS = 20.0
# The supervisor waits for up to 10 seconds where a worker has died again and again.
_START_SECONDS = 60.0
# aiohttp looks every 15 seconds for connections that have been idle for so long.
IDLE_SECONDS = 33.0
_ASKED_AT_ONCE = 4 * WORKERS
_STORES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, by which chance, and whether in short."""

    seconds: float
    seed: int
    short: bool

    @property
    def pace(self) -> Pace:
        if self.short:
            return Pace(upstream=0.7, key=1.5, redis=1.0, worker=3.0, shortest=0.3, longest=0.8)
        return Pace(upstream=10.0, key=18.0, redis=40.0, worker=90.0, shortest=2.0, longest=8.0)

    @property
    def think_seconds(self) -> float:
        """Of a client between two requests, on average."""
        return 0.5 if self.short else 0.9

    @property
    def calm_seconds(self) -> float:
        """How long everything must succeed again in the end."""
        return 1.0 if self.short else min(60.0, self.seconds / 4)


@dataclass(slots=True)
class Rest:
    """What there is when nobody asks any more."""

    left: list[str] = field(default_factory=list)
    connections: dict[str, int] = field(default_factory=dict)
    idle_connections: dict[str, int] = field(default_factory=dict)


class Course:
    """One hour of chaos, from start to end; used once."""

    def __init__(self, plan: Plan, directory: Path) -> None:
        self.plan = plan
        self.weather = Weather()
        self.ledger = Ledger(self.weather)
        self.judge = ChaosJudge(self.weather, self.ledger)
        self.vitals = Vitals(self.weather)
        self.rest = Rest()
        self.requests = 0
        self.began = self.calm_from = self.ended = 0.0
        self.cpu: dict[str, float] = {}
        self.survivor = 0
        self.kills = 0
        self.exit_code: int | None = None
        self.stderr = ""
        self._upstreams = [ChaosUpstream(name, self.ledger, plan.seed) for name in KEYS]
        self._directory = directory
        self._redis = redis(directory)
        self._port = free_port()
        self._workers: list[int] = []
        self._over = False

    async def run(self) -> None:
        """Start everything, break it, let it calm down, and look at what is left."""
        server = None
        try:
            for upstream in self._upstreams:
                await upstream.start()
            await self._redis.start()
            given = settings(
                port=self._port,
                upstream_urls={upstream.name: upstream.url for upstream in self._upstreams},
                redis_url=f"{self._redis.url.replace('http', 'redis')}/0",
            )
            self._server = server = proxy("chaos", given, self._directory)
            await server.start()
            await self._until_all_serve()
            self.survivor = self._workers[0]
            await self._through_the_plan()
            await self._look_at_the_rest()
            self.exit_code = await server.end(signal.SIGTERM)
        finally:
            if server is not None:
                self.stderr = server.written
                server.kill_now()
            self._redis.kill_now()
            for upstream in self._upstreams:
                await upstream.stop()

    async def _until_all_serve(self, killed: int = 0) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while len(workers := _workers_of(self._server.pid, killed)) < WORKERS:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{len(workers)} of {WORKERS} workers serve")
            await asyncio.sleep(0.02)
        self._workers[:] = workers

    async def _through_the_plan(self) -> None:
        faults = Faults(
            self.weather,
            self._upstreams,
            self._redis,
            self._kill_worker,
            self.plan.pace,
            self.plan.seed,
        )
        self.began = time.monotonic()
        cpu = self._cpu_now()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.vitals.watch(self._workers))
            for number in range(CLIENTS):
                tasks.create_task(self._client(number))
            breaking = tasks.create_task(faults.run())
            await asyncio.sleep(self.plan.seconds)
            faults.over.set()
            await breaking
            await passed(lambda: self.weather.until)
            self.calm_from = time.monotonic()
            await asyncio.sleep(self.plan.calm_seconds)
            self.ended = time.monotonic()
            self._over = self.vitals.over = True
        now = self._cpu_now()
        self.cpu = {who: (now[who] - cpu[who]) / (self.ended - self.began) for who in cpu}

    async def _client(self, number: int) -> None:
        load = ChaosLoad(f"{self.plan.seed}:{number}")
        client = ChaosClient(f"http://127.0.0.1:{self._port}")
        try:
            while not self._over:
                await asyncio.sleep(load.pause(self.plan.think_seconds))
                result = await client.send(load.any())
                self.requests += 1
                if (complaint := self.judge.judge(result)) is not None:
                    told = [complaint.fault, *complaint.told(self.began)]
                    print(*told, sep="\n", file=sys.stderr, flush=True)
        finally:
            await client.close()

    async def _kill_worker(self) -> None:
        """Never the first one, so that one lives through it all."""
        victims = [pid for pid in self._workers if pid != self.survivor]
        os.kill(victims[0], signal.SIGKILL)
        self._workers.remove(victims[0])
        self.kills += 1
        await self._until_all_serve(killed=victims[0])

    def _cpu_now(self) -> dict[str, float]:
        """Of the worker that lives through it, and of this program."""
        return {"worker": cpu_seconds(self.survivor), "bench": cpu_seconds(os.getpid())}

    # ---- what is left ----

    async def _look_at_the_rest(self) -> None:
        deadline = time.monotonic() + _SETTLE_SECONDS
        async with aiohttp.ClientSession(f"http://127.0.0.1:{self._port}") as session:
            while True:
                left = await self._left(session)
                if not left or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.1)
            self.rest.left = left
            self.rest.connections = {each.name: each.connections for each in self._upstreams}
            if not self.plan.short:
                await asyncio.sleep(IDLE_SECONDS)
                now = {each.name: each.connections for each in self._upstreams}
                self.rest.idle_connections = now
        self.vitals.sample_all(self._workers)

    async def _left(self, session: aiohttp.ClientSession) -> list[str]:
        """What is under way or open that should not be, a line each."""
        async with session.get("/metrics") as response:
            scrape = Scrape.parse(await response.text())
        found = {
            "requests in flight": scrape.total("magic_proxy_in_flight"),
            "flights": scrape.total("magic_proxy_flights"),
            "refreshes": scrape.total("magic_proxy_refreshes_in_flight"),
            "slots in use": scrape.total("magic_proxy_upstream_slots_in_use"),
            "waiting in line": scrape.total("magic_proxy_upstream_waiting"),
            "entries to write": scrape.total("magic_proxy_write_queue_entries"),
            "upstream calls": float(self.ledger.under_way),
            "stores down": _STORES - scrape.total("magic_proxy_store_up"),
            "workers missing": WORKERS - scrape.total("magic_proxy_workers"),
        }
        for state in ("open", "half-open"):
            circuits = scrape.total("magic_proxy_upstream_circuit_state", state=state)
            found[f"circuits {state}"] = circuits
        left = [f"{what}: {count:.0f}" for what, count in found.items() if count]
        return left + await self._keys_left(session)

    async def _keys_left(self, session: aiohttp.ClientSession) -> list[str]:
        """Keys that are in use, or not available, in any worker."""
        asked = [_keys(session) for _ in range(_ASKED_AT_ONCE)]
        left: set[str] = set()
        for report in await asyncio.gather(*asked):
            for upstream, keys in report.items():
                for key in keys:
                    if key["in_flight"] or key["state"] != "available":
                        left.add(f"a key of {upstream}: {key['state']}, {key['in_flight']} in use")
        return sorted(left)


def _workers_of(supervisor: int, killed: int) -> list[int]:
    """Its children; what those start meanwhile may come and go."""
    born = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in born if int(pid) != killed]


async def _keys(session: aiohttp.ClientSession) -> dict[str, list[dict[str, Any]]]:
    """By upstream, its keys as one of the workers knows them."""
    async with session.get("/admin/keys", headers={"x-admin-key": ADMIN_KEY}) as response:
        report: dict[str, dict[str, list[dict[str, Any]]]] = orjson.loads(await response.read())
        return report["upstreams"]
