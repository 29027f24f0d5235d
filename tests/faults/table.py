"""What is to become of each fault, for each kind of request and each setup.

Derived from what a row says, in the words of docs/upstreams.md and docs/freshness.md, and from
nothing of the proxy. Cells that the sentences don't fit stand in `EXCEPTIONS`, with the reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from tests.faults.fault import Breaks, Fails, Fault, Fine, Limits, NoAnswer, Rejects, Says
from tests.faults.kinds import Kind
from tests.faults.rows import FAULTS


class Setup(StrEnum):
    """How the upstream `a`, where the fault is, is set up; it happens once, at the first call."""

    OWN = "own"  # no keys: the client's own is passed on
    ONE = "one"  # one key
    TWO = "two"  # two keys
    CHAIN = "chain"  # one key, and a fallback to the upstream `b`
    STALE = "stale"  # one key, and a stale answer that may serve on errors


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table."""

    fault: Fault
    kind: Kind
    setup: Setup
    transport: str = "aiohttp"

    def __str__(self) -> str:
        return f"{self.kind}-{self.fault.name}-{self.setup}-{self.transport}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What is seen of a cell.

    `client`: the `good` answer, an `old` one, what the upstream said `as told`, the beginning of
    that (`broken off`), or status and code of an error of the proxy. `calls`: upstream and key of
    each. `key`: state of the first key, with the seconds that it rests. `circuit`: failures of how
    many calls at `a`. `then`: what the same request gets a moment later, with its `X-Cache`; `old
    HIT` says that the answer was stored.
    """

    client: str
    x_cache: str
    calls: str
    key: str
    circuit: str
    then: str


CELLS: Final = (
    *(
        Cell(fault, kind, setup)
        for setup in Setup
        for kind in Kind
        for fault in FAULTS
        if kind in fault.kinds
    ),
    *(
        Cell(fault, kind, Setup.ONE, "httpx")
        for kind in (Kind.JSON, Kind.STREAM)
        for fault in FAULTS
        if kind in fault.kinds
    ),
)
_STATUS: Final = {"upstream_timeout": 504}
_REJECTED: Final = "502 upstream_credentials_rejected"
_EXHAUSTED: Final = "429 upstream_keys_exhausted"


def expected(cell: Cell) -> Expected:
    """What the docs promise for this cell, or what stands in the exceptions."""
    changes = [each.seen for each in EXCEPTIONS if each.holds_for(cell)]
    return replace(derived(cell), **{name: seen for each in changes for name, seen in each.items()})


def derived(cell: Cell) -> Expected:
    """What follows from the sentences below."""
    asked_next = _asked_next(cell)
    is_helped = asked_next == "b1" or (asked_next == "a2" and not _lasts(cell))
    goes_well = is_helped or isinstance(cell.fault.says, Fine)
    client = "good" if goes_well else _alone(cell)
    calls = ["a1", asked_next]
    heard = [call for call in calls if call[:1] == "b" or (call and cell.fault.is_heard)]
    return Expected(
        client=client,
        x_cache=_x_cache(cell.kind, client),
        calls=" ".join(heard),
        key=_key(cell),
        circuit=_circuit(cell, asked_next),
        then=_then(cell, client),
    )


def _asked_next(cell: Cell) -> str:
    """Which key is asked after the one that met the fault; none where that is the last word.

    The next key, then the next of the chain. What breaks off is asked for again if nobody has got
    any of it.
    """
    says, kind = _says(cell), cell.kind
    if not isinstance(says, NoAnswer | Limits | Rejects | Fails):
        return ""
    match cell.setup:
        case Setup.CHAIN if kind.is_cached:
            return "b1"
        case Setup.TWO if isinstance(says, NoAnswer) and says.may_work:
            return ""
        case Setup.TWO if kind is not Kind.WORK or _did_no_work(says):
            return "a2"
        case _:
            return ""


def _says(cell: Cell) -> Says:
    """What breaks off before its client gets any of it is no answer."""
    says = cell.fault.says
    if isinstance(says, Breaks) and cell.kind.is_held:
        return NoAnswer(says.code, may_work=says.code == "upstream_timeout")
    return says


def _did_no_work(says: Says) -> bool:
    """What was refused, or never sent, can be sent again, whatever it is."""
    if isinstance(says, NoAnswer):
        return not says.reached
    return isinstance(says, Limits | Rejects)


def _lasts(cell: Cell) -> bool:
    return isinstance(cell.fault.says, NoAnswer) and cell.fault.says.always


def _alone(cell: Cell) -> str:
    """What the client gets where nobody else is asked."""
    says, kind = _says(cell), cell.kind
    match says:
        case NoAnswer(code):
            told = _error(code)
        case Breaks():
            return "broken off"
        case Limits(cut=code) | Fails(cut=code) if code:
            told = _error(code) if kind.is_cached else "broken off"
        case Limits() | Fails():
            told = "as told"
        case Rejects() if cell.setup is not Setup.OWN:
            told = _REJECTED
        case _:
            return "as told"
    return "old" if cell.setup is Setup.STALE and kind.is_cached else told


def _error(code: str) -> str:
    return f"{_STATUS.get(code, 502)} {code}"


def _x_cache(kind: Kind, client: str) -> str:
    if client.split(maxsplit=1)[0].isdigit():
        return "ERROR"
    if not kind.is_cached:
        return "-"
    return "STALE" if client == "old" else "MISS"


def _key(cell: Cell) -> str:
    """A limit cools the key, a rejection retires it, all else leaves it alone."""
    match cell.fault.says:
        case _ if cell.setup is Setup.OWN:
            return "-"
        case Limits(seconds) if seconds:
            return f"cooling {seconds:g}"
        case Rejects():
            return "retired 600"
        case _:
            return "available"


def _circuit(cell: Cell, asked_next: str) -> str:
    """Failures, and no answers, count; whatever else is answered shows that the upstream works."""
    failed = isinstance(_says(cell), NoAnswer | Fails)
    calls = 2 if asked_next == "a2" else 1
    return f"{calls if _lasts(cell) else int(failed)} of {calls}"


def _then(cell: Cell, client: str) -> str:
    """A good answer was stored; else the upstream answers well now, if its key may be used."""
    kind, key = cell.kind, _key(cell)
    if client == "good" and kind.is_cached:
        return "old HIT"
    if _lasts(cell):
        return f"{client} {_x_cache(kind, client)}"
    if key in {"-", "available"} or cell.setup is Setup.TWO:
        return f"good {_x_cache(kind, 'good')}"
    if cell.setup is Setup.STALE and kind.is_cached:
        return "old STALE"
    return f"{_EXHAUSTED if key.startswith('cooling') else _REJECTED} ERROR"


# ---- exceptions ----

_CACHED: Final = frozenset(kind for kind in Kind if kind.is_cached)
_HELD: Final = frozenset(kind for kind in Kind if kind.is_held)
_OUT_OF_TIME: Final = {
    "client": "504 upstream_timeout",
    "x_cache": "ERROR",
    "calls": "a1",
    "then": "good MISS",
}


@dataclass(frozen=True, slots=True)
class Otherwise:
    """Cells that are none of the sentences' above, and why."""

    because: str
    faults: frozenset[str]
    kinds: frozenset[Kind]
    setups: frozenset[Setup]
    seen: Mapping[str, Any]
    transports: frozenset[str] = frozenset({"aiohttp", "httpx"})

    def holds_for(self, cell: Cell) -> bool:
        """Whether this is one of the cells."""
        return (
            cell.fault.name in self.faults
            and cell.kind in self.kinds
            and cell.setup in self.setups
            and cell.transport in self.transports
        )


