"""What the edge and the engine hand each other."""

from collections.abc import AsyncIterator
from typing import Protocol

from proxy.access.base import Identity
from proxy.core.entry import Usage
from proxy.core.outcome import Outcome
from proxy.core.trailers import Trailers
from proxy.core.values import value
from proxy.core.wire import Endpoint, Headers

HeaderList = list[tuple[bytes, bytes]]


@value(frozen=True, slots=True)
class Call:
    """One request whose answer may be cached, authenticated and read whole.

    `path` is the raw path after the API root, `query` the raw query string without `?`.
    """

    endpoint: Endpoint
    path: str
    query: str
    headers: Headers
    body: bytes
    identity: Identity
    request_id: str
    method: str = "POST"


class BodyStream(Protocol):
    """A body that arrives in pieces; whoever holds it closes it, read to its end or not."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def aclose(self) -> None: ...


@value(frozen=True, slots=True)
class Repeatable:
    """What it takes to give a hit's answer again, until the wall time `repeats_until`.

    Not once the entry's `key` has another `version` than it had.
    `headers` are those that stay the same; the rest is rendered from `outcome`. The other times
    are the entry's own; the entry itself is not held, its payload stands in the answer.
    """

    key: str
    version: int
    stored_at: float
    fresh_until: float
    repeats_until: float
    outcome: Outcome
    headers: Headers
    with_key: bool


@value(frozen=True, slots=True)
class Answer:
    """What goes back to the client. `headers` are complete but for the framing.

    `trailers` are complete when the body has been read.
    """

    status: int
    headers: HeaderList
    body: bytes | BodyStream
    repeatable: Repeatable | None = None
    trailers: Trailers | None = None


class Observer(Protocol):
    """Is told of each request once, when it is over."""

    def told(self, outcome: Outcome) -> None: ...

    def told_again(self, outcome: Outcome, request_id: str) -> None:
        """The hit of `outcome`, given again: only its age, and the id of the request, are others.

        `outcome` is the same object each time, so that what is made of it can be kept.
        """
        ...


class StorageObserver(Protocol):
    """Is told what the engine's own storage work came to."""

    def store_failed(self, operation: str) -> None:
        """A read or write of the store failed; it cost a miss or a lost entry."""
        ...

    def write_dropped(self) -> None:
        """The write queue was full."""
        ...

    def entry_unreadable(self) -> None:
        """Stored bytes did not decode to the entry asked for, and were deleted."""
        ...


class FlightObserver(Protocol):
    """Is told of upstream work that no client's outcome tells of."""

    def finished_unattended(self, purpose: str, end: str, model: str, usage: Usage | None) -> None:
        """`purpose` is `refresh`, or `finish` where all clients had gone; `end` a `FlightEnd`."""
        ...
