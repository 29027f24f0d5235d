"""What goes back for a batch: joined from entries, or as the upstream gave it; and its outcome."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from proxy.clock import Clock
from proxy.core.cache_status import outcome_headers
from proxy.core.coding import gzipped, wants_gzip
from proxy.core.decision import StaleHit
from proxy.core.entry import Usage
from proxy.core.outcome import Forwarded, MissReason, Outcome, XCache
from proxy.core.recording import NotStored
from proxy.core.shares import added_usage
from proxy.core.stored_headers import forwarded_headers, shown_request_id
from proxy.core.trailers import Trailers
from proxy.core.wire import Headers
from proxy.engine.account import answerer
from proxy.engine.base import Answer, BodyStream, HeaderList, Observer
from proxy.engine.batch import Batch
from proxy.engine.item_asking import Asked, in_thread_if_long
from proxy.engine.item_fetch import Fetch
from proxy.engine.outcomes import outcome_of, stale_outcome
from proxy.errors import UpstreamError, UpstreamProtocolError

_OK = 200
_NOT_OF_A_JOINED_BODY = frozenset({b"content-encoding", b"content-length"})


class BatchAnswers:
    """Makes answers to batches, and tells their outcomes."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer

    async def joined(self, batch: Batch) -> Answer:
        """The answer to a batch that has an entry for every item."""
        source = batch.asked[0].exchange.response if batch.asked else batch.entries[batch.keys[0]]
        return await self._joined(batch, source.headers, self._outcome)

    async def stale(self, batch: Batch, error: UpstreamError) -> Answer:
        """The same where some entries are stale, and serve because the upstream fails."""
        hit = self._stalest(batch)

        def outcome(batch: Batch) -> Outcome:
            now = self._clock.monotonic()
            forwarded = replace(
                outcome_of(batch.plan, XCache.STALE, now, forwarded=Forwarded.STALE),
                digest=None,
                items=len(batch),
                item_hits=sum(key in batch.hits for key in batch.keys),
                items_collapsed=0,
                billed=added_usage(asked.usage for asked in batch.asked) or Usage(),
            )
            return stale_outcome(batch.plan, forwarded, now, hit, error)

        return await self._joined(batch, hit.entry.headers, outcome)

    async def revalidating(self, batch: Batch, *, fetched: bool) -> Answer:
        """The same where some entries are stale, and serve at once; `fetched`: new ones are."""
        hit = replace(self._stalest(batch), revalidate=fetched)

        def outcome(batch: Batch) -> Outcome:
            told = outcome_of(batch.plan, XCache.STALE, self._clock.monotonic(), hit)
            # No one key stands for all items.
            return replace(told, digest=None, items=len(batch), item_hits=len(batch))

        return await self._joined(batch, hit.entry.headers, outcome)

    def _stalest(self, batch: Batch) -> StaleHit:
        oldest = min(batch.entries.values(), key=lambda entry: entry.fresh_until)
        return StaleHit.of(batch.key_of(oldest.key), oldest, self._clock.wall())

    async def _joined(
        self, batch: Batch, source: Headers, outcome_of_it: Callable[[Batch], Outcome]
    ) -> Answer:
        body, usage, coding = await in_thread_if_long(batch.bytes, _written, batch)
        headers = [
            pair
            for pair in forwarded_headers(source)
            if pair[0].lower() not in _NOT_OF_A_JOINED_BODY
        ]
        if coding is not None:
            headers.append((b"content-encoding", coding))
        outcome = replace(outcome_of_it(batch), usage=usage)
        self._observer.told(outcome)
        return _answer(batch, outcome, headers, body)

    def passed(self, batch: Batch, fetch: Fetch, asked: Asked) -> Answer:
        """The upstream's own answer, good or not, as it came.

        Raises `UpstreamProtocolError` for a wrong one to a request that was not the client's own.
        """
        if asked.wrong is not None and asked.wrong is not NotStored.STATUS and not asked.unchanged:
            raise UpstreamProtocolError(
                f"The upstream's answer is not one embedding for each input: {asked.wrong.value}."
            )
        batch.account(fetch)
        batch.not_stored = batch.not_stored or (asked.wrong.value if asked.wrong else "")
        response = asked.exchange.response
        outcome = replace(self._outcome(batch, asked), status=response.status, usage=asked.usage)
        headers = forwarded_headers(response.headers)
        body: bytes | BodyStream = asked.body
        if asked.rest is None:
            self._observer.told(outcome)
        else:
            body = _Relayed(asked, asked.rest, self._telling(outcome, batch.plan.started))
        return _answer(batch, outcome, headers, body, response.trailers)

    def _telling(self, outcome: Outcome, started: float) -> Callable[[bool], None]:
        def tell(complete: bool) -> None:  # noqa: FBT001 -- the one thing to say
            duration = self._clock.monotonic() - started
            self._observer.told(replace(outcome, complete=complete, duration_seconds=duration))

        return tell

    def _outcome(self, batch: Batch, source: Asked | None = None) -> Outcome:
        """What is known of it, but for the usage; `source` is the answer that passes."""
        plan, reason = batch.plan, batch.reason
        source = source or (batch.asked[0] if batch.asked else None)
        outcome = outcome_of(
            plan, XCache.HIT if reason is None else XCache.MISS, self._clock.monotonic()
        )
        sent = sum(len(asked.wants) for asked in batch.asked)
        hits = sum(key in batch.hits for key in batch.keys)
        outcome = replace(
            outcome,
            status=_OK,
            digest=None,  # no one key stands for all items
            items=len(batch),
            item_hits=hits,
            items_collapsed=len(batch) - hits - sent,
        )
        now = self._clock.wall()
        entries = batch.entries.values() or [e for each in batch.asked for e in each.entries]
        ttl = min((entry.fresh_until for entry in entries), default=now) - now
        if reason is None:
            age = now - min(entry.stored_at for entry in entries)
            return replace(outcome, ttl_seconds=ttl, age_seconds=max(0.0, age))
        outcome = replace(
            outcome,
            forwarded=reason.forwarded,
            detail=f"{MissReason.PARTIAL.value}:{hits}/{len(batch)}"
            if hits
            else reason.reason.value,
            billed=added_usage(asked.usage for asked in batch.asked) or Usage(),
            collapsed=source is None,
        )
        if source is None:
            return outcome
        stored = not batch.not_stored
        response = source.exchange.response
        return replace(
            outcome,
            forward_status=response.status,
            **answerer(source.exchange),
            stored=stored,
            not_stored=batch.not_stored or None,
            ttl_seconds=ttl if stored else None,
            request_id=shown_request_id(response.headers) or outcome.request_id,
        )


