"""Requests that are answered by their bytes alone, without reading what they say.

A request gets in here once it was answered with a plain hit from memory. Its bytes, headers
included, then stand for it: they are compared by equality and not by a digest, so that credential,
host, path, cache control and body are all compared. On every hit is checked that the settings are
still those under which the answer was given, that the entry is fresh, and that no entry was purged
since, nor renewed by a client here (`no-cache`); once a second, that the store has this very entry.
"""

from typing import Final, TypeAlias

from proxy.core.cache_status import outcome_headers
from proxy.core.freshness import age_seconds, remaining_seconds
from proxy.core.wire import Headers
from proxy.edge.heads import keeps_connection
from proxy.edge.lines import header_lines, status_line, stored_lines
from proxy.engine.base import Answer, Repeatable
from proxy.runtime import Runtime, Snapshot

# What an entry of the table costs beside its bytes.
_OVERHEAD_BYTES: Final = 1024
# Requests met once, by their hashes: one byte each.
_MET: Final = 1 << 16


# The head and the body of an answer as they go over the wire; the body is nobody's copy.
OnWire: TypeAlias = tuple[bytes, bytes]


class _Hot:
    """How a request is answered again; its head stays the same for up to a second."""

    __slots__ = ("after_id", "before_id", "body", "repeatable", "since", "told", "until")

    def __init__(self, before_id: bytes, repeatable: Repeatable, body: bytes) -> None:
        self.before_id = before_id
        self.repeatable = repeatable
        self.body = body
        self.since = self.until = 0.0
        self.after_id = b""
        # What all repetitions have in common is told of them: this one took no time, and has no id.
        self.told = repeatable.outcome.repeated(request_id="", age_seconds=0.0, ttl_seconds=0.0)

    def render(self, now: float) -> None:
        """Say how old the entry is, and for how long that is true."""
        entry = self.repeatable
        age, left = age_seconds(entry, now), remaining_seconds(entry, now)
        outcome = entry.outcome.repeated(request_id="", age_seconds=age, ttl_seconds=left)
        lines = header_lines(outcome_headers(outcome, with_key=entry.with_key))
        self.after_id = b"\r\n%bcontent-length: %d\r\n\r\n" % (lines, len(self.body))
        # Both are told in whole seconds.
        self.since, self.until = now, now + min(1.0 - age % 1.0, left % 1.0)


class HotTable:
    """Requests as received, and how they were answered; bounded in bytes, the oldest go first.

    A body that several requests lead to is held, and counted, once. All goes at once when the
    settings change.
    """

    def __init__(self, runtime: Runtime, max_bytes: int) -> None:
        self._runtime = runtime
        self._max_bytes = max_bytes
        self._settings = 0  # the number of the snapshot that all of it was found under
        self._hot: dict[bytes, _Hot] = {}
        self._uses: dict[int, int] = {}
        self._bytes = 0
        self._met = bytearray(_MET)

    def answer(self, request: bytes) -> OnWire | None:
        """The whole response to these bytes, or None where they have to be read."""
        hot = self._hot.get(request)
        if hot is None:
            return None
        snapshot = self._runtime.snapshot
        if snapshot.number != self._settings:
            self._begin(snapshot)
            return None
        entry = hot.repeatable
        now = self._runtime.clock.wall()
        if now >= entry.repeats_until or snapshot.service.version(entry.key) != entry.version:
            self._forget(request)
            return None
        if not hot.since <= now < hot.until:
            # Once a second: the store learns that it is asked for, and is asked whether it is still
            # this one.
            if not snapshot.service.is_at_hand(entry.key, entry.stored_at):
                self._forget(request)
                return None
            hot.render(now)
        request_id = self._runtime.request_ids.next()
        snapshot.observer.told_again(hot.told, request_id)
        return hot.before_id + request_id.encode("ascii") + hot.after_id, hot.body

    def remember(
        self, request: bytes, headers: Headers, snapshot: Snapshot, answer: Answer
    ) -> None:
        """Take a request that was just answered with a plain hit, when it came before."""
        repeatable = answer.repeatable
        if not self.met(request) or repeatable is None or not isinstance(answer.body, bytes):
            return
        if snapshot is not self._runtime.snapshot or not _is_repeatable(headers):
            return
        lines = stored_lines(repeatable.headers)
        if lines is None:
            return
        if snapshot.number != self._settings:
            self._begin(snapshot)
        self._forget(request)
        before_id = b"%b%bx-request-id: " % (status_line(answer.status), lines)
        hot = _Hot(before_id, repeatable, answer.body)
        if _size(request, hot) + len(hot.body) <= self._max_bytes:
            self._add(request, hot)

    def met(self, request: bytes) -> bool:
        """Whether it seems to have come before; from now on it does.

        Most requests that are asked in many spellings never come back: nothing of them is kept.
        By a hash that may be that of another one: then a request is kept one time too early.
        """
        digest = hash(request)
        place, tag = digest % _MET, (digest // _MET) % 255 + 1
        was_met = self._met[place] == tag
        self._met[place] = tag
        return was_met

    def _begin(self, snapshot: Snapshot) -> None:
        self._settings = snapshot.number
        self._hot = {}
        self._uses = {}
        self._bytes = 0

    def _add(self, request: bytes, hot: _Hot) -> None:
        self._hot[request] = hot
        uses = self._uses.get(id(hot.body), 0)
        self._uses[id(hot.body)] = uses + 1
        self._bytes += _size(request, hot) + (0 if uses else len(hot.body))
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._hot)))

    def _forget(self, request: bytes) -> None:
        hot = self._hot.pop(request, None)
        if hot is None:
            return
        uses = self._uses.pop(id(hot.body)) - 1
        if uses:
            self._uses[id(hot.body)] = uses
        self._bytes -= _size(request, hot) + (0 if uses else len(hot.body))


def _is_repeatable(headers: Headers) -> bool:
    """Whether the same bytes may get the same answer, as long as its entry is fresh."""
    return keeps_connection(headers) and not any(name == b"cache-control" for name, _ in headers)


def _size(request: bytes, hot: _Hot) -> int:
    """Without the body."""
    return len(request) + len(hot.before_id) + _OVERHEAD_BYTES
