"""Right or wrong: what the client got, held against purges, lifetimes and announced faults."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from bench.checked import Ask, Came, Result
from bench.soak_rules import MODELS, PROJECT_HEADER, TAGS_HEADER
from bench.soak_upstream import Ending, UpstreamCall
from bench.stamped import chat_digest

# How much later than the upstream's last byte an answer may be stored, on a busy machine.
SLACK_SECONDS = 1.0
# `Age` and `max-age` count whole seconds.
_WHOLE_SECOND = 1.0
_CLOCK_STEP = 0.002
# Older purges of the same are covered by these.
_LAST = 30

Target = tuple[str, str]


class Fault(StrEnum):
    """What must not happen, once."""

    WRONG = "wrong answer"
    SHORTENED = "stream shortened in silence"
    PURGED = "answer older than a purge"
    TOO_OLD = "answer older than its lifetime"
    CONTROL = "client's cache-control not obeyed"
    FAILED = "unexplained failure"


@dataclass(frozen=True, slots=True)
class Complaint:
    """One fault, and on what."""

    fault: Fault
    result: Result
    why: str


@dataclass(slots=True)
class Window:
    """An announced time in which requests may fail in certain ways (of one proxy, or of all).

    Requests of the kind `spares` may not fail all the same.
    """

    name: str
    began: float
    excuses: frozenset[Came]
    statuses: frozenset[int] = frozenset()
    proxy: str | None = None
    spares: str = ""
    loses_leaders: bool = False
    ended: float = inf
    excused: int = 0

    def covers(self, result: Result) -> bool:
        """Whether a failed request may have failed for this."""
        return (
            self.proxy in {None, result.ask.proxy}
            and self.spares != result.ask.kind
            and self.overlaps(result.began, result.ended)
            and result.came in self.excuses
            and (result.came is not Came.STATUS or result.status in self.statuses)
        )

    def overlaps(self, began: float, ended: float) -> bool:
        return began <= self.ended and ended >= self.began


@dataclass(frozen=True, slots=True)
class Floor:
    """Of what a purge named, nothing of an earlier version is served to requests from `since` on.

    A soft purge (`hard` False) lets stale answers through that are told as stale. A purge by age
    spares answers that the upstream ended at `before` (monotonic seconds) or later.
    """

    target: Target
    version: int
    since: float
    proxy: str
    hard: bool = True
    before: float = inf


@dataclass(slots=True)
class Judge:
    """Knows what was announced, and judges one result after the other."""

    calls: Sequence[UpstreamCall]
    windows: list[Window] = field(default_factory=list)
    floors: dict[tuple[str, Target], deque[Floor]] = field(default_factory=dict)
    complaints: list[Complaint] = field(default_factory=list)
    # Numbers of calls whose answers a client had forbidden to store.
    unstored: set[int] = field(default_factory=set)

    def purged(self, floor: Floor) -> None:
        """A purge holds from now on, for requests to one proxy."""
        self.floors.setdefault((floor.proxy, floor.target), deque(maxlen=_LAST)).append(floor)

    def judge(self, result: Result) -> None:
        """Add what is wrong with `result` to the complaints."""
        for fault, why in self._faults(result):
            self.complaints.append(Complaint(fault, result, why))

    def disturbed(self, began: float, ended: float) -> bool:
        """Whether anything announced happened meanwhile."""
        return any(window.overlaps(began, ended) for window in self.windows)

    def _faults(self, result: Result) -> Iterable[tuple[Fault, str]]:
        match result.came:
            case Came.LEFT:
                return
            case Came.WRONG:
                yield Fault.WRONG, result.note
            case Came.SHORTENED:
                yield Fault.SHORTENED, result.note
            case Came.WHOLE:
                yield from self._out_of_date(result)
                yield from self._control(result)
            case _:
                if not _asked_for_failure(result) and not self._excused(result):
                    yield Fault.FAILED, f"{result.came} {result.status} {result.note}"

    def _excused(self, result: Result) -> bool:
        for window in self.windows:
            if window.covers(result):
                window.excused += 1
                return True
        return False

    def _out_of_date(self, result: Result) -> Iterable[tuple[Fault, str]]:
        told_stale = result.x_cache == "STALE"
        floors = self._floors(result, told_stale=told_stale)
        model = MODELS[result.ask.model]
        allowed = model.ttl
        if told_stale or model.embeds:  # one header speaks for all vectors of a batch
            allowed += model.stale_while_revalidate
        if told_stale and self._in_error_window(result):
            allowed = max(allowed, model.ttl + model.stale_if_error)
        for stamp in result.stamps:
            call = self.calls[stamp.number - 1]
            for floor in floors:
                if stamp.version < floor.version and not _too_young(call, floor):
                    yield Fault.PURGED, f"version {stamp.version}, {_why(floor, result)}"
                    break
            age = result.began - call.ended if call.ending is Ending.WHOLE else 0.0
            if age > allowed + SLACK_SECONDS:
                yield Fault.TOO_OLD, f"{age:.1f} s old, {allowed} s allowed ({result.x_cache})"
            if stamp.number in self.unstored and result.x_cache == "HIT":
                yield Fault.CONTROL, f"call {stamp.number} was not to be stored"

    def _floors(self, result: Result, *, told_stale: bool) -> list[Floor]:
        """The purges that bind the answer to this request."""
        return [
            floor
            for target in targets_of(result.ask)
            for floor in self.floors.get((result.ask.proxy, target), ())
            if floor.since <= result.began and (floor.hard or not told_stale)
        ]

    def _in_error_window(self, result: Result) -> bool:
        return any(
            window.statuses and window.overlaps(result.began, result.ended)
            for window in self.windows
        )

    def _control(self, result: Result) -> Iterable[tuple[Fault, str]]:
        said = result.ask.headers.get("cache-control", "")
        for stamp in result.stamps:
            call = self.calls[stamp.number - 1]
            if said == "no-cache" and stamp.moment < result.began - _CLOCK_STEP:
                yield Fault.CONTROL, "no-cache got an answer made before"
            if said.startswith("max-age=") and result.x_cache in {"HIT", "STALE"}:
                limit = int(said.removeprefix("max-age=")) + _WHOLE_SECOND + SLACK_SECONDS
                if call.ending is Ending.WHOLE and result.began - call.ended > limit:
                    yield Fault.CONTROL, f"{said}: {result.began - call.ended:.1f} s old"
            # Of a batch, some vectors may be from the cache.
            if said == "no-store" and result.x_cache == "MISS" and result.ask.is_chat:
                self.unstored.update([] if result.collapsed else [stamp.number])
        if said == "only-if-cached" and result.x_cache not in {"HIT", "STALE"}:
            yield Fault.CONTROL, f"only-if-cached got a {result.x_cache}"


def targets_of(ask: Ask) -> list[Target]:
    """Whatever a purge could name this request's answer by."""
    tags = [f"project:{ask.headers[PROJECT_HEADER]}"] if PROJECT_HEADER in ask.headers else []
    tags += [tag.strip() for tag in ask.headers.get(TAGS_HEADER, "").split(",") if tag.strip()]
    endpoint = "chat" if ask.is_chat else "embeddings"
    return [
        ("all", ""),
        ("model", ask.model),
        ("rule", ask.model),
        ("endpoint", endpoint),
        *([("key", chat_digest(ask.body))] if ask.is_chat else []),
        *(("tag", tag) for tag in tags),
    ]


def _asked_for_failure(result: Result) -> bool:
    """A 504 is what `only-if-cached` is for."""
    return result.status == 504 and result.ask.headers.get("cache-control") == "only-if-cached"


def _too_young(call: UpstreamCall, floor: Floor) -> bool:
    """Whether a purge by age spares what the call gave."""
    open_still = call.ending is Ending.OPEN
    return floor.before < inf and (open_still or call.ended >= floor.before)


def _why(floor: Floor, result: Result) -> str:
    kind = "purge" if floor.hard else "soft purge"
    late = result.began - floor.since
    return f"{kind} of {':'.join(floor.target)} to {floor.version} in force for {late:.3f} s"
