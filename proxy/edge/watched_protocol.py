"""uvicorn's HTTP protocol with limits for clients that hold connections and send nothing."""

import asyncio
from typing import Any, Final, TypeAlias

import orjson
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from proxy.errors import ProxyError, RequestTooSlow, TooManyConnections
from proxy.runtime import ConnectionLimits

# How often within its time a connection is looked at: by so much it may be longer.
_LOOKS: Final = 4

# What is awaited: a request's head, or more of its body. The same as before: nothing has come.
Awaited: TypeAlias = tuple[Any, int]
NO_REQUEST_YET: Final[Awaited] = (None, -1)
_HEAD: Final = -1


class WatchedProtocol(HttpToolsProtocol):
    """Looks at the connection now and then; reads set no timers, and hits are not slowed down.

    A head has to come within its time as a whole. Of a body something has to come within each such
    time, as long as the application reads it.
    """

    limits = ConnectionLimits()
    _in_head = False
    _reads = 0
    _seen: Awaited | None = None
    _seen_at = 0.0
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin to watch, or turn away a connection that is one too many."""
        super().connection_made(transport)
        self.limits = getattr(self.config.app, "limits", self.limits)
        most = self.limits.most
        if most is not None and len(self.connections) > most:
            self.refuse(
                TooManyConnections("The proxy has as many connections as it may (one worker).")
            )
            return
        self._seen, self._seen_at = NO_REQUEST_YET, self.loop.time()
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._next_look is not None:
            self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, and count the reads."""
        self._reads += 1
        super().data_received(data)

    def refuse(self, error: ProxyError) -> None:
        """Say what is wrong, unless another answer is under way, and close.

        For the application the client has gone: it begins nothing, and does not answer as well.
        """
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if not answering and not self.pipeline:
            body = orjson.dumps(error.envelope())
            self.transport.write(
                b"%bcontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%b" % (STATUS_LINE[error.status], len(body), body)
            )
        self.transport.close()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def awaited(self) -> Awaited | None:
        """What the client has to send now; None while it is not its turn."""
        cycle: RequestResponseCycle | None = self.cycle  # uvicorn's type leaves the None out
        if self.flow.read_paused:
            return None
        if self._in_head:
            is_answering = cycle is not None and not cycle.response_complete
            return None if is_answering else (self.scope, _HEAD)
        if cycle is None:
            return NO_REQUEST_YET
        if cycle.response_complete and self.timeout_keep_alive_task is None:
            return (self.scope, self._reads)  # what came since was no request, or is not read
        if cycle.more_body and not (cycle.response_complete or cycle.waiting_for_100_continue):
            return (self.scope, self._reads)
        return None

    def _look(self) -> None:
        self._next_look = None
        if self.transport.is_closing():
            return
        now, awaited = self.loop.time(), self.awaited()
        seen, self._seen = self._seen, awaited
        if awaited is None or seen is None or not _is_same(seen, awaited):
            self._seen_at = now
        elif now - self._seen_at >= self._limit(awaited):
            self._time_out(awaited)
            return
        self._look_later()

    def _look_later(self) -> None:
        seconds = min(self.limits.head_seconds, self.limits.gap_seconds) / _LOOKS
        self._next_look = self.loop.call_later(seconds, self._look)

    def _limit(self, awaited: Awaited) -> float:
        return self.limits.head_seconds if awaited[1] == _HEAD else self.limits.gap_seconds

    def _time_out(self, awaited: Awaited) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        is_answered = cycle is not None and cycle.response_complete and awaited[1] != _HEAD
        if awaited == NO_REQUEST_YET or is_answered:
            self.transport.close()
            return
        what = "head" if awaited[1] == _HEAD else "body"
        self.refuse(RequestTooSlow(f"The request's {what} did not come in time."))


def _is_same(one: Awaited, other: Awaited) -> bool:
    # By identity: two requests in a row may be equal.
    return one[0] is other[0] and one[1] == other[1]
