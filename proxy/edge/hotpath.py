"""The hot path: a request repeated byte for byte is answered where it is received.

No parsing, no task, no ASGI: when a connection is idle and the bytes just received are exactly a
request that was answered before from a fresh entry in memory, the same answer is written at once.
Credential, host, path, cache control and body are all part of those bytes, so all of them are
compared, by equality and not by a digest. Everything else takes the ordinary path, untouched.

A request gets here only through the ordinary path: the protocol notes the bytes of a request that
came whole in one read, and the edge, having answered it with a plain hit, offers them to the
table with what it takes to give that answer again. Freshness, that the settings are still those
under which the answer was given, and that no entry was replaced or purged since (a client's
`no-cache` replaces one), are checked on every hit.

This lives behind uvicorn's option for a protocol class; on another server nothing is noted, and
the application works without it.
"""

import math
import weakref
from dataclasses import dataclass
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from proxy.core.cache_status import outcome_headers
from proxy.core.freshness import age_seconds, remaining_seconds
from proxy.core.wire import Headers
from proxy.edge.asgi import Scope
from proxy.edge.http_protocol import BoundedProtocol
from proxy.engine.base import Answer, Repeatable
from proxy.runtime import Runtime, Snapshot

# Where the protocol leaves the bytes of a request for the edge, in the ASGI scope.
_NOTED: Final = "magic_proxy.request_bytes"
# A longer request is parsed: it costs the table more than the parser.
_LONGEST_REQUEST: Final = 64 * 1024
# With one of these the answer is not the same for the same bytes, or ends the connection.
_UNREPEATABLE: Final = frozenset({b"cache-control", b"connection", b"expect", b"upgrade"})
# What an entry of the table costs beside its bytes.
_OVERHEAD_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class HotAnswer:
    """An answer on the wire, cut where the values go that differ from hit to hit."""

    repeatable: Repeatable
    head: bytes
    tail: bytes


class HotTable:
    """Requests as received, and how they were answered; bounded in bytes, the oldest go first.

    All of it goes at once when the settings change.
    """

    def __init__(self, runtime: Runtime, max_bytes: int) -> None:
        self._runtime = runtime
        self._max_bytes = max_bytes
        # Weak: settings that were replaced have connections to close once nobody holds on to them.
        self._snapshot: weakref.ref[Snapshot] | None = None
        self._answers: dict[bytes, HotAnswer] = {}
        self._bytes = 0

    def answer(self, request: bytes) -> bytes | None:
        """The whole response to these bytes, or None where the ordinary path has to find it."""
        hot = self._answers.get(request)
        if hot is None:
            return None
        snapshot = self._runtime.snapshot
        if self._is_outdated(snapshot):
            self._begin(snapshot)
            return None
        now = self._runtime.clock.wall()
        entry = hot.repeatable
        if now >= entry.repeats_until or snapshot.service.version(entry.key) != entry.version:
            self._forget(request)
            return None
        outcome = entry.outcome.repeated(
            request_id=self._runtime.request_ids.next(),
            age_seconds=age_seconds(entry, now),
            ttl_seconds=remaining_seconds(entry, now),
        )
        told = outcome_headers(outcome, with_key=entry.with_key)
        lines = b"".join([b"%b: %b\r\n" % pair for pair in told])
        snapshot.observer.told(outcome)
        request_id = outcome.request_id.encode("ascii")
        return b"%bx-request-id: %b\r\n%b%b" % (hot.head, request_id, lines, hot.tail)

    def remember(self, scope: Scope, snapshot: Snapshot, answer: Answer) -> None:
        """Take a request that was just answered with a plain hit, if its bytes were noted."""
        request: bytes | None = scope.get(_NOTED)
        repeatable = answer.repeatable
        if request is None or repeatable is None or not isinstance(answer.body, bytes):
            return
        headers: Headers = scope["headers"]
        if scope["http_version"] != "1.1" or any(_is_unrepeatable(*pair) for pair in headers):
            return
        if snapshot is not self._runtime.snapshot:
            return
        if self._is_outdated(snapshot):
            self._begin(snapshot)
        self._forget(request)
        hot = HotAnswer(
            repeatable,
            head=STATUS_LINE[answer.status] + _lines(repeatable.headers),
            tail=b"content-length: %d\r\n\r\n%b" % (len(answer.body), answer.body),
        )
        size = _size(request, hot)
        if size > self._max_bytes:
            return
        self._answers[request] = hot
        self._bytes += size
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._answers)))

    def _is_outdated(self, snapshot: Snapshot) -> bool:
        return self._snapshot is None or self._snapshot() is not snapshot

    def _begin(self, snapshot: Snapshot) -> None:
        self._snapshot = weakref.ref(snapshot)
        self._answers = {}
        self._bytes = 0

    def _forget(self, request: bytes) -> None:
        hot = self._answers.pop(request, None)
        if hot is not None:
            self._bytes -= _size(request, hot)


class ProxyProtocol(BoundedProtocol):
    """The HTTP protocol with the table in front."""

    table: HotTable | None = None
    _messages = 0
    _in_message = False
    _hot_at = -math.inf

    def data_received(self, data: bytes) -> None:
        """Answer from the table, or let the parser have the bytes and note what they were."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        idle = not self._in_message and (cycle is None or cycle.response_complete)
        if not idle or self.table is None or len(data) > _LONGEST_REQUEST:
            super().data_received(data)
            return
        response = None if self.flow.write_paused else self.table.answer(data)
        if response is not None:
            self.transport.write(response)
            self.server_state.total_requests += 1
            self._keep_alive()
            return
        before = self._messages
        super().data_received(data)
        # One message began and ended within this read: these bytes are that request, no more.
        if self._messages == before + 1 and not self._in_message:
            self.scope[_NOTED] = data  # type: ignore[typeddict-unknown-key]  # ours, not ASGI's

    def on_message_begin(self) -> None:
        """A request's first byte was parsed."""
        self._messages += 1
        self._in_message = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """A request's last byte was parsed."""
        self._in_message = False
        super().on_message_complete()

    def _keep_alive(self) -> None:
        # The timer of an idle connection is not set anew with each hit: it looks when it runs out.
        self._hot_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_for_next(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it was idle for the whole time, hot answers included."""
        left = self._hot_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._wait_for_next(left)
        else:
            super().timeout_keep_alive_handler()

    def _wait_for_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )


def hot_protocol(table: HotTable | None) -> type[ProxyProtocol]:
    """The protocol class for one server; None is the same without a hot path."""
    return type("HotProtocol", (ProxyProtocol,), {"table": table})


def _is_unrepeatable(name: bytes, value: bytes) -> bool:
    # What most clients say on every request, and what HTTP/1.1 takes for granted.
    if name == b"connection" and value.lower() == b"keep-alive":
        return False
    return name in _UNREPEATABLE


def _lines(headers: Headers) -> bytes:
    return b"".join(b"%b: %b\r\n" % pair for pair in headers)


def _size(request: bytes, hot: HotAnswer) -> int:
    return len(request) + len(hot.head) + len(hot.tail) + _OVERHEAD_BYTES
