"""The tiered store: the fastest tier first, what is found below promoted above.

A tier that fails is passed over. A promoted copy keeps the expiry that stands in the value
itself, so it never outlives the entry that it was copied from (B57).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from proxy.errors import StoreUnavailable
from proxy.stores.base import Put, Store, StoreStats
from proxy.stores.memory import MemoryStore
from proxy.tasks import TaskGroup

_MOST_PROMOTIONS: Final = 64


class TieredStore:
    """`tiers` in the order to ask; `expires_at_of` reads the expiry out of a value.

    A value without a readable expiry is handed out but not promoted. `get_many` raises
    StoreUnavailable only if it found nothing and a tier failed; `put_many` only if every tier
    failed; `delete_many` if any did, after all were tried.
    """

    name = "tiered"

    def __init__(
        self, tiers: Sequence[Store], *, expires_at_of: Callable[[bytes], float | None]
    ) -> None:
        if not tiers:
            raise ValueError("a tiered store has at least one tier")
        self._tiers = tuple(tiers)
        self._expires_at_of = expires_at_of
        self._tasks = TaskGroup()
        self._reading: dict[str, int] = {}
        self._overtaken: set[str] = set()

    @property
    def tiers(self) -> tuple[Store, ...]:
        """The tiers in the order to ask."""
        return self._tiers

    @property
    def available(self) -> bool:
        return any(tier.available for tier in self._tiers)

    async def open(self) -> None:
        for tier in self._tiers:
            await tier.open()

    def get_now(self, key: str) -> bytes | None:
        return self._tiers[0].get_now(key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        found: dict[str, bytes] = {}
        self._begin(keys)
        try:
            failure = await self._look_up(keys, found)
        finally:
            self._end(keys)
        if failure is not None and not found:
            raise failure
        return [found.get(key) for key in keys]

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        """Of the last tier, which is the shared one; what it has takes the place of copies."""
        *above, last = self._tiers
        self._begin(keys)
        try:
            values = await last.get_latest(keys)
            found = {
                key: value for key, value in zip(keys, values, strict=True) if value is not None
            }
            if found and above:
                await self._promote(found, above)
        finally:
            self._end(keys)
        return values

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        """From the last tier that has one: a copy above may be older. Nothing is promoted."""
        found: dict[str, bytes] = {}
        failure: StoreUnavailable | None = None
        missing = keys
        for tier in reversed(self._tiers):
            try:
                heads = await tier.heads(missing, length)
            except StoreUnavailable as error:
                failure = error
                continue
            found |= {key: head for key, head in zip(missing, heads, strict=True) if head}
            missing = [key for key in missing if key not in found]
            if not missing:
                break
        if failure is not None and not found:
            raise failure
        return [found.get(key) for key in keys]

    async def put_many(self, puts: Sequence[Put]) -> None:
        keys = [put.key for put in puts]
        self._overtake(keys)
        failures = []
        for tier in self._tiers:
            try:
                await tier.put_many(puts)
            except StoreUnavailable as error:
                failures.append(error)
        self._overtake(keys)
        if len(failures) == len(self._tiers):
            raise failures[-1]

    async def delete_many(self, keys: Sequence[str]) -> int:
        self._overtake(keys)
        removed = 0
        failure: StoreUnavailable | None = None
        # From the bottom up: what is gone below can't be promoted again.
        for tier in reversed(self._tiers):
            try:
                removed = max(removed, await tier.delete_many(keys))
            except StoreUnavailable as error:
                failure = error
        self._overtake(keys)
        if failure is not None:
            raise failure
        return removed

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        """The keys of all tiers, each once; those of all but the last tier are held meanwhile."""
        seen: set[str] = set()
        for tier in self._tiers[:-1]:
            async for key in tier.scan(prefix):
                if key not in seen:
                    seen.add(key)
                    yield key
        async for key in self._tiers[-1].scan(prefix):
            if key not in seen:
                yield key

    async def stats(self) -> StoreStats:
        """Of the last tier, which holds what the others hold and more."""
        return await self._tiers[-1].stats()

    async def close(self) -> None:
        await self._tasks.cancel()
        for tier in self._tiers:
            await tier.close()

    async def _look_up(
        self, keys: Sequence[str], found: dict[str, bytes]
    ) -> StoreUnavailable | None:
        """Fill `found`; the last failure of a tier, if one failed."""
        failure: StoreUnavailable | None = None
        missing: Sequence[str] = keys
        for depth, tier in enumerate(self._tiers):
            try:
                values = await tier.get_many(missing)
            except StoreUnavailable as error:
                failure = error
                continue
            here = {
                key: value for key, value in zip(missing, values, strict=True) if value is not None
            }
            if here:
                found |= here
                if depth:
                    await self._promote(here, self._tiers[:depth])
                missing = [key for key in missing if key not in here]
            if not missing:
                break
        return failure

    async def _promote(self, values: dict[str, bytes], tiers: Sequence[Store]) -> None:
        puts = [
            Put(key, value, expires_at)
            for key, value in values.items()
            if key not in self._overtaken and (expires_at := self._expires_at_of(value)) is not None
        ]
        if not puts:
            return
        for tier in tiers:
            if isinstance(tier, MemoryStore):
                await tier.put_many(puts)  # waits for nothing, so nothing can come between
            elif len(self._tasks) < _MOST_PROMOTIONS:
                self._tasks.start(_copy(tier, puts), name=f"promote-to-{tier.name}")

    # A value that was read before a write must not be promoted after it: a write marks the keys
    # that are being read at that moment.

    def _begin(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._reading[key] = self._reading.get(key, 0) + 1

    def _end(self, keys: Sequence[str]) -> None:
        for key in keys:
            left = self._reading[key] - 1
            if left:
                self._reading[key] = left
            else:
                del self._reading[key]
                self._overtaken.discard(key)

    def _overtake(self, keys: Sequence[str]) -> None:
        if self._reading:
            self._overtaken.update(key for key in keys if key in self._reading)


async def _copy(tier: Store, puts: Sequence[Put]) -> None:
    try:
        await tier.put_many(puts)
    except StoreUnavailable:
        return  # the tier's own circuit counts and tells
