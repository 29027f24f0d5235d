"""What a fault is, and the words for what it says: those of docs/upstreams.md."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias

from tests.faults.kinds import Good, Kind
from tests.faults.tcp_proxy import Line
from tests.faults.wires import Wire, plain

# When the fault happens, for dates.
WALL: Final = 1_800_000_000.0
SOON: Final = 0.3
KEY_COOLDOWN: Final = 20.0
QUOTA_COOLDOWN: Final = 3600.0
KEY_RETIRE: Final = 600.0
LONGEST_REST: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """There is no head of an answer; the proxy has to say so itself.

    `may_work`: it was a time-out, and the upstream may still be at work. `reached`: there was a
    connection. `always`: it is no matter of one request, but lasts.
    """

    code: str = "upstream_unreachable"
    may_work: bool = False
    reached: bool = True
    always: bool = False


@dataclass(frozen=True, slots=True)
class Breaks:
    """An answer begins well and has no end."""

    code: str = "upstream_protocol_error"


@dataclass(frozen=True, slots=True)
class Limits:
    """A key is at a limit for so long; `cut` is what is told where that answer has no end."""

    seconds: float = KEY_COOLDOWN
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Rejects:
    """A key is not taken any more."""


@dataclass(frozen=True, slots=True)
class Fails:
    """The upstream says that it fails; `cut` is what is told where that answer has no end."""

    cut: str = ""


@dataclass(frozen=True, slots=True)
class Blames:
    """The upstream finds fault with the request."""


@dataclass(frozen=True, slots=True)
class Odd:
    """A whole answer without an error status, but not the one that was asked for."""


@dataclass(frozen=True, slots=True)
class Fine:
    """A good answer that comes in an odd way."""


Says: TypeAlias = NoAnswer | Breaks | Limits | Rejects | Fails | Blames | Odd | Fine


class At(StrEnum):
    """Where the upstream is that behaves so."""

    LAB = "lab"
    NOBODY = "nobody"  # nobody listens there
    FULL = "full"  # the queue of connections is full
    LINE = "line"  # in the lab, at the end of a bad line


_GOOD_LINE: Final = Line()


@dataclass(frozen=True, slots=True, eq=False)
class Fault:
    """One row; `wire` makes the answer out of the good one. `timeouts` are the upstream's."""

    name: str
    says: Says
    wire: Callable[[Good], Wire] = plain
    kinds: frozenset[Kind] = frozenset(Kind)
    timeouts: Mapping[str, float] = field(default_factory=dict)
    at: At = At.LAB
    up: Line = _GOOD_LINE
    down: Line = _GOOD_LINE

    @property
    def is_heard(self) -> bool:
        """Whether the lab gets to know of the request."""
        return self.at is At.LAB or (self.at is At.LINE and self.up.most_bytes is None)
