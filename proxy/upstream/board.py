"""Where workers and replicas post what they learned and used of keys, and read what others did.

Times are kept by the board's own clock, and handed out as seconds from now: the clocks of those who
post and read don't matter.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

from proxy.upstream.allowance import Use
from proxy.upstream.keypool import LONGEST_RETIREMENT_SECONDS
from proxy.upstream.pooled_key import KeyNews

# By the name of an upstream, a colon, and the digest of a key.
Posts: TypeAlias = Mapping[str, KeyNews]
Uses: TypeAlias = Mapping[str, Use]

# No time is believed that is longer, and no record is kept that is older.
LONGEST_SECONDS: Final = LONGEST_RETIREMENT_SECONDS


@dataclass(frozen=True, slots=True)
class Read:
    """What is new since the last reading; `lost`: the board has lost what it had.

    `uses` are those of others alone.
    """

    posts: Posts
    lost: bool = False
    uses: Uses = field(default_factory=dict)


class KeyBoard(Protocol):
    """One medium. Everything but `open` and `close` can raise `StoreUnavailable`."""

    poll_seconds: float
    """How often to look, where nobody tells or a message got lost."""

    def open(self, heard: Callable[[], None], connected: Callable[[], None]) -> None:
        """Have `heard` called when there may be something new, `connected` when all may be."""
        ...

    async def post(self, posts: Posts) -> None:
        """Put what was learned here beside what stands there: the longer time counts."""
        ...

    async def tell(self, uses: Uses) -> None:
        """Have others count what was used here; what gets lost is not counted."""
        ...

    async def read(self, *, whole: bool) -> Read:
        """What was posted since the last reading, one's own posts included; `whole`: all of it."""
        ...

    async def close(self) -> None: ...


def added(uses: Iterable[tuple[str, Use]]) -> Uses:
    """The sum for each key."""
    sums: dict[str, Use] = {}
    for name, use in uses:
        sums[name] = sums.get(name, Use()) + use
    return sums
