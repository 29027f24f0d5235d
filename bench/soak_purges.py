"""The purges of the soak: each raises the upstream's version first, so that what is older shows."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from typing import Any

import aiohttp

from bench.soak_client import Ask, SoakClient
from bench.soak_judge import Floor, Judge, Target, targets_of
from bench.soak_load import CHAT_MODELS, EMBEDDERS, PROJECTS, TOPICS, Load
from bench.soak_rules import ADMIN_KEY, PURGE_POLL_SECONDS, SURVIVOR, VICTIM
from bench.soak_upstream import SoakUpstream

PATH = "/admin/purge"
EVERY_SECONDS = (0.3, 2.0)
# How much later a purge holds at the other proxy.
SPREAD_SECONDS = 1.0
_SOFT_SHARE = 0.3
_DRY_SHARE = 0.1


@dataclass(slots=True)
class Sent:
    """One purge, and how it was answered; times are monotonic seconds."""

    target: Target
    soft: bool
    dry: bool
    began: float
    seconds: float = inf
    status: int = 0


@dataclass(slots=True)
class Purges:
    """Sends purges to one proxy or the other, and tells the judge from when on they hold."""

    client: SoakClient
    upstream: SoakUpstream
    judge: Judge
    load: Load
    over: bool = False
    pauses: bool = False
    redis_down: bool = False
    sent: list[Sent] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    # Purges that only one proxy could hear of, until there is a Redis again.
    _waiting: list[Floor] = field(default_factory=list)

    def touched(self, ask: Ask, began: float) -> bool:
        """Whether a purge of what is asked was under way after `began`."""
        targets = targets_of(ask)
        return any(
            sent.target in targets and not sent.dry and sent.began + sent.seconds >= began
            for sent in self.sent[-20:]
        )

    async def run(self, proxies: list[str], flows: asyncio.Event) -> None:
        """Purge this and that, until it is over; `proxies` are those that are up."""
        while not self.over:
            await asyncio.sleep(self.load.between(*EVERY_SECONDS))
            await flows.wait()
            if not self.pauses:
                await self._one(self.load.one_of(proxies))

    def redis_back(self) -> None:
        """From some time from now on, all know of the purges that were made without Redis."""
        self.redis_down = False
        since = time.monotonic() + PURGE_POLL_SECONDS + SPREAD_SECONDS
        waiting, self._waiting = self._waiting, []
        for floor in waiting:
            self.judge.purged(Floor(floor.target, floor.version, since, floor.proxy, floor.hard))

    async def _one(self, proxy: str) -> None:
        kind, value = target = self._target()
        chance = self.load.between(0.0, 1.0)
        dry, soft = chance > 1 - _DRY_SHARE, chance < _SOFT_SHARE
        body: dict[str, Any] = {"all": True} if kind == "all" else {kind: value}
        if soft:
            body["soft"] = True
        if dry:
            body["dry_run"] = True
        self.upstream.version += 1
        version, began = self.upstream.version, time.monotonic()
        sent = Sent(target, soft=soft, dry=dry, began=began)
        self.sent.append(sent)
        try:
            status, answer = await self.client.post(proxy, PATH, body, {"x-admin-key": ADMIN_KEY})
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            status, answer = 0, type(error).__name__.encode()
        ended = time.monotonic()
        sent.seconds, sent.status = ended - began, status
        if status != 200:
            if not self._excused(proxy, began, ended, status):
                self.refused[f"{status} {answer[:120].decode(errors='replace')}"] += 1
            return
        if dry:
            return
        for each in (SURVIVOR, VICTIM):
            floor = Floor(target, version, ended, each, hard=not soft)
            if each == proxy:
                self.judge.purged(floor)
            elif self.redis_down:
                self._waiting.append(floor)
            else:
                late = Floor(target, version, ended + SPREAD_SECONDS, each, hard=not soft)
                self.judge.purged(late)

    def _target(self) -> Target:
        kind = self.load.one_of(["tag"] * 8 + ["model"] * 3 + ["rule", "endpoint", "all"])
        match kind:
            case "tag":
                topics = list(TOPICS)
                return kind, self.load.one_of([f"project:{name}" for name in PROJECTS] + topics)
            case "model" | "rule":
                return kind, self.load.one_of([*CHAT_MODELS, *EMBEDDERS])
            case "endpoint":
                return kind, self.load.one_of(["chat", "embeddings"])
            case _:
                return kind, ""

    def _excused(self, proxy: str, began: float, ended: float, status: int) -> bool:
        """A purge may fail while its proxy is being killed, and be refused while Redis is down."""
        gone = any(
            window.proxy == proxy and window.overlaps(began, ended) for window in self.judge.windows
        )
        return gone or (self.redis_down and status == 503)
