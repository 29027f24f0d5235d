"""Upstream calls held against requests: each call must have a reason that a client knows of.

The proof does not rest on what the proxies say: a call is explained by one request for the same
content that was sent to the same proxy before, that was not answered from the cache alone, and
that explains no other call, but one that failed and was tried again with the other key. It holds
for a killed proxy too, whose counters are lost.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

from bench.checked import Came, Result
from bench.scrape import Scrape
from bench.soak_judge import Window
from bench.soak_rules import MODELS
from bench.soak_upstream import Ending, UpstreamCall
from bench.stamped import chat_digest, item_digest

# From the answer to the call that it caused in the background, on a busy machine.
_LATE_SECONDS = 2.0
_CLOCK_STEP = 0.01
# From the client that goes to the end of the upstream connection.
_CANCEL_SECONDS = 1.0


@dataclass(slots=True)
class _Reason:
    """One request, and the calls that it can still explain: for each input one, and a retry."""

    opens: float
    closes: float
    left: Counter[str]
    retries: Counter[str]

    def takes(self, call: UpstreamCall) -> bool:
        """Explain the call, if this can."""
        if not self.opens <= call.began <= self.closes:
            return False
        failed = call.ending is Ending.ERROR
        for left in (self.retries, self.left) if failed else (self.left,):
            if all(left[digest] for digest in call.digests):
                left.subtract(call.digests)
                return True
        return False


@dataclass(slots=True)
class _Reasons:
    """The reasons at one proxy, by the digests that they are about."""

    by_digest: defaultdict[str, list[_Reason]] = field(default_factory=lambda: defaultdict(list))

    def add(self, result: Result) -> None:
        digests = digests_of(result)
        reason = _Reason(
            opens=result.began - _CLOCK_STEP,
            closes=result.ended + _LATE_SECONDS,
            left=Counter(set(digests)),
            retries=Counter(set(digests)),
        )
        for digest in set(digests):
            self.by_digest[digest].append(reason)

    def explain(self, call: UpstreamCall) -> bool:
        """Whether a request is left for this call: the one that explains least besides.

        Of equal ones it is the one whose time is over first.
        """
        fitting = sorted(
            self.by_digest[call.digests[0]], key=lambda reason: (len(reason.left), reason.closes)
        )
        return any(reason.takes(call) for reason in fitting)


def digests_of(result: Result) -> list[str]:
    """The contents that a request asks for."""
    ask = result.ask
    if ask.is_chat:
        return [chat_digest(ask.body)]
    return [item_digest(ask.model, item) for item in ask.items]


def unexplained(
    calls: Sequence[UpstreamCall], results: Iterable[Result], losses: Sequence[Window] = ()
) -> list[UpstreamCall]:
    """The calls that no request accounts for.

    In `losses` leaders were lost: who followed them may have asked anew, and is told as collapsed.
    """
    reasons: defaultdict[str, _Reasons] = defaultdict(_Reasons)
    for result in results:
        lost = any(window.overlaps(result.began, result.ended) for window in losses)
        if may_cause_a_call(result) or (result.collapsed and lost):
            reasons[result.ask.proxy].add(result)
    ordered = sorted(calls, key=lambda call: call.began)
    return [call for call in ordered if not reasons[call.proxy].explain(call)]


def cut_short(calls: Sequence[UpstreamCall], results: Iterable[Result]) -> list[UpstreamCall]:
    """Calls that the proxy broke off, though their rule wants them finished for the store."""
    cancelled = {
        digest
        for result in results
        if MODELS[result.ask.model].more.get("on_disconnect") == "cancel" or not _stores(result)
        for digest in digests_of(result)
    }
    return [
        call
        for call in calls
        if call.ending is Ending.CUT and not cancelled.intersection(call.digests)
    ]


def went_on(calls: Sequence[UpstreamCall], results: Sequence[Result]) -> list[UpstreamCall]:
    """Calls that went on long after the only client had left, though their rule cancels them."""
    asked = Counter(digest for result in results for digest in set(digests_of(result)))
    left = {
        digests_of(result)[0]: result.ended
        for result in results
        if result.came is Came.LEFT and MODELS[result.ask.model].more.get("on_disconnect")
    }
    return [
        call
        for call in calls
        if asked[digest := call.digests[0]] == 1
        and call.ended > left.get(digest, inf) + _CANCEL_SECONDS
    ]


def _stores(result: Result) -> bool:
    """False for what a client would not have stored: nobody is left to finish it for."""
    return result.ask.headers.get("cache-control") != "no-store"


def may_cause_a_call(result: Result) -> bool:
    """False where the answer came out of the cache, or out of a call of somebody else."""
    rule = MODELS[result.ask.model]
    refreshes = "refresh_ahead" in rule.more
    if result.x_cache == "HIT":
        return refreshes
    # Told in the headers of whole answers alone; one that failed may have gone on by itself.
    return not (result.collapsed and result.came is Came.WHOLE)


def attempts(scrape: Scrape) -> int:
    """The upstream calls that a proxy has counted."""
    return int(scrape.total("magic_proxy_upstream_attempts_total"))
