"""One client's part in a flight: board the one that is under way, or start one, and be answered."""

from collections.abc import AsyncIterator

from proxy.clock import Clock
from proxy.coalesce.base import FlightEnd
from proxy.core.cache_status import outcome_headers
from proxy.core.entry import Entry
from proxy.core.outcome import MissReason, Outcome
from proxy.core.recording import UsageFilter
from proxy.core.replay import Wanted
from proxy.core.stored_headers import forwarded_headers, stored_headers
from proxy.core.wire import Endpoint
from proxy.engine.account import Account
from proxy.engine.answers import hit_answer
from proxy.engine.base import Answer, Call, HeaderList, Observer
from proxy.engine.flight import Flight, Head
from proxy.engine.flights import Errand, Flights
from proxy.engine.leading import Leader
from proxy.engine.outcomes import is_error, is_failing
from proxy.engine.plan import Plan
from proxy.engine.rendering import put_into_form
from proxy.errors import ProxyError, UpstreamFailing

# A flight that broke off may be tried again together, once; after that everyone goes alone.
_MOST_FLIGHTS = 2
_TRIED_AGAIN = frozenset({FlightEnd.FAILED, FlightEnd.ABANDONED})
# Of the leader's own call; and a shared body goes out without its coding.
_LEADERS_OWN = frozenset({b"x-request-id", b"content-encoding", b"set-cookie"})


class Sharing:
    """Answers forwarded calls, under one configuration."""

    def __init__(self, flights: Flights, leader: Leader, clock: Clock, observer: Observer) -> None:
        self._flights = flights
        self._leader = leader
        self._clock = clock
        self._observer = observer

    async def answer(
        self,
        plan: Plan,
        outcome: Outcome,
        key: str | None,
        errand: Errand,
        *,
        with_key: bool,
        replaceable: bool = False,
    ) -> Answer:
        """The upstream's answer, shared where others ask the same.

        With `replaceable`, an answer that says that the upstream fails (`is_failing`) is raised
        as `UpstreamFailing`: there is something better. Raises `UpstreamError`.
        """
        account = Account(outcome, self._observer, self._clock, plan.started)
        part = _Part(plan, account, self._clock, with_key=with_key, replaceable=replaceable)
        if errand in {Errand.MISS, Errand.BETTER} and key is not None:
            for _ in range(_MOST_FLIGHTS):
                flight = self._flights.joinable(key)
                leads = flight is None
                if flight is None:
                    flight = self._flights.start(self._leader, plan, key, errand)
                    flight.on_absent = outcome.detail == MissReason.ABSENT.value
                answer = await part.aboard(flight, leads=leads)
                if answer is not None:
                    return answer
                if flight.end not in _TRIED_AGAIN:
                    break  # another would not do better: all who wait go at once
            errand = Errand.ALONE
        answer = await part.aboard(self._flights.start(self._leader, plan, key, errand), leads=True)
        assert answer is not None, "whoever leads is answered, or the flight raises"
        return answer


