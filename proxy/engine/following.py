"""Following a flight that another worker or replica leads: its records become ours."""

from dataclasses import dataclass
from typing import Any

import orjson

from proxy.coalesce.base import FlightEnd, Followed, Landed, Lease, Published
from proxy.core.marks import Verdict
from proxy.core.recording import UsageFilter
from proxy.engine.broadcast import Piece
from proxy.engine.flight import Flight, Head
from proxy.engine.generations import Generations


@dataclass(frozen=True, slots=True)
class _Leader:
    """What a leader elsewhere says of its call, for purges to look at."""

    key: str
    rule: str
    model: str
    tenant: str
    tags: tuple[str, ...]
    stored_at: float
    generation: int


async def share(flight: Flight, lease: Lease) -> None:
    """Publish a streamed flight to followers elsewhere, from its first byte on."""
    head = await flight.headed()
    if head is None or not head.is_stream or head.is_opaque or not flight.body.is_whole:
        return  # they wait for the entry
    reader = flight.body.reader(trimmed=False)
    try:
        await lease.publish([_head_record(flight, head)])
        while (chunk := await reader.read()) is not None:
            await lease.publish([chunk])
    finally:
        reader.leave()


class Following:
    """One flight's way along a leader elsewhere."""

    def __init__(self, flight: Flight, followed: Followed, generations: Generations) -> None:
        self._flight = flight
        self._followed = followed
        self._generations = generations
        self._headed = False
        self._filter: UsageFilter | None = None

    async def run(self) -> FlightEnd:
        """Hand on what the leader publishes until it lands.

        Raises `StoreUnavailable` and `FellBehind`.
        """
        live = self._flight.plan.wanted.stream
        async for event in self._followed.events(live=live):
            match event:
                case Published(records=records):
                    for record in records:
                        if not await self._take(record):
                            return FlightEnd.UNCACHEABLE
                case Landed(end=end):
                    return end
        return FlightEnd.ABANDONED

    async def _take(self, record: bytes) -> bool:
        """Hand one record on; False where a purge came between, so that this is not to be had."""
        flight = self._flight
        if self._headed:
            trimmed = self._filter.feed(record) if self._filter is not None else record
            flight.body.append(Piece(record, trimmed))
            return True
        self._headed = True
        told: dict[str, Any] = orjson.loads(record)
        if self._generations.verdict(_leader(flight, told)) is not Verdict.LIVE:
            return False
        head = _head(told)
        self._filter = UsageFilter() if head.trims else None
        flight.collapsed = True
        flight.begin(head)
        await flight.reading()
        return True


def _head_record(flight: Flight, head: Head) -> bytes:
    return orjson.dumps(
        {
            "status": head.status,
            "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in head.headers],
            "upstream": head.upstream,
            "has_usage": head.has_usage,
            "rule": flight.rule,
            "tenant": flight.tenant,
            "tags": flight.tags,
            "stored_at": flight.stored_at,
            "generation": flight.generation,
        }
    )


def _head(told: dict[str, Any]) -> Head:
    return Head(
        status=told["status"],
        headers=tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in told["headers"]),
        is_stream=True,
        upstream=told["upstream"],
        has_usage=told["has_usage"],
        trims=told["has_usage"],
    )


def _leader(flight: Flight, told: dict[str, Any]) -> _Leader:
    return _Leader(
        key=flight.key,
        rule=told["rule"],
        model=flight.model,
        tenant=told["tenant"],
        tags=tuple(told["tags"]),
        stored_at=told["stored_at"],
        generation=told["generation"],
    )
