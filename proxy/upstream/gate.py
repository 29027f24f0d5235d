"""The gate before one upstream: requests wait here for their turn, or are sent away."""

import asyncio
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from proxy.clock import Clock
from proxy.errors import UpstreamBusy
from proxy.upstream.queueing import FairQueue, QueuePolicy, Ticket

# How much the last answer says of how long a slot is held.
_WEIGHT: Final = 0.2
_LONGEST_RETRY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class GateState:
    """How full it is at one moment."""

    in_use: int
    waiting: int


class Slot:
    """The right to ask the upstream; leaving twice is leaving once."""

    def __init__(self, gate: "Gate", since: float, waited: float) -> None:
        self.waited_seconds = waited
        self._gate: Gate | None = gate
        self._since = since

    def leave(self) -> None:
        """Let the next one in."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.left(self._since)


class Gate:
    """Lets requests to one upstream through, under one policy; a reload may change that."""

    def __init__(self, name: str, policy: QueuePolicy, clock: Clock) -> None:
        self._name = name
        self._clock = clock
        self._queue = FairQueue(policy)
        self._turns: dict[Ticket, asyncio.Future[bool]] = {}
        self._held_seconds: float | None = None

    @property
    def state(self) -> GateState:
        """How full it is now."""
        return GateState(self._queue.in_use, self._queue.waiting)

    def change(self, policy: QueuePolicy) -> None:
        """Go on under another policy."""
        self._call(self._queue.change(policy))

    async def enter(self, party: str, patience: float | None) -> Slot:
        """A slot, at once or in turn, within the policy's time and `patience` (seconds).

        Raises `UpstreamBusy`. Who is cancelled meanwhile leaves nothing behind.
        """
        began = self._clock.monotonic()
        arrival = self._queue.arrive(party)
        if arrival.displaced is not None:
            self._tell(arrival.displaced, is_in=False)
        if arrival.ticket is None:
            raise self._busy("too many requests wait for it already", "upstream_queue_full")
        if not arrival.ticket.admitted:
            await self._turn(arrival.ticket, patience)
        now = self._clock.monotonic()
        return Slot(self, now, now - began)

    def left(self, since: float) -> None:
        """A slot taken at `since` (monotonic seconds) is free again."""
        held = self._clock.monotonic() - since
        before = held if self._held_seconds is None else self._held_seconds
        self._held_seconds = before + _WEIGHT * (held - before)
        self._call(self._queue.leave())

    async def _turn(self, ticket: Ticket, patience: float | None) -> None:
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._turns[ticket] = turn
        seconds = self._queue.policy.max_wait_seconds
        try:
            async with asyncio.timeout(seconds if patience is None else min(seconds, patience)):
                is_ours = await turn
        except BaseException as error:  # cancellation too: the place, or the slot, goes to others
            if self._turns.pop(ticket, None) is not None:
                self._queue.give_up(ticket)
            elif ticket.admitted:
                self._call(self._queue.leave())
            if not isinstance(error, TimeoutError):
                raise
            raise self._busy("the wait for it was too long", "upstream_queue_timeout") from None
        if not is_ours:
            raise self._busy("others, who ask less, go first", "upstream_queue_full")

    def _call(self, admitted: Iterable[Ticket]) -> None:
        for ticket in admitted:
            self._tell(ticket, is_in=True)

    def _tell(self, ticket: Ticket, *, is_in: bool) -> None:
        turn = self._turns.pop(ticket)
        if not turn.done():  # else its waiter was cancelled just now, and gives the slot back
            turn.set_result(is_in)

    def _busy(self, why: str, code: str) -> UpstreamBusy:
        return UpstreamBusy(
            f"As many requests as the upstream {self._name!r} may have are under way, and {why}.",
            code=code,
            retry_after_seconds=self._seconds_to_turn(),
        )

    def _seconds_to_turn(self) -> float:
        """About how long a line as it is now takes."""
        lines = (self._queue.waiting + 1) / self._queue.policy.max_concurrent
        seconds = math.ceil((self._held_seconds or 0.0) * lines)
        return min(max(1.0, seconds), _LONGEST_RETRY_SECONDS)
