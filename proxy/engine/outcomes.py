"""The outcome of a planned call, as far as it is known."""

from dataclasses import replace

from proxy.core.decision import Hit, StaleHit
from proxy.core.outcome import Forwarded, Outcome, XCache
from proxy.engine.plan import Plan
from proxy.errors import UpstreamError, UpstreamFailing

_FIRST_ERROR = 400
# Why a stale entry was served, beside what went wrong.
_REVALIDATING = "revalidating"
_ON_ERROR = "stale-if-error"
# The account's credit is used up, the upstream gave up waiting, or it is asked too much.
_FAILING = frozenset({402, 408, 429})
_FIRST_FAULT = 500


def is_failing(status: int) -> bool:
    """Whether an upstream that answers so fails: a stale entry may then serve in its place."""
    return status in _FAILING or status >= _FIRST_FAULT


def is_error(status: int) -> bool:
    """Whether an answer of this status is none that was asked for."""
    return status >= _FIRST_ERROR


def outcome_of(
    plan: Plan,
    x_cache: XCache,
    now: float,
    hit: Hit | StaleHit | None = None,
    *,
    forwarded: Forwarded | None = None,
    detail: str | None = None,
) -> Outcome:
    """What is known of a call at monotonic time `now`, of one that was a hit all of it.

    `detail` says why it was none.
    """
    call, derivation = plan.call, plan.derivation
    return Outcome(
        x_cache=x_cache,
        endpoint=call.endpoint.value,
        status=hit.entry.status if hit is not None else 0,
        model=plan.chain.model,
        rule=derivation.rule.name if derivation.rule is not None else None,
        digest=derivation.key.digest if derivation.key is not None else None,
        ttl_seconds=hit.ttl_seconds if hit is not None else None,
        age_seconds=hit.age_seconds if hit is not None else None,
        usage=hit.entry.usage if hit is not None else None,
        forwarded=forwarded,
        detail=_REVALIDATING if isinstance(hit, StaleHit) and hit.revalidate else detail,
        stream=plan.wanted.stream,
        client=call.identity.client,
        request_id=call.request_id,
        duration_seconds=now - plan.started,
    )


def stale_outcome(
    plan: Plan, forwarded: Outcome, now: float, hit: StaleHit, error: UpstreamError
) -> Outcome:
    """The outcome of a forwarded call whose upstream failed by monotonic time `now`."""
    return replace(
        forwarded,
        x_cache=XCache.STALE,
        status=hit.entry.status,
        forward_status=error.answered if isinstance(error, UpstreamFailing) else None,
        ttl_seconds=hit.ttl_seconds,
        age_seconds=hit.age_seconds,
        usage=hit.entry.usage,
        detail=f"{_ON_ERROR}:{error.error_code}",
        duration_seconds=now - plan.started,
    )
