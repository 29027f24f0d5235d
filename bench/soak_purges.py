"""The purges of the soak: each raises the upstream's version first, so that what is older shows."""

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from math import inf

import aiohttp

from bench.checked import Ask, Result
from bench.soak_client import SoakClient
from bench.soak_judge import Floor, Judge, targets_of
from bench.soak_load import Load
from bench.soak_orders import Order, order
from bench.soak_rules import ADMIN_HEADER, ADMIN_KEY, PURGE_POLL_SECONDS, SURVIVOR, VICTIM
from bench.soak_upstream import SoakUpstream
from bench.stamped import chat_digest

EVERY_SECONDS = (0.3, 2.0)
# How much later a purge holds at the other proxy.
SPREAD_SECONDS = 1.0
# What was stored about as long ago as a purge by age says may be on either side of it.
_AGE_SLACK_SECONDS = 1.0
_MOST_KEYS = 200
_KEY = re.compile(r'; key="([0-9a-f]{64})"')


@dataclass(slots=True)
class Sent:
    """One purge, and how it was answered; times are monotonic seconds."""

    order: Order
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
    # The digests of keys, by those of the questions that they are for.
    _keys: dict[str, str] = field(default_factory=dict)

    def touched(self, ask: Ask, began: float) -> bool:
        """Whether a purge of what is asked was under way after `began`."""
        targets = targets_of(ask)
        return any(
            sent.order.target in targets
            and not sent.order.dry
            and sent.began + sent.seconds >= began
            for sent in self.sent[-20:]
        )

    def learn(self, result: Result) -> None:
        """Keep the key that an admin is told of, to purge by it."""
        found = _KEY.search(result.cache_status)
        if found is not None and result.ask.is_chat and len(self._keys) < _MOST_KEYS:
            self._keys[chat_digest(result.ask.body)] = found[1]

    async def run(self, proxies: list[str], flows: asyncio.Event) -> None:
        """Purge this and that, until it is over; `proxies` are those that are up."""
        while not self.over:
            await asyncio.sleep(self.load.between(*EVERY_SECONDS))
            await flows.wait()
            if not self.pauses:
                await self._one(self.load.one_of(proxies), order(self.load, self._keys))

    def redis_back(self) -> None:
        """From some time from now on, all know of the purges that were made without Redis."""
        self.redis_down = False
        since = time.monotonic() + PURGE_POLL_SECONDS + SPREAD_SECONDS
        waiting, self._waiting = self._waiting, []
        for floor in waiting:
            self.judge.purged(replace(floor, since=since))

    async def _one(self, proxy: str, what: Order) -> None:
        self.upstream.version += 1
        version, sent = self.upstream.version, Sent(what, time.monotonic())
        self.sent.append(sent)
        try:
            status, answer = await self.client.ask(
                what.method, proxy, what.path, what.body, {ADMIN_HEADER: ADMIN_KEY}
            )
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            status, answer = 0, type(error).__name__.encode()
        ended = time.monotonic()
        sent.seconds, sent.status = ended - sent.began, status
        # Without Redis a purge is in force where it was sent, and the answer says that it is so.
        alone = self.redis_down and status == 503 and not what.dry
        if status != 200 and not alone:
            if not self._excused(proxy, sent.began, ended, status):
                self.refused[f"{status} {answer[:120].decode(errors='replace')}"] += 1
        elif not what.dry:
            self._holds(what, version, proxy, sent.began, ended)

    def _holds(self, what: Order, version: int, proxy: str, began: float, ended: float) -> None:
        before = inf
        if what.older_than is not None:
            before = began - what.older_than - _AGE_SLACK_SECONDS
        for each in (SURVIVOR, VICTIM):
            since = ended if each == proxy else ended + SPREAD_SECONDS
            floor = Floor(what.target, version, since, each, not what.soft, before)
            if self.redis_down and each != proxy:
                self._waiting.append(floor)
            else:
                self.judge.purged(floor)

    def _excused(self, proxy: str, began: float, ended: float, status: int) -> bool:
        """A purge may fail while its proxy is being killed; without Redis, nobody can count."""
        gone = any(
            window.proxy == proxy and window.overlaps(began, ended) for window in self.judge.windows
        )
        return gone or (self.redis_down and status == 503)
