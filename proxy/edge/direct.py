"""Answers given where a request is received: by its bytes alone, or by its head's and its body.

The hot table answers a request that came before, byte for byte. Where only the head did, the body
is read, and the engine asked, as the application would do it: the same `Head` makes the same
`Call`, and `CacheService.begin_now` is what the application awaits. A hit in memory is the answer;
anything else goes on in the application, with what was found out, so that nothing is done twice.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final

from proxy.edge.admission import Admission
from proxy.edge.asgi import Scope
from proxy.edge.heads import Head, Known, KnownHeads
from proxy.edge.hot_table import HotTable, OnWire
from proxy.edge.lines import header_lines, received_lines, status_line, stored_lines
from proxy.engine.base import Answer
from proxy.engine.plan import Plan
from proxy.errors import ProxyError
from proxy.runtime import Runtime, Snapshot

log = logging.getLogger("magic_proxy.edge")

# Of the memory for the hot path, the part for heads: 1/16, and for requests with answers: 11/16.
_HEADS_SHARE: Final = 16
_TABLE_SHARE: Final = 11 / 16
# Where in the ASGI scope stands what the connection knows of a request: the bytes of one that came
# whole, or what was begun of it.
_KNOWN: Final = "magic_proxy.known"


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that is no hit at hand: planned, and counted among those of its turn."""

    snapshot: Snapshot
    plan: Plan


class Direct:
    """What the connections of one server share. `longest` is in bytes, heads included."""

    def __init__(
        self, runtime: Runtime, admission: Admission, max_bytes: int, longest: int
    ) -> None:
        self.longest = longest
        self.hot = HotTable(runtime, int(max_bytes * _TABLE_SHARE))
        self.heads = KnownHeads(max_bytes // _HEADS_SHARE)
        self._runtime = runtime
        self._admission = admission
        self._settings = 0  # the number of the snapshot that the heads were found under

    def find(self, received: bytes) -> Known | None:
        """The head that `received` begins with, where it is known under the settings in force."""
        self._see_settings()
        known = self.heads.find(received)
        if known is None or known.end - known.body_at > self._runtime.snapshot.max_body_bytes:
            return None  # the application refuses what is too long, and does not wait for it
        return known

    def begin(self, known: Known, received: bytes) -> OnWire | Begun | None:
        """Begin a request that was received whole; None leaves all of it to the application."""
        snapshot = self._runtime.snapshot
        body = received[known.body_at :]
        if not self._admission.has_room:
            return None
        call = known.head.call(body, self._runtime.request_ids.next())
        try:
            begun = snapshot.service.begin_now(call)
        except ProxyError:
            return None  # the application finds the same, and says it
        except Exception:  # boundary: the application meets it too, and answers for it
            log.exception("a request could not be begun where it was received")
            return None
        if isinstance(begun, Plan):
            self._admission.enter_now()
            self.hot.met(received)
            return Begun(snapshot, begun)
        self.hot.remember(received, known.head.headers, snapshot, begun)
        return _reply(begun)

    def learn(self, scope: Scope, snapshot: Snapshot, head: Head, begun: Answer | Plan) -> None:
        """Remember what the application made of a request, if the connection noted its bytes."""
        received = scope.pop(_KNOWN, None)
        if not isinstance(received, bytes) or scope["http_version"] != "1.1":
            return
        self._see_settings()
        if snapshot is self._runtime.snapshot:
            self.heads.learn(received, head)
        if isinstance(begun, Plan):
            self.hot.met(received)
        else:
            self.hot.remember(received, head.headers, snapshot, begun)

    def _see_settings(self) -> None:
        # Who may ask, and what for, was found out under settings that may no longer be in force.
        number = self._runtime.snapshot.number
        if number != self._settings:
            self._settings = number
            self.heads.clear()


def leave(scope: Any, known: bytes | Begun) -> None:
    """Leave for the application the bytes of a whole request, or what was begun of it."""
    scope[_KNOWN] = known


def begun_before(scope: Scope) -> Begun | None:
    """What was begun of a request before the application was asked."""
    known = scope.get(_KNOWN)
    if not isinstance(known, Begun):
        return None
    # A connection holds on to its last scope.
    del scope[_KNOWN]
    return known


def _reply(answer: Answer) -> OnWire | None:
    """A hit as it goes over the wire; None where a stored header can't be sent."""
    assert isinstance(answer.body, bytes)
    if answer.repeatable is not None:  # only what is the same for many is worth remembering
        stored = answer.repeatable.headers
        lines = stored_lines(stored)
    else:
        stored = tuple(answer.headers)
        lines = received_lines(stored)
    if lines is None:
        return None
    head = b"%b%b%bcontent-length: %d\r\n\r\n" % (
        status_line(answer.status),
        lines,
        header_lines(answer.headers[len(stored) :]),
        len(answer.body),
    )
    return head, answer.body