class _Relayed:
    """A body too long to be held, as it comes; `tell` hears how it ended."""

    def __init__(
        self, asked: Asked, rest: AsyncIterator[bytes], tell: Callable[[bool], None]
    ) -> None:
        self._response = asked.exchange.response
        self._first = asked.body
        self._rest = rest
        self._tell: Callable[[bool], None] | None = tell

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            if self._first:
                yield self._first
            self._first = b""
            async for chunk in self._rest:
                yield chunk
        except UpstreamError:
            self._end(complete=False)
            raise
        self._end(complete=True)

    async def aclose(self) -> None:
        """Let go of the upstream; safe to call twice."""
        self._end(complete=False)
        await self._response.aclose()

    def _end(self, *, complete: bool) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(complete)


def _written(batch: Batch) -> tuple[bytes, Usage | None, bytes | None]:
    """The answer's body, what it costs, and its coding."""
    body, usage = batch.joined()
    if wants_gzip(batch.plan.call.headers):
        return gzipped(body), usage, b"gzip"
    return body, usage, None


def _answer(
    batch: Batch,
    outcome: Outcome,
    headers: HeaderList,
    body: bytes | BodyStream,
    trailers: Trailers | None = None,
) -> Answer:
    if not any(name.lower() == b"x-request-id" for name, _ in headers):
        headers.append((b"x-request-id", outcome.request_id.encode("ascii")))
    headers += outcome_headers(outcome, with_key=batch.with_key)
    return Answer(outcome.status, headers, body, trailers=trailers)
