"""The media that the coalescer suite runs over, and the harm that can be done to them."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from proxy.coalesce.base import (
    Coalescer,
    FlightEnd,
    Followed,
    Landed,
    Lease,
    Published,
)

LEASE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Medium:
    """One medium. `worker` makes a coalescer over it, opened; `kill` ends one without a word.

    `live` says whether records reach followers; `break_down` and `mend` what they say; `left` what
    lies around in it.
    """

    live: bool
    worker: Callable[[], Awaitable[Coalescer]]
    kill: Callable[[Coalescer], Awaitable[None]]
    break_down: Callable[[], None]
    mend: Callable[[], None]
    left: Callable[[], list[str]]


async def lead(worker: Coalescer, key: str = "k") -> Lease:
    (got,) = await worker.acquire([key])
    assert not isinstance(got, Followed), f"{key} is led by another"
    return got


async def follow(worker: Coalescer, key: str = "k") -> Followed:
    (got,) = await worker.acquire([key])
    assert isinstance(got, Followed), f"nobody leads {key}"
    return got


async def story(followed: Followed, *, live: bool) -> tuple[list[bytes], FlightEnd]:
    """All records, and the end."""
    records: list[bytes] = []
    async for event in followed.events(live=live):
        match event:
            case Published(more):
                assert more, "there is nothing to tell without records"
                records += more
            case Landed(end):
                return records, end
    raise AssertionError("it broke off without an end")
