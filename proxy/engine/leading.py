"""Leading a flight: ask the upstream, let all who wait have what comes, record it beside."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd
from proxy.core.coding import Decoder, UnreadableCoding, decoder, readable_accept_encoding
from proxy.core.entry import Usage
from proxy.core.recording import NotStored, Recording, StreamRecorder, judge_json
from proxy.core.transcript import usage_in
from proxy.core.wire import Endpoint, media_type, text_of
from proxy.engine.broadcast import Piece
from proxy.engine.entries import Entries
from proxy.engine.flight import Flight, Head
from proxy.engine.outcomes import is_error
from proxy.engine.plan import Plan
from proxy.engine.reading import read_up_to
from proxy.engine.settlement import Settlement
from proxy.errors import UpstreamError, UpstreamProtocolError
from proxy.upstream.base import Exchange, Forwarder, Outgoing

# A longer body is decoded and parsed, and a longer recording judged, in a thread.
_INLINE_BYTES = 128 * 1024
# So much is decoded at once, and so many times what an entry may have to read the usage in it.
_CODED_BYTES = 4 * 1024
_MOST_PLAIN = 4
_OTHER_FORM = "The worker that asked for this answer died, and a new one came in another form."


@dataclass(frozen=True, slots=True)
class Leader:
    """What it takes to lead flights, under one configuration."""

    entries: Entries
    forwarder: Forwarder
    clock: Clock

    async def fly(
        self,
        flight: Flight,
        *,
        replaces: bool,
        void: Callable[[], bool],
        landed: Callable[[], None],
    ) -> None:
        """Ask the upstream and bring the flight to its end; `landed` is called when that is known.

        A flight that already has a part of its body, from a leader that died, goes on after it
        where the new answer begins in the same way. Raises `UpstreamError`.
        """
        plan = flight.asking
        began = self.clock.monotonic()
        flight.is_asked = True
        exchange = await self.forwarder.send(plan.chain, _outgoing(plan, flight.store_key))
        try:
            flight.settlement = settlement = Settlement(
                plan,
                exchange,
                flight.store_key,
                entries=self.entries,
                clock=self.clock,
                began=began,
                replaces=replaces,
                void=void,
            )
            if media_type(exchange.response.headers) == "text/event-stream":
                await _Stream(flight, settlement, landed).relay()
            else:
                await _whole(flight, settlement, landed)
        finally:
            await exchange.response.aclose()


class _Stream:
    """A streamed answer on its way into the flight.

    The verdict falls before the terminal event is handed on: a client that asks again at once
    finds the entry.
    """

    def __init__(self, flight: Flight, settlement: Settlement, landed: Callable[[], None]) -> None:
        self._flight = flight
        self._settlement = settlement
        self._landed = landed
        exchange = settlement.exchange
        self._recorder = StreamRecorder(
            store_finish_reasons=settlement.finish_reasons,
            max_bytes=settlement.max_bytes if settlement.records else 0,
            choices=settlement.plan.items,
        )
        self._coded = text_of(exchange.response.headers, b"content-encoding") is not None
        self._decoder = _decoder(exchange)
        # In the client's own coding the bytes go through untouched where nobody else reads them.
        self._plain = self._decoder is not None and flight.store_key is not None
        self._recorded_bytes = 0
        self._judged = False

    async def relay(self) -> None:
        """Bring the stream to its end. Raises `UpstreamError` where it breaks."""
        flight, response = self._flight, self._settlement.exchange.response
        flight.begin(self._head())
        await flight.reading()
        try:
            async for raw in response.aiter_raw():
                plain = self._read_along(raw)
                terminal = self._recorder.saw_terminal
                if terminal:
                    await self._judge(ended_well=True)
                self._hand_on(plain if self._plain else raw, terminal=terminal)
                is_worthless = self._is_worthless
                if terminal or is_worthless:
                    self._land()  # who waits for the entry need not wait for the rest
                if is_worthless and flight.is_unattended and not flight.is_shared_elsewhere:
                    flight.abandon()  # whoever begins to read along now must not take it for whole
                    break
                if not flight.body.has_room:
                    await flight.body.room(flight.patience_seconds)
        except UpstreamError:
            await self._judge(ended_well=False)
            raise
        await self._judge(ended_well=True)
        if not flight.body.closed:
            flight.feed.finish()
        self._land()

    def _hand_on(self, piece: bytes, *, terminal: bool) -> None:
        """Let readers have it.

        Where it does not go on as a leader that died began, the stream breaks off for them, and
        the answer goes on for the store, and for those who wait for the whole.
        """
        flight = self._flight
        if flight.body.closed:
            return
        try:
            flight.feed.take(piece, terminal=terminal)
        except UpstreamProtocolError as error:
            flight.body.close(error)

    def _head(self) -> Head:
        exchange = self._settlement.exchange
        headers = exchange.response.headers
        if self._plain:
            headers = tuple(pair for pair in headers if pair[0].lower() != b"content-encoding")
        wants = self._settlement.plan.wanted.include_usage
        return Head(
            status=exchange.response.status,
            headers=headers,
            is_stream=True,
            upstream=exchange.upstream,
            has_usage=(exchange.usage_requested or wants) and not self._is_opaque,
            # Where the client asked for usage itself, others filter it out for themselves.
            trims=exchange.usage_requested and not wants and self._plain,
            is_opaque=self._is_opaque,
            trailers=None if self._plain else exchange.response.trailers,
        )

    @property
    def _is_opaque(self) -> bool:
        return self._coded and not self._plain

    @property
    def _is_worthless(self) -> bool:
        """True once it is known that nothing will be stored."""
        return self._decoder is None or self._recorder.is_refused

    def _land(self) -> None:
        _land(self._flight, self._settlement)
        self._landed()

    def _read_along(self, raw: bytes) -> bytes:
        if self._decoder is None:
            return raw
        try:
            plain = self._decoder.feed(raw)
        except UnreadableCoding as error:
            if self._plain:
                raise UpstreamProtocolError("The stream is not in the coding it names.") from error
            self._decoder = None
            return raw
        self._recorded_bytes += len(plain)
        self._recorder.feed(plain)
        return plain

    async def _judge(self, *, ended_well: bool) -> None:
        if self._judged:
            return
        self._judged = True
        verdict: Recording | NotStored
        if self._decoder is None:
            verdict = NotStored.CONTENT_CODING
        elif self._recorded_bytes <= _INLINE_BYTES:
            verdict = self._recorder.finish(ended_well)
        else:
            verdict = await asyncio.to_thread(self._recorder.finish, ended_well)
        self._settlement.judge(verdict, self._recorder.usage)


async def _whole(flight: Flight, settlement: Settlement, landed: Callable[[], None]) -> None:
    """An answer that is read whole, judged, and then told; or passed on as it comes, if long."""
    response = settlement.exchange.response
    read, rest = await read_up_to(response, settlement.max_bytes)
    if rest is not None:
        await _overlong(flight, settlement, landed, read, rest)
        return
    await response.aclose()
    body = b"".join(read)
    if len(body) <= _INLINE_BYTES:
        judged = _judged(settlement, body)
    else:
        judged = await asyncio.to_thread(_judged, settlement, body)
    settlement.judge(judged.verdict, judged.usage)
    if flight.is_streaming:
        flight.body.close(UpstreamProtocolError(_OTHER_FORM))
    else:
        flight.begin(_json_head(settlement, body, judged.plain))
        flight.body.close()
    _land(flight, settlement)
    landed()


def _land(flight: Flight, settlement: Settlement) -> None:
    """What all who follow are to make of it."""
    if settlement.stored:
        flight.land(FlightEnd.STORED, settlement.entry)
    elif settlement.entry is not None or is_error(settlement.exchange.response.status):
        # Others need not go one by one: the next answer may be a good one, or be kept.
        flight.land(FlightEnd.FAILED, settlement.entry)
    else:
        flight.land(FlightEnd.UNCACHEABLE)


async def _overlong(
    flight: Flight,
    settlement: Settlement,
    landed: Callable[[], None],
    read: list[bytes],
    rest: AsyncIterator[bytes],
) -> None:
    settlement.judge(NotStored.TOO_LARGE, None)
    if flight.is_streaming:
        raise UpstreamProtocolError(_OTHER_FORM)
    flight.begin(_json_head(settlement, None, None))
    # Those who follow go alone, and the leader's client is the only one that gets this body.
    flight.land(FlightEnd.UNCACHEABLE)
    landed()
    await flight.reading()
    if flight.is_unattended:
        return  # the rest may have no end
    for chunk in read:
        flight.body.append(Piece(chunk, chunk))
    read.clear()
    await flight.body.room()
    async for chunk in rest:
        flight.body.append(Piece(chunk, chunk))
        await flight.body.room()
    flight.body.close()


def _json_head(settlement: Settlement, body: bytes | None, plain: bytes | None) -> Head:
    response = settlement.exchange.response
    return Head(
        status=response.status,
        headers=response.headers,
        is_stream=False,
        upstream=settlement.exchange.upstream,
        body=body,
        plain=plain,
        trailers=response.trailers,
    )


def _outgoing(plan: Plan, store_key: str | None) -> Outgoing:
    """The call as it goes upstream: byte for byte, but for the codings where it is recorded."""
    headers = plan.call.headers
    if store_key is not None:
        # A stream that others read, or out of which the usage chunk is taken, can't be in a coding.
        coding = b"identity" if plan.wanted.stream else readable_accept_encoding(headers)
        headers = (
            *(pair for pair in headers if pair[0] != b"accept-encoding"),
            (b"accept-encoding", coding),
        )
    return Outgoing(
        method=plan.call.method,
        path=plan.call.path,
        query=plan.call.query,
        headers=headers,
        body=plan.call.body if plan.call.method == "POST" else None,
        request_usage=store_key is not None and plan.wanted.stream,
        party=plan.call.identity.party,
        awaited=plan.held_bytes,
    )


@dataclass(frozen=True, slots=True)
class _Judged:
    verdict: Recording | NotStored
    usage: Usage | None
    plain: bytes | None


def _judged(settlement: Settlement, coded: bytes) -> _Judged:
    response = settlement.exchange.response
    body = _decoded(text_of(response.headers, b"content-encoding"), coded, settlement.max_bytes)
    if isinstance(body, NotStored):
        return _Judged(body, None, None)
    endpoint = settlement.plan.call.endpoint
    verdict = judge_json(
        endpoint,
        response.status,
        text_of(response.headers, b"content-type") or "",
        body,
        store_finish_reasons=settlement.finish_reasons,
        max_bytes=settlement.max_bytes,
        items=settlement.plan.items,
    )
    if endpoint is Endpoint.RESOURCE:
        return _Judged(verdict, None, body)
    usage = verdict.usage if isinstance(verdict, Recording) else usage_in(body)
    return _Judged(verdict, usage, body)


def _decoded(coding: str | None, coded: bytes, max_bytes: int) -> bytes | NotStored:
    """The plain body; a little of some codings makes gigabytes, which nobody holds."""
    plain: list[bytes] = []
    size = 0
    try:
        reading = decoder(coding)
        for at in range(0, len(coded), _CODED_BYTES):
            plain.append(reading.feed(coded[at : at + _CODED_BYTES]))
            size += len(plain[-1])
            if size > _MOST_PLAIN * max_bytes:
                return NotStored.TOO_LARGE
    except UnreadableCoding:
        return NotStored.CONTENT_CODING
    return plain[0] if len(plain) == 1 else b"".join(plain)


def _decoder(exchange: Exchange) -> Decoder | None:
    try:
        return decoder(text_of(exchange.response.headers, b"content-encoding"))
    except UnreadableCoding:
        return None
