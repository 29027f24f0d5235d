"""What the tests of purges share: entries to be purged, and the parts that purge them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.core.codec import decode_meta, encode
from proxy.core.entry import Entry, Form
from proxy.core.purge import Purge
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.generations import Generations
from proxy.engine.purging import PurgeReport, Purging
from proxy.engine.sweeping import Sweeps
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put, Store
from proxy.stores.marks import MarkLog
from proxy.stores.marks_local import LocalMarkLog
from proxy.stores.memory import MemoryStore
from proxy.tasks import TaskGroup
from tests.fakes import FakeClock
from tests.unit.engine.kit import Witness

PREFIX = "magic_proxy:cache:"


def key_of(number: int, endpoint: str = "chat") -> str:
    """The store key of an entry of that number."""
    return f"{PREFIX}v1:{endpoint}:shared:{number:064x}"


@dataclass(slots=True)
class Counted:
    """A `PurgeObserver` that remembers."""

    kinds: list[str] = field(default_factory=list)

    def purged(self, kind: str) -> None:
        self.kinds.append(kind)


class HeldClock(FakeClock):
    """A clock on which sleepers stay asleep while `awake` is clear."""

    def __init__(self) -> None:
        super().__init__()
        self.awake = asyncio.Event()
        self.awake.set()

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        await self.awake.wait()


class DownLog(LocalMarkLog):
    """A log that takes no marks while it is `down`."""

    down = False

    async def add(self, *args: Any, **kwargs: Any) -> Any:
        if self.down:
            raise StoreUnavailable("redis: the circuit is open")
        return await super().add(*args, **kwargs)


class Watched(MemoryStore):
    """A memory store that notes what was looked at, and can stop half way."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(max_bytes=256 * 1024 * 1024, clock=clock)
        self.head_lengths: list[int] = []
        self.deleted: list[str] = []
        self.deleting = asyncio.Event()
        self.down_after: int | None = None
        self.scanning = 0
        self.most_scanning = 0

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        self.head_lengths += [length] * len(keys)
        if self.down_after is not None and len(self.head_lengths) > self.down_after:
            raise StoreUnavailable("redis: no reply within 1 s")
        return await super().heads(keys, length)

    async def delete_many(self, keys: Sequence[str]) -> int:
        self.deleted += keys
        self.deleting.set()
        return await super().delete_many(keys)

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        self.scanning += 1
        self.most_scanning = max(self.most_scanning, self.scanning)
        try:
            async for key in super().scan(prefix):
                yield key
        finally:
            self.scanning -= 1


class Parts:
    """A purge engine over memory, its clock and its witnesses."""

    def __init__(self, *stores: Store, marks: MarkLog | None = None) -> None:
        self.clock = HeldClock()
        self.store = Watched(self.clock)
        self.tasks = TaskGroup()
        self.counted = Counted()
        self.generations = Generations(
            marks or LocalMarkLog(self.clock), self.clock, self.tasks, Witness()
        )
        tiers = stores or (self.store,)
        dictionaries = Dictionaries(self.store, self.clock, self.tasks, Witness())
        self.sweeps = Sweeps(tiers, self.generations, self.clock, self.tasks, dictionaries)
        self.purging = Purging(
            self.generations, self.store, self.sweeps, self.clock, self.counted, dictionaries
        )

    async def put(self, number: int, *, endpoint: str = "chat", **members: Any) -> Entry:
        """Store an entry that a request of now would make."""
        now = self.clock.wall()
        entry = Entry(
            key=key_of(number, endpoint),
            model="gpt-4o",
            rule="chat",
            stored_at=now,
            fresh_until=now + 3600,
            expires_at=now + 3600,
            form=Form.JSON,
            status=200,
            headers=((b"content-type", b"application/json"),),
            usage=None,
            payload=b"{}",
            generation=self.generations.current,
        )
        entry = replace(entry, **members)
        await self.store.put_many([Put(entry.key, encode(entry), entry.expires_at)])
        return entry

    async def purge(self, **members: Any) -> PurgeReport:
        return await self.purging.purge(Purge.of(members, key_prefix=PREFIX), key_prefix=PREFIX)

    async def count(self, **members: Any) -> int:
        report = await self.purge(**members, dry_run=True)
        assert report.number is None
        assert report.matched is not None
        return report.matched

    async def held(self, store: Store | None = None) -> set[int]:
        """The numbers of the entries that lie in the store."""
        found = [key async for key in (store or self.store).scan(PREFIX)]
        return {int(key.rpartition(":")[2], 16) for key in found}

    async def served(self) -> set[int]:
        """The numbers of the entries that no purge has named."""
        numbers = set()
        for number in await self.held():
            key = key_of(number)
            (value,) = await self.store.get_many([key])
            meta = decode_meta(value or b"", key)
            assert meta is not None
            if self.generations.verdict(meta) == "live":
                numbers.add(number)
        return numbers

    async def swept(self) -> None:
        """Return when no sweep is under way."""
        await self.tasks.drain(10)
