"""Right, explained, or a fault: what a client got, held against what was broken meanwhile.

As strict as can be. An error needs that no upstream of the chain was surely well, or an answer to
this very request that the proxy could not know for none; what the error says needs a trouble of
that kind. An answer that breaks off needs a call for this very request that broke in its body. A
stale answer needs the same as the error that it stands for. A request that passes through has one
upstream, and is sent once: it needs that this very call failed.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from bench.chaos_ledger import Call, Ledger
from bench.chaos_load import hurry_of
from bench.chaos_rules import (
    BETWEEN_BYTES_SECONDS,
    MAX_ATTEMPTS,
    MODELS,
    THROUGH,
    TOTAL_SECONDS,
    Model,
)
from bench.chaos_weather import (
    FINAL,
    HASTE,
    IN_BODY,
    KEY_TROUBLES,
    MACHINE,
    REDIS,
    REFUSALS,
    UPSTREAM_TROUBLES,
    WORKER,
    Sky,
    Trouble,
    Weather,
    Window,
)
from bench.checked import Ask, Came, Result
from bench.stamped import chat_digest, item_digest, through_digest

# After the proxy's own time-out, on a busy machine.
MARGIN_SECONDS = 2.0
_AGE_SLACK_SECONDS, _STORED_SECONDS = 1.0, 3.0
_EARLY_SECONDS = 0.05
# How many requests of others one may follow that fail, and how long the first call of each may be
# on its way, in line for an upstream.
_MOST_FOLLOWED, _LEAD_SECONDS = 2, 1.2
# So long a follower waits to hear from a leader that died, or over a Redis that froze.
_LOST_SECONDS = 3.0
# A follower's leader may have been answered just before.
_BEFORE_SECONDS = 0.3
_SHOWN_WINDOWS = 12
_CODE: Final = re.compile(r'"code":\s*"(\w+)"')
_UPSTREAM: Final = frozenset(UPSTREAM_TROUBLES) | {Trouble.LATE}
_LIMITS: Final = frozenset(KEY_TROUBLES) | {Trouble.LATE}
# By the code of the proxy's own errors: what can be the reason.
_REASONS: Final = {
    "upstream_keys_exhausted": _LIMITS,
    "upstream_credentials_rejected": REFUSALS,
    "upstream_circuit_open": _UPSTREAM,
    "upstream_queue_full": _UPSTREAM,
    "upstream_queue_timeout": _UPSTREAM,
    "upstream_timeout": frozenset({Trouble.STALL, Trouble.TRICKLE, Trouble.LATE, Trouble.REFUSE}),
    "upstream_unreachable": frozenset({Trouble.REFUSE, Trouble.RESET}) | IN_BODY,
    "upstream_protocol_error": frozenset({Trouble.RESET}) | IN_BODY,
}


class Fault(StrEnum):
    """What must not happen, once."""

    WRONG = "wrong answer"
    SHORTENED = "answer shortened in silence"
    FAILED = "unexplained failure"
    STALE = "stale answer without need"
    TOO_OLD = "answer older than its lifetime"
    STUCK = "request that took too long"


@dataclass(frozen=True, slots=True)
class Complaint:
    """One fault, and on what."""

    fault: Fault
    result: Result
    why: str
    calls: Sequence[Call]
    windows: Sequence[Window]

    def told(self, start: float) -> Iterator[str]:
        """All that is needed to look for its cause, line by line, in seconds since `start`."""
        result, ask = self.result, self.result.ask
        yield (
            f"- {result.began - start:.2f} to {result.ended - start:.2f} s, {ask.kind},"
            f" {ask.model or ask.path}, {result.cache_status or result.status}: {self.why}"
        )
        for call in self.calls:
            yield (
                f"  - call {call.number}, {call.upstream}, {call.key}: {call.began - start:.2f} to"
                f" {call.ended - start:.2f} s, {call.trouble or 'well'}, {call.status}"
            )
        for window in self.windows[:_SHOWN_WINDOWS]:
            yield (
                f"  - {window.place} {window.trouble}: {window.began - start:.2f} to"
                f" {window.ended - start:.2f} s, felt until {window.until - start:.2f} s"
            )


class Ended(StrEnum):
    """How a request ended, for the account."""

    FRESH = "from upstream"
    HIT = "hit"
    STALE = "stale"
    BROKE = "broke off"
    FAILED = "failed"
    LEFT = "client left"


@dataclass(slots=True)
class ChaosJudge:
    """Judges one result after the other; `accounts` counts by kind, sky, and ending."""

    weather: Weather
    ledger: Ledger
    complaints: list[Complaint] = field(default_factory=list)
    accounts: Counter[tuple[str, Sky, Ended]] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0

    def judge(self, result: Result) -> Complaint | None:
        """Count it, and complain where it is not right and not explained."""
        model = model_of(result.ask)
        sky = self.weather.sky(model.chain, result.began, result.ended)
        ended = _ended(result)
        self.accounts[result.ask.kind, sky, ended] += 1
        if ended in {Ended.FAILED, Ended.BROKE}:
            code = _code(result) if result.came is Came.STATUS else None
            self.statuses[f"{result.status or result.came} {code or ''}".strip()] += 1
        if result.came is Came.LEFT:
            return None
        seconds = result.ended - result.began
        self.slowest = max(self.slowest, seconds)
        calls = self.ledger.of(digests_of(result.ask), result.began - _BEFORE_SECONDS, result.ended)
        found = self._fault(result, model, calls)
        if result.came is Came.HUNG or result.ended > self._due(result, calls):
            found = (Fault.STUCK, f"{seconds:.2f} s, {result.came} {result.note}")
        if found is None:
            return None
        windows = self._windows(result, model)
        complaint = Complaint(found[0], result, found[1], calls, windows)
        self.complaints.append(complaint)
        return complaint

    def _windows(self, result: Result, model: Model) -> list[Window]:
        """Whatever may have made it slow, or worse."""
        began, ended = result.began, result.ended
        of_chain = self.weather.of_chain(model.chain, began, ended)
        return of_chain + self.weather.at(began, ended, REDIS, WORKER, HASTE)

    def _due(self, result: Result, calls: Sequence[Call]) -> float:
        """When it has to be over. A busy machine makes everything late.

        Who follows another's request which fails joins the next one, and then asks upstream itself.
        The client's own time counts from its beginning all the same.
        """
        late = self.weather.lost_seconds(result.began, result.ended, MACHINE)
        if (hurry := hurry_of(result.ask)) is not None:
            return result.began + hurry + MARGIN_SECONDS + late
        asked = result.began
        for _ in range(_MOST_FOLLOWED):
            others = [
                min(call.ended, call.began + TOTAL_SECONDS)
                for call in calls
                if call.began < asked + _LEAD_SECONDS and not call.went_well
            ]
            asked = max([asked, *others])
        if asked > result.began and self.weather.at(result.began, result.ended, REDIS, WORKER):
            asked += _LOST_SECONDS
        return asked + TOTAL_SECONDS + MARGIN_SECONDS + late

    def _fault(
        self, result: Result, model: Model, calls: Sequence[Call]
    ) -> tuple[Fault, str] | None:
        match result.came:
            case Came.WRONG:
                return Fault.WRONG, result.note
            case Came.WHOLE:
                return self._fault_of_whole(result, model, calls)
            case Came.SHORTENED:
                early = any(call.trouble is Trouble.SHORT for call in calls)
                return None if early else (Fault.SHORTENED, result.note)
            case Came.BROKEN | Came.NO_ANSWER:
                why = self._broke(result, model, calls)
            case _:
                why = self._explained(result, model, calls)
        said = f"{result.came} {result.status} {result.note}"
        return None if why is None else (Fault.FAILED, f"{said}: {why}")

    def _fault_of_whole(
        self, result: Result, model: Model, calls: Sequence[Call]
    ) -> tuple[Fault, str] | None:
        if (old := self._age(result, model)) is not None:
            return Fault.TOO_OLD, old
        if result.x_cache != "STALE":
            return None
        why = self._explained(result, model, calls)
        return None if why is None else (Fault.STALE, f"{result.cache_status}: {why}")

    def _age(self, result: Result, model: Model) -> str | None:
        allowed = model.ttl + (model.stale_if_error if result.x_cache == "STALE" else 0.0)
        for stamp in result.stamps:
            call = self.ledger.numbered(stamp.number)
            if call is None:
                return f"{result.x_cache}, more than a minute old"
            # Its time runs from when it was stored, and the proxy may not have been run at once.
            stored_by = call.ended + _STORED_SECONDS
            slack = _AGE_SLACK_SECONDS + self.weather.lost_seconds(call.ended, stored_by, HASTE)
            if (age := result.began - call.ended) > allowed + slack:
                return f"{result.x_cache}, {age:.2f} s old, {allowed} s allowed"
        return None

    def _broke(self, result: Result, model: Model, calls: Sequence[Call]) -> str | None:
        """None where an answer may have broken off, else why not."""
        began, ended = result.began, result.ended
        if self.weather.at(began, ended, WORKER):
            return None
        if result.came is Came.NO_ANSWER:
            return "no worker was killed"
        if any(call.trouble in IN_BODY for call in calls):
            return None
        # Another worker's leader tells over Redis, and has to say in time that it goes on.
        if result.collapsed and self.weather.at(began, ended, REDIS, MACHINE):
            return None
        silent = self.weather.lost_seconds(began, ended, MACHINE) >= BETWEEN_BYTES_SECONDS
        if silent or self._is_out_of_time(result, model):
            return None
        return "its upstream call did not break"

    def _is_out_of_time(self, result: Result, model: Model) -> bool:
        """Whether the client's own time was over, or that of the proxy, and something was slow."""
        given, seconds = hurry_of(result.ask) or TOTAL_SECONDS, result.ended - result.began
        return seconds >= given - _EARLY_SECONDS and bool(self._windows(result, model))

    def _explained(self, result: Result, model: Model, calls: Sequence[Call]) -> str | None:
        """None where there had to be an error, else why not."""
        code = _code(result)
        if self._is_out_of_time(result, model) or len(calls) >= MAX_ATTEMPTS:
            return None
        if any(call.trouble in FINAL for call in calls):
            return None
        if code == "client_deadline":
            return "the client's time was not over, or nothing was slow"
        out = self.weather.chain_out(model.chain, result.began, result.ended)
        if result.ask.path:
            failed = any(not call.went_well for call in calls)
            return None if failed or out else "its call did not fail"
        if not out:
            return "an upstream was well"
        return _fits(result, code, calls, self._windows(result, model))


