"""One upstream request for some items of a batch, and what its answer makes of each (B30, B31)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, ParamSpec, TypeVar

from proxy.clock import Clock
from proxy.core.batches import Cut, cut
from proxy.core.coding import UnreadableCoding, decoder, readable_accept_encoding
from proxy.core.entry import Entry, Form, Usage
from proxy.core.freshness import jittered
from proxy.core.items import INPUT, Item
from proxy.core.key import CacheKey
from proxy.core.recording import NotStored, Recording
from proxy.core.shares import split_counts
from proxy.core.splice import set_members
from proxy.core.transcript import read_usage, usage_in
from proxy.core.wire import JsonValue, media_type, text_of
from proxy.engine.plan import Plan
from proxy.engine.reading import read_up_to
from proxy.engine.storing import entry_of, lifetime_of, refusal
from proxy.upstream.base import Exchange, Forwarder, Outgoing

P = ParamSpec("P")
T = TypeVar("T")

# Longer bodies are read and written in a thread.
INLINE_BYTES: Final = 64 * 1024
# An answer is held whole up to here: 2048 vectors of 3072 numbers in decimals take 140 MB.
_LONGEST_ANSWER_BYTES: Final = 256 * 1024 * 1024
_LONGEST_ERROR_BYTES: Final = 1024 * 1024
_OK: Final = 200
_JSON: Final = "application/json"


@dataclass(frozen=True, slots=True)
class Want:
    """An item that is to be asked for; `replaces`: a fresh entry may be there."""

    key: CacheKey
    store_key: str
    value: Item
    replaces: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What one upstream request came to.

    `unchanged`: the request was the client's own. `body` is the answer's, in its coding; with a
    `rest` it was too long to be held, and whoever takes that closes the response. `wrong` says why
    it is no answer to these items, `refused` why a good one is not stored. `entries` are in the
    order of `wants`: there are none where the client's own request was answered and nothing is
    stored. `usage` is what the upstream billed.
    """

    wants: Sequence[Want]
    exchange: Exchange
    unchanged: bool
    body: bytes
    rest: AsyncIterator[bytes] | None = None
    wrong: NotStored | None = None
    refused: NotStored | None = None
    in_order: bool = True
    entries: Sequence[Entry] = ()
    usage: Usage | None = None

    @property
    def passes(self) -> bool:
        """True where the body is what the client asked for, as it stands."""
        return self.unchanged and self.in_order


@dataclass(frozen=True, slots=True)
class Asking:
    """Asks upstreams for items, under one configuration."""

    forwarder: Forwarder
    clock: Clock

    async def ask(self, plan: Plan, wants: Sequence[Want], *, unchanged: bool) -> Asked:
        """Ask for these items; `unchanged` sends the client's own body. Raises `UpstreamError`."""
        body = plan.call.body
        if not unchanged:
            values: list[JsonValue] = [want.value for want in wants]
            body = await in_thread_if_long(len(body), set_members, body, {INPUT: values})
        began = self.clock.monotonic()
        exchange = await self.forwarder.send(plan.chain, _outgoing(plan, body))
        try:
            asked = await self._read(plan, Asked(wants, exchange, unchanged, b""), began)
        except BaseException:  # cancellation too: no response stays behind that nobody reads
            await exchange.response.aclose()
            raise
        if asked.usage is not None:
            exchange.spent(asked.usage.prompt_tokens + asked.usage.completion_tokens)
        if asked.rest is None:
            await exchange.response.aclose()
        return asked

    async def _read(self, plan: Plan, asked: Asked, began: float) -> Asked:
        response = asked.exchange.response
        if response.status != _OK:
            read, rest = await read_up_to(response, _LONGEST_ERROR_BYTES)
            return replace(asked, body=b"".join(read), rest=rest, wrong=NotStored.STATUS)
        if media_type(response.headers) != _JSON:
            stream = response.aiter_raw() if asked.unchanged else None
            return replace(asked, rest=stream, wrong=NotStored.CONTENT_TYPE)
        read, rest = await read_up_to(response, _LONGEST_ANSWER_BYTES)
        asked = replace(asked, body=b"".join(read), rest=rest if asked.unchanged else None)
        if rest is not None:
            return replace(asked, wrong=NotStored.TOO_LARGE)
        took, now = self.clock.monotonic() - began, self.clock.wall()
        return await in_thread_if_long(len(asked.body), _judged, plan, asked, now, took)


async def in_thread_if_long(
    size: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """The result of `work`, which takes time in proportion to `size` bytes."""
    if size <= INLINE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


def _outgoing(plan: Plan, body: bytes) -> Outgoing:
    headers = plan.call.headers
    return Outgoing(
        method="POST",
        path=plan.call.path,
        query=plan.call.query,
        headers=(
            *(pair for pair in headers if pair[0] != b"accept-encoding"),
            (b"accept-encoding", readable_accept_encoding(headers)),
        ),
        body=body,
        party=plan.call.identity.party,
        awaited=_LONGEST_ANSWER_BYTES,
    )


def _judged(plan: Plan, asked: Asked, now: float, took: float) -> Asked:
    headers = asked.exchange.response.headers
    try:
        body = decoder(text_of(headers, b"content-encoding")).feed(asked.body)
    except UnreadableCoding:
        return replace(asked, wrong=NotStored.CONTENT_CODING)
    found = cut(body, len(asked.wants))
    if isinstance(found, NotStored):
        return replace(asked, wrong=found, usage=usage_in(body))
    refused = refusal(plan, asked.exchange)
    asked = replace(asked, refused=refused, in_order=found.in_order, usage=read_usage(found.counts))
    if refused is not None and asked.passes:
        return asked
    entries = _entries(plan, asked, found, body, now, took)
    # What is not passed on as it came lives on in the entries alone.
    return replace(asked, entries=entries, body=asked.body if asked.passes else b"")


def _entries(
    plan: Plan, asked: Asked, found: Cut, body: bytes, now: float, took: float
) -> list[Entry]:
    """An entry for each item, as if it had been asked for alone."""
    rule = plan.derivation.rule
    assert rule is not None
    wants, exchange = asked.wants, asked.exchange
    lifetime = lifetime_of(rule, exchange)
    # The answer to one item is stored as it came.
    whole = Recording(Form.JSON, body, asked.usage, ())
    like = entry_of(plan, rule, exchange, whole, store_key=wants[0].store_key, now=now, took=took)
    stale_seconds = like.expires_at - like.fresh_until
    costs = split_counts(found.counts or {}, [want.value for want in wants])
    entries: list[Entry] = []
    for place, want in enumerate(wants):
        fresh_until = now + jittered(lifetime, rule.ttl_jitter, want.key.digest)
        cost = costs[place] if found.counts is not None else None
        entries.append(
            replace(
                like,
                key=want.store_key,
                fresh_until=fresh_until,
                expires_at=fresh_until + stale_seconds,
                usage=read_usage(cost),
                payload=body if len(wants) == 1 else found.alone(place, cost),
            )
        )
    return entries
