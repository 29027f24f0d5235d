"""A flight: one upstream request that all who ask the same at once share (B40, B41).

It belongs to the engine: a task of its own works on it, and clients come and go. It has a head
(status and headers, or an error), a body in pieces, and an end.
"""

import asyncio
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.coalesce.base import FlightEnd, Lease
from proxy.core.entry import Entry, Usage
from proxy.core.trailers import Trailers
from proxy.core.wire import Headers
from proxy.engine.broadcast import Broadcast
from proxy.engine.feed import Feed
from proxy.engine.plan import Plan
from proxy.errors import ProxyError, UpstreamError

if TYPE_CHECKING:
    from proxy.engine.settlement import Settlement

# What is held of a body that nobody may join and that can't become an entry.
_UNSHARED_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Head:
    """How the answer begins.

    `body` is the whole body where it came whole before anything was said of it (JSON), None where
    it is read piece by piece; `plain` is the same without the content coding, which the leader's
    client alone asked for, None where that can't be read. `has_usage`: a stream's pieces hold the
    usage chunk; `trims`: they can be had without it. `is_opaque`: the pieces are in a coding.
    `upstream` is the upstream's name. `trailers` belong to the body as it came.
    """

    status: int
    headers: Headers
    is_stream: bool
    upstream: str
    body: bytes | None = None
    plain: bytes | None = None
    has_usage: bool = False
    trims: bool = False
    is_opaque: bool = False
    trailers: Trailers | None = None


