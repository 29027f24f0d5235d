"""The stand-in itself: an ASGI app that records every request and answers as it is told."""

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus

from proxy.clock import Clock, SystemClock
from proxy.standin.answers import Answer, Answerer, json_answer
from proxy.standin.delivery import Connection, Delivery, Gone, Receive, Scope, Send
from proxy.standin.record import Recorded
from proxy.standin.script import PLAIN, Script, Standing
from proxy.standin.signals import Signal

SCRIPT_HEADER = "x-standin-script"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long answers take, in seconds: until the first token, and for each one after it."""

    first_seconds: float = 0.0
    token_seconds: float = 0.0


class StandIn:
    """Answers like OpenAI's API. Made to be run by `start_standin`, and used from other threads.

    `requests` holds every request whose head has arrived, in order; or the last `keep` of them.
    """

    def __init__(
        self, *, pace: Pace | None = None, clock: Clock | None = None, keep: int | None = None
    ) -> None:
        self.pace = pace or Pace()
        self.requests: list[Recorded] = []
        self._keep = keep
        self.connections: set[Connection] = set()
        self._answerer = Answerer(clock or SystemClock())
        self._standing: list[Standing] = []
        self._gates: dict[str, Signal] = {}
        self._changed = threading.Condition()

    def script(
        self,
        script: Script,
        *,
        times: int | None = 1,
        credential: str | None = None,
        path: str | None = None,
        when: Callable[[Recorded], bool] | None = None,
    ) -> None:
        """Answer the next `times` matching requests so (None: all); the oldest script goes first.

        A request matches by its credential, the end of its path, and `when`; each only if given.
        """

        def matches(request: Recorded) -> bool:
            return (
                (credential is None or request.credential == credential)
                and (path is None or request.raw_path.endswith(path))
                and (when is None or when(request))
            )

        with self._changed:
            self._standing.append(Standing(script, times, matches))

    def gate(self, name: str) -> Signal:
        """The gate that scripts hold at by this name; set it to let them go on."""
        with self._changed:
            return self._gates.setdefault(name, Signal(f"gate {name}"))

    def reset(self) -> None:
        """Forget requests, scripts and gates; what is held goes on."""
        with self._changed:
            self.requests.clear()
            self._standing.clear()
            gates, self._gates = list(self._gates.values()), {}
        for gate in gates:
            gate.set()

    def count(self, path: str = "") -> int:
        """How many requests there were whose path ends so."""
        return sum(request.raw_path.endswith(path) for request in list(self.requests))

    def wait_for_requests(self, count: int, timeout: float = 10.0) -> list[Recorded]:
        """Block until `count` requests have arrived. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout):
                raise TimeoutError(f"{len(self.requests)} of {count} requests in {timeout} s")
            return list(self.requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection: Connection = scope["state"]["standin.connection"]
        record = Recorded(
            method=scope["method"],
            raw_path=scope["raw_path"].decode("latin-1"),
            query=scope["query_string"].decode("latin-1"),
            headers=tuple(scope["headers"]),
        )
        with self._changed:
            self.requests.append(record)
            if self._keep is not None and len(self.requests) > self._keep:
                del self.requests[0]
            self._changed.notify_all()

        def lost() -> None:
            if not record.finished.is_set():
                record.disconnected.set()

        connection.lost.call(lost)
        try:
            if await _read_body(record, receive):
                await self._deliver(record, connection, receive, send)
        except Gone:
            return
        finally:
            connection.lost.forget(lost)

    async def _deliver(
        self, record: Recorded, connection: Connection, receive: Receive, send: Send
    ) -> None:
        identity = self._answerer.new_identity()
        try:
            script = self._script_for(record)
            answer = self._answerer.answer(record, script, identity)
        except ValueError as wrong:
            script, answer = PLAIN, json_answer({"error": {"message": str(wrong)}}, 400)
        if script.content_type is not None:
            answer = replace(answer, content_type=script.content_type)
        delivery = Delivery(
            record=record,
            answer=answer,
            script=script,
            headers=_headers(answer, script, identity.number),
            connection=connection,
            gate=self.gate(script.hold) if script.hold is not None else None,
            first_seconds=_or(script.first_seconds, self.pace.first_seconds),
            piece_seconds=_or(script.piece_seconds, self.pace.token_seconds),
        )
        await delivery.run(receive, send)

    def _script_for(self, record: Recorded) -> Script:
        if (given := record.header(SCRIPT_HEADER)) is not None:
            return Script.parse(given)
        with self._changed:
            for standing in self._standing:
                if standing.left != 0 and standing.matches(record):
                    if standing.left is not None:
                        standing.left -= 1
                    return standing.script
        return PLAIN


async def _read_body(record: Recorded, receive: Receive) -> bool:
    """Read the body to its end; False if the client went away. An upload is counted, not kept."""
    upload = record.raw_path.endswith("/files")
    digest = hashlib.sha256()
    parts: list[bytes] = []
    while (message := await receive())["type"] == "http.request":
        part: bytes = message.get("body", b"")
        record.size += len(part)
        digest.update(part)
        if not upload:
            parts.append(part)
        if not message.get("more_body", False):
            record.body = b"".join(parts)
            record.sha256 = digest.hexdigest()
            record.body_read.set()
            return True
    record.disconnected.set()
    return False


def _headers(answer: Answer, script: Script, number: str) -> list[tuple[bytes, bytes]]:
    """What OpenAI sends besides; a script's own headers stand in for those of the same name."""
    usual = {
        "openai-organization": "standin",
        "openai-processing-ms": "42",
        "openai-version": "2020-10-01",
        "x-request-id": f"req_{number}",
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "set-cookie": f"__cf_bm={number}; path=/; HttpOnly; Secure",
        "cache-control": "no-store",
    }
    if answer.status != HTTPStatus.OK:
        del usual["openai-processing-ms"]
    own = {name.lower() for name, _ in script.headers}
    headers = [(name, value) for name, value in usual.items() if name not in own]
    return [(k.lower().encode(), v.encode("latin-1")) for k, v in (*headers, *script.headers)]


def _or(scripted: float | None, usual: float) -> float:
    return usual if scripted is None else scripted
