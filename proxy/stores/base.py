"""What the engine asks of a store: bytes in, bytes out. The meaning of the bytes lives above."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Put:
    """One write: `expires_at` is wall-clock seconds, and there is none without it."""

    key: str
    value: bytes
    expires_at: float


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds; None where it can't say cheaply."""

    entries: int | None = None
    bytes: int | None = None
    max_bytes: int | None = None


class LookUpObserver(Protocol):
    """Is told of each round trip that look-ups took."""

    def looked_up(self, store: str, keys: int) -> None:
        """One round trip to the store of this name, for so many keys."""
        ...


class Store(Protocol):
    """A bounded, expiring map from store keys to bytes.

    Every method may raise `StoreUnavailable`, within the store's own time limit, and nothing else.
    A put is visible whole or not at all. An expired value is never returned.
    """

    @property
    def name(self) -> str:
        """A short name for metrics and logs: `memory`, `disk`, `redis`, `tiered`."""
        ...

    @property
    def available(self) -> bool:
        """False while the store is known to be down (circuit open)."""
        ...

    async def open(self) -> None:
        """Get ready; a shared store that is down now must not make this fail."""
        ...

    def get_now(self, key: str) -> bytes | None:
        """The value if it can be had without waiting, else None (a store may always say None)."""
        ...

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values in the order of `keys`; None where there is none."""
        ...

    async def get_latest(self, keys: Sequence[str]) -> list[bytes | None]:
        """As `get_many`, past copies: what all who share the store see, where some tier is shared.

        For a copy that is known not to do; it is replaced by what is found.
        """
        ...

    async def heads(self, keys: Sequence[str], length: int) -> list[bytes | None]:
        """The first `length` bytes of the values; None where there is none, or an empty one.

        For looking through many entries: large values cost no more than small ones, and no value
        counts as used.
        """
        ...

    async def put_many(self, puts: Sequence[Put]) -> None:
        """Write all; a later put of a key wins."""
        ...

    async def delete_many(self, keys: Sequence[str]) -> int:
        """Remove, and say how many were there."""
        ...

    def scan(self, prefix: str) -> AsyncIterator[str]:
        """The keys that start with `prefix`, in no order; never blocks other users for long."""
        ...

    async def stats(self) -> StoreStats:
        """What the store holds now."""
        ...

    async def close(self) -> None:
        """Finish what is under way and let go of everything; safe to call twice."""
        ...