class Flight:
    """The shared state of one upstream request; its task feeds it, participants read it.

    `key` is the store key, or None where the answer is nobody else's and never stored.
    `settlement` is set by this process's own upstream request, `entry` once there is one, stored or
    not. `refreshes`: it is wanted with nobody waiting.
    """

    def __init__(
        self,
        plan: Plan,
        key: str | None,
        *,
        shared: bool,
        finishes: bool,
        stored_at: float,
        refreshes: bool = False,
    ) -> None:
        self.plan = plan
        self.key = key if key is not None else ""
        self.store_key = key
        self.stored_at = stored_at
        rule = plan.derivation.rule
        self.rule = rule.name if rule is not None else ""
        max_bytes = rule.max_entry_bytes if rule and shared else _UNSHARED_BYTES
        self.body = Broadcast(max_bytes=max_bytes, keeps=shared)
        self.settlement: Settlement | None = None
        self.entry: Entry | None = None
        self.usage: Usage | None = None
        """What a leader elsewhere said that the answer cost."""
        self.end: FlightEnd | None = None
        self.on_absent = False
        """True where there was no entry at all when it began."""
        self.patience_seconds: float | None = None
        """How long a reader may hold up the source, where others elsewhere may wait for the end."""
        self.asks_others = False
        """Whether other workers and replicas are asked who leads."""
        self.lease: Lease | None = None
        """What it holds until it lands, where others are asked and this process leads."""
        self.is_asked = False
        """True once this process has begun to ask the upstream."""
        self.collapsed = False
        """True where another process asked the upstream."""
        self.wanted_live = asyncio.Event()
        """Somebody wants it as a stream."""
        self._streams: Plan | None = None
        self.task: asyncio.Task[None] | None = None
        self.sharing: asyncio.Task[None] | None = None
        """Publishes to followers elsewhere, where there are any."""
        self.is_off_table = False
        self.is_told = False
        """True once it landed while the client that began it waited: its outcome tells the rest."""
        self._finishes = finishes
        self._refreshes = refreshes
        self._participants = 0
        self._led = False
        self._head: Head | None = None
        self._feed: Feed | None = None
        self._error: ProxyError | None = None
        self._headed = asyncio.Event()
        self._landed = asyncio.Event()

    # What purges look at.

    @property
    def model(self) -> str:
        """The internal model name."""
        return self.plan.chain.model

    @property
    def tenant(self) -> str:
        """The client's tenant, "" for none."""
        return self.plan.tenant

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags that the entry will have."""
        return self.plan.tags

    @property
    def generation(self) -> int:
        """The last purge known when the call began."""
        return self.plan.generation

    # What its source says.

    @property
    def is_streaming(self) -> bool:
        """True once it was told that the body comes piece by piece: there is no way back."""
        return self._feed is not None

    @property
    def feed(self) -> Feed:
        """Where the pieces of a stream go that has begun."""
        assert self._feed is not None
        return self._feed

    def begin(self, head: Head) -> None:
        """The head is known. Where a stream has begun already, this one goes on with it.

        Raises `UpstreamProtocolError` where it can't.
        """
        if self._feed is not None:
            self._feed.resume(has_usage=head.has_usage)
            return
        self._head = head
        if head.is_stream:
            self._feed = Feed(self.body, has_usage=head.has_usage, trims=head.trims)
        self._headed.set()

    async def reading(self) -> None:
        """Return when all who waited for the head have begun to read."""
        await asyncio.sleep(0)  # they were woken before, and wait for nothing between

    def land(self, end: FlightEnd, entry: Entry | None = None) -> None:
        """What becomes of the work is known, once; participants that wait for it go on.

        `entry` is what they get, also where it could not be stored.
        """
        if self.end is None:
            self.end = end
            self.entry = entry
            self.is_told = self._led
            self._landed.set()
            self._headed.set()

    def fail(self, error: ProxyError) -> None:
        """There is no answer, or no more of it."""
        if not self.body.closed:
            self.body.close(error)
        if self._head is None:
            self._error = error
        self.land(FlightEnd.FAILED)

    def abandon(self) -> None:
        """Nobody works on it any more; without effect on one that came to its end."""
        if not self.body.closed:
            self.body.close(UpstreamError("The request was given up."))
        self.land(FlightEnd.ABANDONED)

    # What participants do.

    async def headed(self) -> Head | None:
        """The head, when it is there; None where it landed without one. Raises its failure."""
        await self._headed.wait()
        if self._error is not None:
            raise copy.copy(self._error)  # one instance would gather the traces of all who raise it
        return self._head

    async def landed(self) -> FlightEnd:
        """The end, when it is known."""
        await self._landed.wait()
        assert self.end is not None
        return self.end

    @property
    def is_unattended(self) -> bool:
        """True while no client waits for it."""
        return self._participants == 0

    @property
    def asking(self) -> Plan:
        """Whose request goes upstream: the first one's.

        To go on with a stream of which a part was handed on, that of one who streams.
        """
        begun = self._head is not None and self._head.is_stream
        return self._streams if begun and self._streams is not None else self.plan

    def board(self, plan: Plan, *, leads: bool) -> None:
        """One more waits for this flight; `leads` where the request that goes upstream is its."""
        self._participants += 1
        self._led = self._led or leads
        if plan.wanted.stream:
            self.wanted_live.set()
            # One with the usage chunk serves those without as well.
            if self._streams is None or plan.wanted.include_usage:
                self._streams = plan

    def follow(self) -> None:
        """Whoever led is told of another's request upstream: the one of this flight is nobody's."""
        self._led = False

    def leave(self, *, leads: bool) -> None:
        """One waits no more; with the last one the work may lose its point."""
        self._participants -= 1
        self._led = self._led and not leads
        if leads and self.settlement is not None and not self.settlement.is_judged:
            self.is_told = False
        self.reconsider()

    def reconsider(self) -> None:
        """Give the work up if it has lost its point."""
        if self._participants == 0 and not self._goes_on() and self.task is not None:
            self.abandon()  # now: the task may take its time, and nobody may board meanwhile
            self.task.cancel()

    @property
    def is_shared_elsewhere(self) -> bool:
        """True while another worker or replica reads along."""
        return self.sharing is not None and not self.sharing.done()

    def _goes_on(self) -> bool:
        """Whether the work is worth its end with nobody waiting here.

        Only what is asked of the upstream is, and only for an entry or for others (B41, B42).
        """
        if self.is_shared_elsewhere:
            return True
        if self.end is not None or not self._finishes:
            return False
        if not self.is_asked:
            return self._refreshes
        return self.settlement is None or self.settlement.records