EXCEPTIONS: Final = (
    Otherwise(
        "the stream has come to its [DONE], where clients close; what is lost is framing",
        frozenset({"last-chunk-missing", "length-too-long", "length-too-long-and-silence"}),
        frozenset({Kind.STREAM}),
        frozenset(Setup),
        {"then": "old HIT"},
    ),
    Otherwise(
        "what others may read along is decoded on its way, and this can't be",
        frozenset({"no-gzip"}),
        frozenset({Kind.STREAM}),
        frozenset(Setup),
        {"client": "broken off"},
    ),
    Otherwise(
        "longer than an entry may be, it is passed on as it comes",
        frozenset({"long-and-endless"}),
        frozenset({Kind.JSON}),
        frozenset(Setup),
        {"client": "broken off", "x_cache": "MISS", "circuit": "0 of 1"},
    ),
    Otherwise(
        "and asks nobody else, since its client has got some of it",
        frozenset({"long-and-endless"}),
        frozenset({Kind.JSON}),
        frozenset({Setup.CHAIN}),
        {"calls": "a1", "then": "good MISS"},
    ),
    Otherwise(
        "the time that is over is that of the whole chain",
        frozenset({"head-trickles"}),
        _CACHED,
        frozenset({Setup.CHAIN}),
        _OUT_OF_TIME,
    ),
    Otherwise(
        "likewise, where all of it is waited for",
        frozenset({"endless"}),
        _HELD,
        frozenset({Setup.CHAIN}),
        _OUT_OF_TIME,
    ),
    Otherwise(
        "likewise; a batch's answer may be longer than an entry",
        frozenset({"long-and-endless"}),
        frozenset({Kind.EMBEDDINGS}),
        frozenset({Setup.CHAIN}),
        _OUT_OF_TIME,
    ),
    Otherwise(
        "any 5xx is a failure where there is a stale answer",
        frozenset({"501", "505"}),
        _CACHED,
        frozenset({Setup.STALE}),
        {"client": "old", "x_cache": "STALE"},
    ),
    Otherwise(
        "a 403 is the request's own fault by its status; its key rests all the same",
        frozenset({"403-billing"}),
        _CACHED,
        frozenset({Setup.STALE}),
        {"client": "as told", "x_cache": "MISS"},
    ),
    Otherwise(
        "this client takes the bytes that were announced; the connection is not used again",
        frozenset({"length-too-short", "status-204-and-more"}),
        frozenset({Kind.JSON, Kind.STREAM}),
        frozenset({Setup.ONE}),
        {"client": "as told", "x_cache": "MISS", "circuit": "0 of 1"},
        frozenset({"httpx"}),
    ),
    Otherwise(
        "this client gives the head away before it looks at the chunks",
        frozenset({"chunk-size-is-none"}),
        frozenset({Kind.STREAM}),
        frozenset({Setup.ONE}),
        {"circuit": "0 of 1"},
        frozenset({"httpx"}),
    ),
    Otherwise(
        "and its client has seen the head by then",
        frozenset({"chunk-size-is-none"}),
        frozenset({Kind.STREAM}),
        frozenset({Setup.ONE}),
        {"client": "broken off", "x_cache": "MISS"},
        frozenset({"httpx"}),
    ),
)