class _Part:
    """What one client makes of flights."""

    def __init__(
        self, plan: Plan, account: Account, clock: Clock, *, with_key: bool, replaceable: bool
    ) -> None:
        self._plan = plan
        self._account = account
        self._clock = clock
        self._with_key = with_key
        self._replaceable = replaceable

    async def aboard(self, flight: Flight, *, leads: bool) -> Answer | None:
        """The answer from this flight; None where it has none for this client."""
        flight.board(self._plan, leads=leads)
        try:
            answer = await self._answer(flight, leads=leads)
        except BaseException:  # cancellation too: the flight must know that one less waits
            flight.leave(leads=leads)
            raise
        if answer is None or not isinstance(answer.body, FlightBody):
            flight.leave(leads=leads)
        return answer

    async def _answer(self, flight: Flight, *, leads: bool) -> Answer | None:
        head = await flight.headed()
        if leads and flight.collapsed:
            leads = False
            flight.follow()
        if head is not None and (leads or self._takes(flight, head)):
            return self._relayed(flight, head, leads=leads)
        lacks_usage = head is not None and head.is_stream and not head.has_usage
        if lacks_usage and self._plan.wanted.include_usage:
            return None  # nor will the entry have it
        with flight.body.hurried():
            await flight.landed()
        return None if flight.entry is None else await self._from_entry(flight.entry, flight, head)

    def _takes(self, flight: Flight, head: Head) -> bool:
        """Whether a follower can have the answer as it comes."""
        wanted = self._plan.wanted
        if _finds_fault(head.status) and _differ(self._plan.call, flight.asking.call):
            return False  # what is not in the key may be what is wrong with the leader's
        if head.body is not None:
            # All who asked share an error; a good answer is better rendered from its entry.
            return is_error(head.status) and head.plain is not None
        if not (head.is_stream and wanted.stream) or head.is_opaque or not flight.body.is_whole:
            return False
        if flight.body.error is not None:
            return False  # it broke off for those who had read a dead leader's; the entry is whole
        return head.has_usage or not wanted.include_usage

    def _relayed(self, flight: Flight, head: Head, *, leads: bool) -> Answer:
        if self._replaceable and is_failing(head.status):
            failing = UpstreamFailing(f"The upstream answered {head.status}.")
            failing.answered = head.status
            raise failing
        self._account.forwarded(flight, head, leads=leads)
        body: bytes | FlightBody
        if head.body is not None:
            body = head.body if leads or head.plain is None else head.plain
            self._account.end(complete=True, flight=flight)
        else:
            body = FlightBody(flight, head, self._plan.wanted, self._account, leads=leads)
        headers = self._headers(head, leads=leads)
        return Answer(head.status, headers, body, trailers=head.trailers if leads else None)

    def _headers(self, head: Head, *, leads: bool) -> HeaderList:
        outcome = self._account.outcome
        # What a leader's answer says of its own call (limits, ids) is not true of the others'.
        told = forwarded_headers(head.headers) if leads else list(_of_error(head))
        if head.is_stream:
            told.append((b"x-accel-buffering", b"no"))
        if not any(name.lower() == b"x-request-id" for name, _ in told):
            told.append((b"x-request-id", outcome.request_id.encode("ascii")))
        return [*told, *outcome_headers(outcome, with_key=self._with_key)]

    async def _from_entry(self, entry: Entry, flight: Flight, head: Head | None) -> Answer | None:
        plan = self._plan
        rendered = await put_into_form(plan, entry, self._clock.wall())
        if rendered is None:
            return None
        head = head or Head(entry.status, entry.headers, is_stream=False, upstream="")
        self._account.forwarded(flight, head, leads=False)
        self._account.end(complete=True, flight=flight)
        outcome = self._account.outcome
        return hit_answer(entry, rendered, outcome, repeats=False, with_key=self._with_key)


class FlightBody:
    """The body of a flight's answer, for one client."""

    def __init__(
        self, flight: Flight, head: Head, wanted: Wanted, account: Account, *, leads: bool
    ) -> None:
        trims = head.has_usage and not wanted.include_usage
        self._flight = flight
        self._account = account
        self._leads = leads
        self._reader = flight.body.reader(trimmed=trims and head.trims)
        self._filter = UsageFilter() if trims and not head.trims else None
        self._left = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (chunk := await self._reader.read()) is not None:
                if self._filter is None:
                    yield chunk
                elif passed := self._filter.feed(chunk):
                    yield passed
        except ProxyError:
            self._account.end(complete=False, flight=self._flight)
            raise
        if self._filter is not None and (rest := self._filter.flush()):
            yield rest
        self._account.end(complete=True, flight=self._flight)

    async def aclose(self) -> None:
        """Leave the flight, which may go on without this client."""
        if self._left:
            return
        self._left = True
        # Clients close at the terminal event, and need not wait for the upstream to do the same.
        self._account.end(complete=self._reader.has_terminal, flight=self._flight)
        self._reader.leave()
        self._flight.leave(leads=self._leads)


def _differ(one: Call, other: Call) -> bool:
    """Whether requests with one key differ in what an upstream may find fault with."""
    is_read = one.endpoint is Endpoint.RESOURCE
    return one.body != other.body or (is_read and one.headers != other.headers)


def _finds_fault(status: int) -> bool:
    """Whether an answer of this status blames the request."""
    return is_error(status) and not is_failing(status)


def _of_error(head: Head) -> HeaderList:
    """What a follower is told: of an error all that helps to retry, else what an entry keeps."""
    if not is_error(head.status):
        return list(stored_headers(head.headers))
    told = forwarded_headers(head.headers)
    return [pair for pair in told if pair[0].lower() not in _LEADERS_OWN]
