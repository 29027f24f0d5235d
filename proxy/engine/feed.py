"""What sources feed into a flight's body: one after the other, where a leader died on the way."""

from typing import Final

from proxy.core.recording import UsageFilter
from proxy.core.resume import Resumption
from proxy.engine.broadcast import Broadcast, Piece
from proxy.errors import UpstreamProtocolError

_LOST: Final = "The worker that asked for this answer died, and it can't be gone on with."


class Feed:
    """A streamed body on its way to the readers of `body`, whole, and without the usage chunk.

    `has_usage`: the stream holds the usage chunk; `trims`: some readers want it without.
    """

    def __init__(self, body: Broadcast, *, has_usage: bool, trims: bool) -> None:
        self._body = body
        self._has_usage = has_usage
        self._filter = UsageFilter() if trims else None
        self._resumption: Resumption | None = None
        self._drops: UsageFilter | None = None

    def resume(self, *, has_usage: bool) -> None:
        """Another source begins, at the beginning; what is handed on already is left out.

        Raises `UpstreamProtocolError` where the readers could not be served by it.
        """
        if self._has_usage and not has_usage:
            raise UpstreamProtocolError(_LOST)  # some were promised the chunk
        self._drops = UsageFilter() if has_usage and not self._has_usage else None
        self._resumption = None
        if self._body.begun:
            if not self._body.is_whole:
                raise UpstreamProtocolError(_LOST)
            self._resumption = Resumption(self._body.whole())

    def take(self, raw: bytes, *, terminal: bool = False) -> None:
        """Hand on what came. `terminal`: with it the answer is complete.

        Raises `UpstreamProtocolError` where it does not go on as the first source began.
        """
        if self._resumption is not None:
            raw = self._resumption.feed(raw)
        if self._drops is not None:
            raw = self._drops.feed(raw)
        trimmed = raw if self._filter is None else self._filter.feed(raw)
        if raw or trimmed or terminal:
            self._body.append(Piece(raw, trimmed), terminal=terminal)

    def finish(self) -> None:
        """The source came to its proper end. Raises as `take` does."""
        rest = b"" if self._resumption is None else self._resumption.finish()
        if self._drops is not None:
            rest = self._drops.feed(rest) + self._drops.flush()
        trimmed = rest
        if self._filter is not None:
            trimmed = self._filter.feed(rest) + self._filter.flush()
        if rest or trimmed:
            self._body.append(Piece(rest, trimmed))
        self._body.close()
