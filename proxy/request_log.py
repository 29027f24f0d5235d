"""The outcome as one structured log line: never a body, never a credential."""

import asyncio
import contextlib
import io
import logging
import select
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import BinaryIO

import orjson

from proxy.clock import Clock
from proxy.core.outcome import Outcome
from proxy.core.wire import JsonValue

log = logging.getLogger("magic_proxy.request_log")

_FLUSH_SECONDS = 0.1
CLOSE_SECONDS = 2.0
_MAX_LINES = 50_000
_SHOWN_CHARACTERS = 200
# What a pipe takes whole, where the system says so; everywhere it is 512 at least.
_PIPE_BYTES = getattr(select, "PIPE_BUF", 512)
_MOST_REPEATED = 1024


class RequestLog:
    """Collects one JSON object a line, and writes them in batches off the event loop.

    What is not known of a request is left out. When the reader of the stream stalls, lines beyond
    `_MAX_LINES` are dropped and their number is written once it reads again. When it is gone,
    lines are lost. `stream` is best without a buffer: at exit, Python waits for a buffer's lock.
    With `shared`, other processes write to it too: then lines go out in pieces that a pipe takes
    whole or not at all, so that no line is torn by another's.
    """

    def __init__(
        self,
        stream: BinaryIO | io.RawIOBase,
        clock: Clock,
        *,
        close_seconds: float = CLOSE_SECONDS,
        shared: bool = False,
    ) -> None:
        self._stream = stream
        self._shared = shared
        self._clock = clock
        self._close_seconds = close_seconds
        self._writing = threading.Lock()
        self._works = True
        self._lines: list[bytes] = []
        self._dropped = 0
        self._second = -1
        self._to_the_second = ""
        # What is written of a hit that is given again and again: all but time and id, rendered.
        self._repeated: dict[int, tuple[Outcome, bytes]] = {}

    async def run(self) -> None:
        """Write what has collected, again and again; cancel to stop, then call `close`."""
        while True:
            await self._clock.sleep(_FLUSH_SECONDS)
            if self._lines or self._dropped:
                await _in_daemon_thread(self.flush)

    async def close(self) -> None:
        """Write what is left; a reader that stalls holds this up for `close_seconds` only."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._close_seconds):
                await _in_daemon_thread(self.flush)

    def flush(self) -> None:
        """Write what has collected; blocks while the stream does."""
        with self._writing:
            lines, self._lines = self._lines, []
            dropped, self._dropped = self._dropped, 0
            if dropped:
                lines.append(_line({"event": "log-lines-dropped", "count": dropped}))
            if not lines:
                return
            try:
                for piece in _pieces(lines) if self._shared else (b"".join(lines),):
                    self._write(piece)
            except (OSError, ValueError) as error:  # ValueError: the stream was closed
                if self._works:
                    log.warning("the request log can't be written: %s", error)
                self._works = False
            else:
                self._works = True

    def _write(self, text: bytes) -> None:
        left = memoryview(text)
        while left:
            # None: a stream that does not block took nothing.
            left = left[self._stream.write(left) or 0 :]
        self._stream.flush()

    def told(self, outcome: Outcome) -> None:
        """Collect the line for one request."""
        if len(self._lines) >= _MAX_LINES:
            self._dropped += 1
            return
        members = self._passing(outcome.request_id) | _lasting(outcome)
        line = _line(members)  # first: meanwhile the lines may be taken to be written
        self._lines.append(line)

    def told_again(self, outcome: Outcome, request_id: str) -> None:
        """Collect the line for one repetition of a hit."""
        if len(self._lines) >= _MAX_LINES:
            self._dropped += 1
            return
        held = self._repeated.get(id(outcome))
        if held is None or held[0] is not outcome:
            if len(self._repeated) >= _MOST_REPEATED:
                self._repeated.clear()
            # The outcome is held as well, so that no other one can have its identity.
            held = self._repeated[id(outcome)] = (outcome, _line(_lasting(outcome))[1:])
        line = b"%b,%b" % (_line(self._passing(request_id))[:-2], held[1])
        self._lines.append(line)

    def _time(self) -> str:
        """Now, spelled as in the log of the process; made anew once a second, for its cost."""
        wall = self._clock.wall()
        second = int(wall)
        if second != self._second:
            self._second = second
            self._to_the_second = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._to_the_second}.{int((wall - second) * 1000):03d}+00:00"

    def _passing(self, request_id: str) -> dict[str, JsonValue]:
        """What is different in each line."""
        return {"time": self._time(), "event": "request", "request_id": request_id}


def _lasting(outcome: Outcome) -> dict[str, JsonValue]:
    """What is the same whenever the same happens."""
    members: dict[str, JsonValue] = {
        "endpoint": outcome.endpoint,
        "model": _printable(outcome.model),
        "cache": outcome.x_cache.value,
        "status": outcome.status,
        "ms": round(outcome.duration_seconds * 1000, 2),
    }
    for name, value in (
        ("detail", _printable(outcome.detail) if outcome.detail else None),
        ("socket_end", outcome.socket_end),
        ("not_stored", outcome.not_stored),
        ("stored", outcome.stored),
        ("rule", outcome.rule),
        ("upstream", outcome.upstream),
        ("profile", outcome.profile if outcome.profile != outcome.upstream else None),
        ("client", outcome.client),
        ("items", outcome.items),
        ("item_hits", outcome.item_hits),
    ):
        if value is not None:
            members[name] = value  # noqa: PERF403  # `members` has others before and after
    if outcome.usage is not None:
        members["prompt_tokens"] = outcome.usage.prompt_tokens
        members["completion_tokens"] = outcome.usage.completion_tokens
    if outcome.stream:
        members["stream"] = True
    if outcome.collapsed:
        members["collapsed"] = True
    if outcome.fallback:
        members["fallback"] = True
    if not outcome.complete:
        members["complete"] = False
    return members


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many at once as a pipe takes in one go."""
    piece = bytearray()
    for line in lines:
        if piece and len(piece) + len(line) > _PIPE_BYTES:
            yield bytes(piece)
            piece.clear()
        piece += line
    yield bytes(piece)


async def _in_daemon_thread(work: Callable[[], None]) -> None:
    """Like `asyncio.to_thread`, but the process can end while `work` still blocks."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop ended first; nobody waits
                loop.call_soon_threadsafe(done.set)

    threading.Thread(target=run, name="request-log", daemon=True).start()
    await done.wait()


def _printable(text: str) -> str:
    """A client's text, cut, and with half characters (lone surrogates) written as escapes."""
    return text[:_SHOWN_CHARACTERS].encode(errors="backslashreplace").decode()


def _line(members: dict[str, JsonValue]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)
