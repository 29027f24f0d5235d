"""Forwarding a call: send it, relay what comes, record beside, and store what deserves it."""

import asyncio

import orjson

from proxy.clock import Clock
from proxy.core.cache_status import outcome_headers
from proxy.core.coding import Decoder, UnreadableCoding, decoder, readable_accept_encoding
from proxy.core.entry import Usage
from proxy.core.outcome import Outcome
from proxy.core.recording import NotStored, Recording, StreamRecorder, UsageFilter, judge_json
from proxy.core.stored_headers import forwarded_headers
from proxy.core.transcript import read_usage
from proxy.core.wire import Headers
from proxy.engine.base import Answer, BodyStream, HeaderList, Observer
from proxy.engine.entries import Entries
from proxy.engine.plan import Plan
from proxy.engine.reading import read_up_to
from proxy.engine.settlement import Settlement
from proxy.engine.streaming import RecordedStream, RelayedBody
from proxy.upstream.base import Forwarder, Outgoing

# A longer body is decoded and parsed in a thread.
_INLINE_BYTES = 128 * 1024


class Forwarding:
    """Sends calls upstream and makes answers, and entries, of what comes back."""

    def __init__(
        self, entries: Entries, forwarder: Forwarder, clock: Clock, observer: Observer
    ) -> None:
        self._entries = entries
        self._forwarder = forwarder
        self._clock = clock
        self._observer = observer

    async def forward(
        self, plan: Plan, outcome: Outcome, store_key: str | None, *, with_key: bool
    ) -> Answer:
        """The upstream's answer; `store_key` None leaves the store alone.

        Raises `UpstreamError`.
        """
        exchange = await self._forwarder.send(plan.chain, _outgoing(plan, store_key))
        settlement = Settlement(
            plan,
            exchange,
            outcome,
            store_key,
            entries=self._entries,
            clock=self._clock,
            observer=self._observer,
        )
        if _media_type(exchange.response.headers) == b"text/event-stream":
            return _answer(settlement, _recorded_stream(settlement), with_key=with_key)
        try:
            body = await _whole_body(settlement)
        except BaseException:  # cancellation too: no response stays behind that nobody reads
            await exchange.response.aclose()
            raise
        return _answer(settlement, body, with_key=with_key)


def _outgoing(plan: Plan, store_key: str | None) -> Outgoing:
    """The call as it goes upstream: byte for byte, but for the codings where it is recorded."""
    headers = plan.call.headers
    if store_key is not None:
        # A stream out of which the usage chunk is taken can't be relayed in a coding.
        coding = b"identity" if plan.wanted.stream else readable_accept_encoding(headers)
        headers = (
            *(pair for pair in headers if pair[0] != b"accept-encoding"),
            (b"accept-encoding", coding),
        )
    return Outgoing(
        method="POST",
        path=plan.call.path,
        query=plan.call.query,
        headers=headers,
        body=plan.call.body,
        request_usage=store_key is not None and plan.wanted.stream,
    )


async def _whole_body(settlement: Settlement) -> bytes | BodyStream:
    response = settlement.exchange.response
    read, rest = await read_up_to(response, settlement.max_bytes)
    if rest is not None:
        return RelayedBody(settlement, read, rest)
    await response.aclose()
    body = b"".join(read)
    if len(body) <= _INLINE_BYTES:
        verdict, usage = _judged(settlement, body)
    else:
        verdict, usage = await asyncio.to_thread(_judged, settlement, body)
    settlement.judge(verdict, usage)
    settlement.end(complete=True)
    return body


def _judged(settlement: Settlement, coded: bytes) -> tuple[Recording | NotStored, Usage | None]:
    response = settlement.exchange.response
    try:
        body = decoder(_text(response.headers, b"content-encoding")).feed(coded)
    except UnreadableCoding:
        return NotStored.CONTENT_CODING, None
    verdict = judge_json(
        settlement.plan.call.endpoint,
        response.status,
        _text(response.headers, b"content-type") or "",
        body,
        store_finish_reasons=settlement.finish_reasons,
        max_bytes=settlement.max_bytes,
        items=settlement.plan.items,
    )
    return verdict, verdict.usage if isinstance(verdict, Recording) else _usage_in(body)


def _usage_in(body: bytes) -> Usage | None:
    """What an answer that is not stored cost all the same."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return read_usage(answer.get("usage")) if isinstance(answer, dict) else None


def _recorded_stream(settlement: Settlement) -> RecordedStream:
    recorder = StreamRecorder(
        store_finish_reasons=settlement.finish_reasons,
        max_bytes=settlement.max_bytes if settlement.records else 0,
        choices=settlement.plan.items,
    )
    decode: Decoder | None
    try:
        decode = decoder(_text(settlement.exchange.response.headers, b"content-encoding"))
    except UnreadableCoding:
        decode = None
    takes_usage_out = settlement.exchange.usage_requested and decode is not None
    return RecordedStream(settlement, recorder, decode, UsageFilter() if takes_usage_out else None)


def _answer(settlement: Settlement, body: bytes | BodyStream, *, with_key: bool) -> Answer:
    response, outcome = settlement.exchange.response, settlement.outcome
    headers: HeaderList = forwarded_headers(response.headers)
    if isinstance(body, RecordedStream):
        if body.rewrites:
            headers = [pair for pair in headers if pair[0].lower() != b"content-encoding"]
        headers.append((b"x-accel-buffering", b"no"))
    if not any(name.lower() == b"x-request-id" for name, _ in headers):
        headers.append((b"x-request-id", outcome.request_id.encode("ascii")))
    headers += outcome_headers(outcome, with_key=with_key)
    return Answer(response.status, headers, body)


def _media_type(headers: Headers) -> bytes:
    value = _text(headers, b"content-type") or ""
    return value.partition(";")[0].strip().lower().encode("latin-1")


def _text(headers: Headers, name: bytes) -> str | None:
    for key, value in headers:
        if key.lower() == name:
            return value.decode("latin-1")
    return None
