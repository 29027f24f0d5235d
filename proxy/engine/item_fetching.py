"""The work on a fetch: who asks for which item, asking, and what becomes of the answers."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from proxy.coalesce.base import Coalescer, FlightEnd, Followed, Landed, Lease
from proxy.core.decision import Hit, after_lookup
from proxy.core.entry import Entry
from proxy.core.recording import NotStored
from proxy.engine.entries import Entries
from proxy.engine.item_asking import Asked, Asking, Want
from proxy.engine.item_fetch import Fetch
from proxy.errors import ProxyError, StoreError, UpstreamError
from proxy.tasks import TaskGroup

log = logging.getLogger("magic_proxy.batches")

# How many requests one batch may have under way at once, where it has to be split.
_AT_ONCE: Final = 4


class Fetching:
    """Brings one fetch to its end; with a `coalescer`, together with other workers and replicas."""

    def __init__(
        self,
        fetch: Fetch,
        asking: Asking,
        entries: Entries,
        tasks: TaskGroup,
        coalescer: Coalescer | None,
    ) -> None:
        self._fetch = fetch
        self._asking = asking
        self._entries = entries
        self._tasks = tasks
        self._coalescer = coalescer
        self._leases: dict[str, Lease] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Ask for what nobody else asks for, and follow those who do."""
        fetch = self._fetch
        try:
            followed = await self._claim()
            own = [want for key, want in fetch.wants.items() if key not in followed]
            work = [self._ask(part) for part in self._parts(own)]
            if followed:
                work.append(self._follow(followed))
            await self._together(work)
        finally:
            fetch.end()
            self._release(list(self._leases), FlightEnd.ABANDONED)

    async def _claim(self) -> dict[str, Followed]:
        """The items that others ask for already; for the rest a lease, where there are leases."""
        if self._coalescer is None or not self._fetch.shares_elsewhere:
            return {}
        keys = list(self._fetch.wants)
        try:
            got = await self._coalescer.acquire(keys)
        except StoreError:
            return {}
        followed: dict[str, Followed] = {}
        for key, claim in zip(keys, got, strict=True):
            if isinstance(claim, Followed):
                followed[key] = claim
            else:
                self._leases[key] = claim
        return followed

    def _parts(self, wants: Sequence[Want]) -> list[Sequence[Want]]:
        most = self._asking.forwarder.max_batch(self._fetch.plan.chain) or len(wants)
        return [wants[at : at + most] for at in range(0, len(wants), max(most, 1))]

    async def _together(self, work: Sequence[Coroutine[Any, Any, None]]) -> None:
        if len(work) == 1:
            await work[0]
            return
        tasks = [self._tasks.start(each, name="item-fetch-part", awaited=True) for each in work]
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            raise
        for task in tasks:
            task.result()

    async def _ask(self, wants: Sequence[Want]) -> None:
        keys = [want.store_key for want in wants]
        failure: Asked | ProxyError | None = None
        try:
            async with self._gate:
                if self._fetch.is_unattended:
                    return
                asked = await self._asking.ask(
                    self._fetch.plan,
                    wants,
                    unchanged=self._fetch.whole and len(wants) == len(self._fetch.wants),
                )
            self._fetch.asked.append(asked)
            if asked.wrong is None:
                self._take(asked)
            else:
                failure = asked
        except UpstreamError as error:
            failure = error
        except Exception:  # boundary: nobody may wait for an answer that will not come
            log.exception("a batch could not be fetched")
            failure = ProxyError("The request could not be finished.")
        finally:
            self._fetch.land(dict.fromkeys(keys))
            self._release(keys, FlightEnd.ABANDONED if failure is None else FlightEnd.FAILED)
        if failure is not None:
            await self._hand_over(failure)

    async def _hand_over(self, failure: Asked | ProxyError) -> None:
        taken = False
        try:
            taken = await self._fetch.fail(failure)
        finally:
            if isinstance(failure, Asked) and failure.rest is not None and not taken:
                await failure.exchange.response.aclose()

    def _take(self, asked: Asked) -> None:
        """Store what may be stored, and let all who wait have it."""
        fetch = self._fetch
        found = {entry.key: entry for entry in asked.entries}
        stored: list[str] = []
        for want in asked.wants:
            reason = self._put(asked, want, found.get(want.store_key))
            if reason is None:
                stored.append(want.store_key)
            else:
                fetch.not_stored = fetch.not_stored or reason.value
        fetch.stored += len(stored)
        fetch.land(found)
        self._release(stored, FlightEnd.STORED)
        self._release([want.store_key for want in asked.wants], FlightEnd.UNCACHEABLE)

    def _put(self, asked: Asked, want: Want, entry: Entry | None) -> NotStored | None:
        if asked.refused is not None or entry is None:
            return asked.refused
        lease, rule = self._leases.get(want.store_key), self._fetch.plan.derivation.rule
        if lease is not None and lease.lost:
            return NotStored.LEASE_LOST
        if rule is not None and len(entry.payload) > rule.max_entry_bytes:
            return NotStored.TOO_LARGE
        if not self._entries.put(entry, replaces=want.replaces):
            return NotStored.QUEUE_FULL
        return None

    async def _follow(self, followed: Mapping[str, Followed]) -> None:
        """Wait for others' items; those that do not come are asked for here, once."""
        left, alone = dict(followed), list[Want]()
        while left:
            key = next(iter(left))
            end = await _end_of(left.pop(key))
            # Whoever has stored this one has mostly stored others as well.
            found = await self._stored([key, *left]) if end is FlightEnd.STORED else {}
            self._fetch.land(found)
            for other in found:
                left.pop(other, None)
            if key not in found:
                alone.append(self._fetch.wants[key])
        if alone:
            await self._together([self._ask(part) for part in self._parts(alone)])

    async def _stored(self, keys: Sequence[str]) -> dict[str, Entry]:
        """Those of the items that the store has now."""
        plan, wants = self._fetch.plan, self._fetch.wants
        rule = plan.derivation.rule
        assert rule is not None
        found = await self._entries.get_batch(keys)
        now = self._asking.clock.wall()
        decided = [
            after_lookup(wants[key].key, entry, plan.control, rule, now=now)
            for key, entry in zip(keys, found, strict=True)
        ]
        return {hit.entry.key: hit.entry for hit in decided if isinstance(hit, Hit)}

    def _release(self, keys: Iterable[str], end: FlightEnd) -> None:
        """Give these free, those that were not yet, and tell all who follow."""
        held = {key: self._leases.pop(key) for key in list(keys) if key in self._leases}
        if held:
            self._tasks.start(self._released(held, end), name="lease-release")

    async def _released(self, leases: Mapping[str, Lease], end: FlightEnd) -> None:
        try:
            if end is FlightEnd.STORED:
                await self._entries.settled(list(leases))
        finally:
            await asyncio.gather(*(lease.release(end) for lease in leases.values()))


async def _end_of(followed: Followed) -> FlightEnd:
    try:
        async for event in followed.events(live=False):
            if isinstance(event, Landed):
                return event.end
    except StoreError:
        return FlightEnd.FAILED
    return FlightEnd.ABANDONED
