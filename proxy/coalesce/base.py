"""What the engine asks of coalescing across processes: who asks the upstream, and who follows.

Coalescing inside one process is the engine's own; this is about the other workers and replicas.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias


class FlightEnd(StrEnum):
    """How the shared work on one key ended."""

    STORED = "stored"  # there is an entry now, and the shared store has it
    UNCACHEABLE = "uncacheable"  # a good answer that must not be kept: everyone goes alone
    FAILED = "failed"  # no answer, or an error for an answer
    ABANDONED = "abandoned"  # the leader is gone, a follower takes over


class Lease(Protocol):
    """The right to ask the upstream for one key, as long as it is renewed (which it does itself).

    Records are opaque bytes; the first one published is the first one that a follower gets. None
    need be published while nobody follows.
    """

    @property
    def key(self) -> str: ...

    @property
    def token(self) -> int:
        """Grows with every lease of this key: what is made under a smaller one is out of date."""
        ...

    @property
    def lost(self) -> bool:
        """True once another is known to hold the key: what is made under this lease is void."""
        ...

    @property
    def stored_lately(self) -> bool:
        """True where the lease before was released as `STORED` within the last 2 s or so.

        Whoever looked for the entry before that may have missed it.
        """
        ...

    def when_wanted(self, callback: Callable[[], None]) -> None:
        """Have `callback` called, once, when somebody elsewhere follows live (perhaps at once)."""
        ...

    async def publish(self, records: Sequence[bytes]) -> None:
        """Append to what followers read. Raises `StoreUnavailable`."""
        ...

    async def release(self, end: FlightEnd) -> None:
        """Give the key free and tell the followers the end; safe to call twice; never raises.

        With `STORED`, call it after the shared store has the entry.
        """
        ...


@dataclass(frozen=True, slots=True)
class Published:
    """The next records of the leader, in order, none missing."""

    records: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Landed:
    """The end; `ABANDONED` also where the leader's lease ran out."""

    end: FlightEnd


FollowEvent: TypeAlias = Published | Landed


class Followed(ABC):
    """Somebody else holds the key's lease.

    A class to derive from: every miss asks which of the two it got, and a Protocol is slow to say.
    """

    def __init__(self, key: str, token: int) -> None:
        self.key = key
        self.token = token

    @abstractmethod
    def events(self, *, live: bool) -> AsyncIterator[FollowEvent]:
        """`Published` as they come, from the first record on, then one `Landed`, which is the last.

        `live` False asks for the end alone; where following live is not possible (the disk), that
        is all there is. Raises `StoreUnavailable` where the medium is down, and `FellBehind` where
        records are gone that were not read yet.
        """
        ...


class Coalescer(Protocol):
    """Leases among all who share a medium: one machine's disk, or a Redis."""

    async def open(self) -> None:
        """Get ready; a medium that is down now must not make this fail."""
        ...

    async def acquire(self, keys: Sequence[str]) -> list[Lease | Followed]:
        """For each key a lease, or whom to follow; one round trip, within a short time limit.

        Keys are distinct. Raises `StoreUnavailable`: then nothing was acquired, or what was
        acquired runs out by itself.
        """
        ...

    async def close(self) -> None:
        """Let go of everything; leases still held are released as abandoned."""
        ...
