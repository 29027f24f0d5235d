"""The outcome as one structured log line: never a body, never a credential."""

import asyncio
from typing import BinaryIO

import orjson

from proxy.clock import Clock
from proxy.core.outcome import Outcome
from proxy.core.wire import JsonValue

_FLUSH_SECONDS = 0.1
_MAX_LINES = 50_000
_SHOWN_CHARACTERS = 200


class RequestLog:
    """Collects one JSON object a line, and writes them in batches off the event loop.

    What is not known of a request is left out. When the reader of the stream stalls, lines beyond
    `_MAX_LINES` are dropped and their number is written once it reads again.
    """

    def __init__(self, stream: BinaryIO, clock: Clock) -> None:
        self._stream = stream
        self._clock = clock
        self._lines: list[bytes] = []
        self._dropped = 0

    async def run(self) -> None:
        """Write what has collected, again and again; cancel to stop, then call `flush`."""
        while True:
            await self._clock.sleep(_FLUSH_SECONDS)
            await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Write what has collected; blocks while the stream does."""
        lines, self._lines = self._lines, []
        dropped, self._dropped = self._dropped, 0
        if dropped:
            lines.append(_line({"event": "log-lines-dropped", "count": dropped}))
        if lines:
            self._stream.write(b"".join(lines))
            self._stream.flush()

    def told(self, outcome: Outcome) -> None:
        """Collect the line for one request."""
        if len(self._lines) >= _MAX_LINES:
            self._dropped += 1
            return
        self._lines.append(_line(self._members(outcome)))

    def _members(self, outcome: Outcome) -> dict[str, JsonValue]:
        members: dict[str, JsonValue] = {
            "time": round(self._clock.wall(), 3),
            "event": "request",
            "request_id": outcome.request_id,
            "endpoint": outcome.endpoint,
            "model": _printable(outcome.model),
            "cache": outcome.x_cache.value,
            "status": outcome.status,
            "ms": round(outcome.duration_seconds * 1000, 2),
        }
        for name, value in (
            ("detail", _printable(outcome.detail) if outcome.detail else None),
            ("not_stored", outcome.not_stored),
            ("stored", outcome.stored),
            ("rule", outcome.rule),
            ("upstream", outcome.upstream),
            ("client", outcome.client),
        ):
            if value is not None:
                members[name] = value  # noqa: PERF403  # `members` has others before and after
        if outcome.usage is not None:
            members["prompt_tokens"] = outcome.usage.prompt_tokens
            members["completion_tokens"] = outcome.usage.completion_tokens
        if outcome.stream:
            members["stream"] = True
        if not outcome.complete:
            members["complete"] = False
        return members


def _printable(text: str) -> str:
    """A client's text, cut, and with half characters (lone surrogates) written as escapes."""
    return text[:_SHOWN_CHARACTERS].encode(errors="backslashreplace").decode()


def _line(members: dict[str, JsonValue]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_APPEND_NEWLINE)
