"""The hot path: a hit is answered where its request is received, without the server's parser.

A request that comes whole on an idle connection is looked up by all its bytes (`hot_table`). Where
those are new but its head came before, the body is read and the engine is asked at once (`direct`).
A hit in memory is written to the socket: no task, no ASGI. Everything else takes the ordinary path:
uvicorn parses the very bytes that were received, and the application goes on from what was found.

What makes it safe:

- Idle means that the parser is between two messages and no answer is under way: then the bytes
  received begin a request, and what is written is the next answer.
- Nothing is guessed about bytes. Requests and heads are known from the ordinary path alone, where
  the parser has read them, and are compared by all of their bytes.
- A longer request comes in several reads. They are held back only while its head is known and it
  is not whole, and go to the parser as soon as something else happens.
- While a long answer goes out as the client takes it, nothing is read.

This lives behind uvicorn's option for a protocol class, and uses more of that class than is
promised: `hot_protocol` looks whether it is there. On another server nothing is noted, and the
application works without it.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from proxy.edge.direct import Begun, Direct, leave
from proxy.edge.http_protocol import BoundedProtocol
from proxy.edge.openai import CACHED
from proxy.edge.outlet import AT_ONCE, Outlet
from proxy.edge.watched_protocol import NO_REQUEST_YET, Awaited

if TYPE_CHECKING:
    from proxy.edge.hot_table import OnWire

log = logging.getLogger("magic_proxy.edge")

# What is used of uvicorn beside the parser's callbacks: methods, and what a new object has.
_METHODS: Final[dict[type, tuple[str, ...]]] = {
    HttpToolsProtocol: ("_unset_keepalive_if_required", "timeout_keep_alive_handler", "shutdown"),
    FlowControl: ("pause_reading", "resume_reading", "resume_writing"),
    RequestResponseCycle: (),
}
_ATTRIBUTES: Final[dict[type, tuple[str, ...]]] = {
    HttpToolsProtocol: (
        *("config", "connections", "cycle", "flow", "limit_concurrency", "loop", "pipeline"),
        *("scope", "server_state", "tasks", "timeout_keep_alive", "timeout_keep_alive_task"),
        "transport",
    ),
    FlowControl: ("read_paused", "write_paused"),
    RequestResponseCycle: (
        *("body", "disconnected", "flow", "message_event", "more_body"),
        *("response_complete", "response_started", "waiting_for_100_continue"),
    ),
}


@dataclass(slots=True)
class _Noted:
    """A request while the parser is in it: its number, its reads, or what was begun of it."""

    message: int
    left: int  # bytes that it may still have, to be remembered
    begun: Begun | None
    reads: list[bytes] = field(default_factory=list)


class ProxyProtocol(BoundedProtocol):
    """One connection; `direct` is what gives answers without the parser, None for none."""

    direct: Direct | None = None
    # The request that the parser is in, while it may become one to remember.
    _noted: _Noted | None = None
    # The reads of a request that the parser has not seen, and how much of it is still to come.
    _held: list[bytes] | None = None
    _awaited_bytes = 0
    # An answer that the client has not taken whole.
    _outlet: Outlet | None = None
    _closes_after = False
    _answered_at = -math.inf

    def data_received(self, data: bytes) -> None:
        """Answer, or hold the bytes back until the request is whole, or parse them."""
        if self._held is not None:
            self._held.append(data)
            self._awaited_bytes -= len(data)
            if self._awaited_bytes > 0:
                return
            data = self._take_held()
        if not self._is_idle():
            self._parse(data)
        elif self.direct is None or not self._may_answer(self.direct, data):
            self._parse_first(data)
        else:
            self._answer_or_parse(self.direct, data)

    def _is_idle(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        return not self._in_message and (cycle is None or cycle.response_complete)

    def _may_answer(self, direct: Direct, data: bytes) -> bool:
        """Whether the server has nothing to add, and the client takes what it is sent."""
        most = self.limit_concurrency
        return (
            len(data) <= direct.longest
            and not self.flow.write_paused
            and not self.config.access_log
            and not self.server_state.default_headers
            and (most is None or max(len(self.connections), len(self.tasks)) < most)
        )

    def _answer_or_parse(self, direct: Direct, data: bytes) -> None:
        reply: OnWire | Begun | None = direct.hot.answer(data)
        if reply is None and (known := direct.find(data)) is not None:
            if len(data) < known.end <= direct.longest:
                self._hold(data, known.end - len(data))
                return
            if len(data) == known.end:
                reply = direct.begin(known, data)
        if isinstance(reply, tuple):
            self._write(*reply)
        else:
            self._parse_first(data, reply)

    # Bytes that the parser has not seen

    def _hold(self, data: bytes, awaited_bytes: int) -> None:
        self._unset_keepalive_if_required()
        self._held, self._awaited_bytes = [data], awaited_bytes

    def _take_held(self) -> bytes:
        held, self._held = self._held or [], None
        return b"".join(held)

    def awaited(self) -> Awaited | None:
        """What the client has to send now: also the rest of what the parser has not seen."""
        if self._held is not None:
            return (self._held, self._awaited_bytes)
        if self._outlet is not None:
            return None
        awaited = super().awaited()
        # A connection that was answered directly alone is idle: that has a limit of its own.
        is_idle = awaited is NO_REQUEST_YET and self.timeout_keep_alive_task is not None
        return None if is_idle else awaited

    # Bytes that it sees

    def _parse_first(self, data: bytes, begun: Begun | None = None) -> None:
        """Let the parser have what begins a request on an idle connection."""
        if self.direct is not None:
            self._noted = _Noted(self._messages + 1, self.direct.longest, begun)
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Let the parser have them, and the application what is known of the request they end."""
        super().data_received(data)
        noted = self._noted
        if noted is None:
            return
        noted.reads.append(data)
        noted.left -= len(data)
        is_one = self._messages == noted.message and noted.left >= 0
        if is_one and self._in_message:
            return  # there is more to come
        self._noted = None
        if is_one and self.scope.get("raw_path") in CACHED:
            if noted.begun is not None:
                self.cycle.body.clear()  # nobody will ask for it
            leave(self.scope, noted.begun or b"".join(noted.reads))

    # To the client

    def _write(self, head: bytes, body: bytes) -> None:
        if len(body) <= AT_ONCE:
            self.transport.write(head + body)
            self._answered()
            return
        self._unset_keepalive_if_required()
        self.flow.pause_reading()
        self.transport.write(head)
        self._outlet = Outlet(self.transport, body)
        self._write_on(self._outlet)

    def _write_on(self, outlet: Outlet) -> None:
        while not outlet.done:
            if self.flow.write_paused:
                return
            outlet.write()
        self._outlet = None
        self._answered()
        if self._closes_after:
            self.transport.close()
            return
        self.flow.resume_reading()

    def resume_writing(self) -> None:
        """The client has taken most of what was written."""
        super().resume_writing()
        if self._outlet is not None:
            self._write_on(self._outlet)

    def _answered(self) -> None:
        self.server_state.total_requests += 1
        # The timer of an idle connection is not set anew with each hit: it looks when it runs out.
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait_for_next(self.timeout_keep_alive)

    # The end of the connection

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if it was idle for the whole time, direct answers included."""
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._wait_for_next(left)
        else:
            super().timeout_keep_alive_handler()

    def _wait_for_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def shutdown(self) -> None:
        """Close, after the request that has begun to come or the answer that is on its way."""
        if self._outlet is not None:
            self._closes_after = True
            return
        if self._held is not None:
            self._parse_first(self._take_held())
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; a request that was not whole is told of as one that its client gave up."""
        self._outlet = None
        if self._held is not None:
            # Its head is in there, and what more there is can't be answered any more.
            self._parse_first(self._take_held()[:AT_ONCE])
        super().connection_lost(exc)


def hot_protocol(direct: Direct | None) -> type[HttpToolsProtocol]:
    """The protocol class for one server; None is the same without a hot path.

    Where uvicorn is not as expected, its own class: everything works, and nothing is answered
    directly.
    """
    if missing := lacking():
        log.warning(
            "this uvicorn lacks %s: heads are not bounded, and no hit is answered directly",
            ", ".join(missing),
        )
        return HttpToolsProtocol
    return type("HotProtocol", (ProxyProtocol,), {"direct": direct})


def lacking() -> list[str]:
    """What this needs of uvicorn, and the installed one has not."""
    missing: list[str] = []
    for each in _METHODS:
        code = getattr(vars(each).get("__init__"), "__code__", None)
        made = code.co_names if code is not None else ()
        missing += [f"{each.__name__}.{n}" for n in _METHODS[each] if not hasattr(each, n)]
        missing += [f"{each.__name__}.{n}" for n in _ATTRIBUTES[each] if n not in made]
    return missing
