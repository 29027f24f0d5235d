"""From a recording to an entry, and the reasons to leave an answer unstored that the call gives."""

from proxy.core.entry import Entry
from proxy.core.freshness import jittered, lifetime_seconds
from proxy.core.recording import NotStored, Recording
from proxy.core.resources import varies_beyond
from proxy.core.rules import Rule
from proxy.core.stored_headers import stored_headers
from proxy.core.wire import Endpoint, Headers, media_type
from proxy.engine.plan import Plan
from proxy.upstream.base import Exchange


def lifetime_of(rule: Rule, exchange: Exchange) -> float:
    """Seconds for which this exchange's answer may be served under the rule."""
    said = [
        value.decode("latin-1")
        for name, value in exchange.response.headers
        if name.lower() == b"cache-control"
    ]
    return lifetime_seconds(
        rule, fallback=exchange.fallback, cache_control=", ".join(said) if said else None
    )


def refusal(plan: Plan, exchange: Exchange) -> NotStored | None:
    """Why the answer may not be stored whatever it is, or None."""
    if plan.control.no_store:
        return NotStored.CLIENT_NO_STORE
    if plan.given_tags is None:
        return NotStored.TOO_MANY_TAGS
    if exchange.response.status != 200:  # noqa: PLR2004  # the one status whose body is an answer
        return NotStored.STATUS
    if plan.call.endpoint is Endpoint.RESOURCE:
        unfit = _unfit(plan, exchange.response.headers)
        if unfit is not None:
            return unfit
    rule = plan.derivation.rule
    if rule is not None and lifetime_of(rule, exchange) <= 0:
        return NotStored.NO_LIFETIME
    return None


def _unfit(plan: Plan, headers: Headers) -> NotStored | None:
    """Why an answer with these headers can't be that of a resource."""
    if media_type(headers) != "application/json":
        return NotStored.CONTENT_TYPE
    return NotStored.VARY if varies_beyond(plan.keyed, headers) else None


def entry_of(
    plan: Plan,
    rule: Rule,
    exchange: Exchange,
    recording: Recording,
    *,
    store_key: str,
    now: float,
    took: float,
) -> Entry:
    """The entry for a recording, fresh from `now` on for the rule's lifetime.

    It is kept for longer where the rule lets it be served stale. `took` is in seconds.
    """
    key = plan.derivation.key
    digest = key.digest if key is not None else ""
    fresh_until = now + jittered(lifetime_of(rule, exchange), rule.ttl_jitter, digest)
    stale_seconds = max(rule.stale_while_revalidate_seconds, rule.stale_if_error_seconds)
    return Entry(
        key=store_key,
        model=plan.chain.model,
        rule=rule.name,
        stored_at=now,
        fresh_until=fresh_until,
        expires_at=fresh_until + stale_seconds,
        form=recording.form,
        status=exchange.response.status,
        headers=stored_headers(_lower(exchange.response.headers)),
        usage=recording.usage,
        payload=recording.payload,
        profile=exchange.profile,
        fallback=exchange.fallback,
        tags=plan.tags,
        tenant=plan.tenant,
        generation=plan.generation,
        took_seconds=took,
    )


def _lower(headers: Headers) -> Headers:
    return tuple((name.lower(), value) for name, value in headers)