def _fits(
    result: Result, code: str | None, calls: Sequence[Call], windows: Sequence[Window]
) -> str | None:
    """None where what was broken can be the reason for this error, else why not.

    Troubles add up: a refused key stays so while its upstream stalls and no probe is answered.
    """
    if code == "upstream_failing":
        return None  # its status is in the header of a stale answer
    if code in _REASONS:
        fits = any(window.trouble in _REASONS[code] for window in windows)
        return None if fits else f"nothing broken that could be the reason for {code}"
    if any(call.status == result.status for call in calls):
        return None
    return f"no upstream answered {result.status}"


def _ended(result: Result) -> Ended:
    match result.came:
        case Came.LEFT:
            return Ended.LEFT
        case Came.WHOLE:
            stored = {"HIT": Ended.HIT, "STALE": Ended.STALE}
            return stored.get(result.x_cache, Ended.FRESH)
        case Came.BROKEN | Came.SHORTENED | Came.WRONG:
            return Ended.BROKE
        case _:
            return Ended.FAILED


def _code(result: Result) -> str | None:
    """What the proxy's own error says, or the header of a stale answer."""
    if result.x_cache == "STALE":
        found = re.search(r'stale-if-error:(\w+)"', result.cache_status)
    else:
        found = _CODE.search(result.note)
    code = found[1] if found else None
    ours = code is not None and code.startswith(("upstream_", "client_"))
    return code if ours else None


def model_of(ask: Ask) -> Model:
    """Its chain and its rule."""
    return THROUGH if ask.path else MODELS[ask.model]


def digests_of(ask: Ask) -> list[str]:
    """The contents that it asks for."""
    if ask.path:
        return [through_digest(ask.path, ask.body)]
    if ask.is_chat:
        return [chat_digest(ask.body)]
    return [item_digest(ask.model, item) for item in ask.items]
