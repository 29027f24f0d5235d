"""One body for many readers: each at its own pace, from the first byte, within bounds (B43).

The source waits for the fastest reader, so that nobody slows another down; for none where somebody
waits for the end. What is read by all is let go once nobody new may begin; a reader that falls
farther behind than the buffer holds is cut off with an error.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from proxy.errors import CutOff, ProxyError

# How far the source may run ahead of its fastest reader.
READ_AHEAD_BYTES: Final = 256 * 1024
# A reader that is behind gets several pieces in one write.
_LONGEST_READ: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the body: as it goes to those who want all of it, and without the usage chunk."""

    whole: bytes
    trimmed: bytes


class Broadcast:
    """Pieces in order; `max_bytes` is how much may be held for readers that are behind.

    While all of the body is held, new readers may begin. `keeps` False lets go at once of what all
    have read.
    """

    def __init__(self, *, max_bytes: int, keeps: bool) -> None:
        self._max_bytes = max_bytes
        self._ahead_bytes = min(READ_AHEAD_BYTES, max_bytes // 2)
        self._keeps = keeps
        self._pieces: list[Piece] = []
        self._first = 0  # the number of the first piece that is held
        self._held = 0
        self._came = 0  # bytes, in all
        self._readers: set[Reader] = set()
        self._source: asyncio.Future[None] | None = None
        self._hurries = 0
        self._has_patience = True
        self._closed = False
        self.error: ProxyError | None = None
        self.terminal: int | None = None
        """The number of the piece with which the answer is complete, whatever follows."""

    @property
    def is_whole(self) -> bool:
        """True while nothing was let go: whoever begins now gets every byte."""
        return self._first == 0 and self._keeps

    @property
    def begun(self) -> bool:
        """True once there was a piece."""
        return self.end > 0

    @property
    def end(self) -> int:
        """The number that the next piece will get."""
        return self._first + len(self._pieces)

    @property
    def closed(self) -> bool:
        """True once no more will come."""
        return self._closed

    def append(self, piece: Piece, *, terminal: bool = False) -> None:
        """Add a piece and wake all who wait for it."""
        if terminal and self.terminal is None:
            self.terminal = self.end
        self._pieces.append(piece)
        self._held += len(piece.whole)
        self._came += len(piece.whole)
        if self._held > self._max_bytes:
            self._keeps = False
            self._let_go()
        self._wake()

    def close(self, error: ProxyError | None = None) -> None:
        """The body is at its end, or broke off with `error`, which each reader will raise."""
        self._closed = True
        self.error = error
        self._wake()

    def reader(self, *, trimmed: bool) -> "Reader":
        """A new reader, at the first piece that is held."""
        reader = Reader(self, self._first, self._came - self._held, trimmed=trimmed)
        self._readers.add(reader)
        self._move_on()
        return reader

    def whole(self) -> bytes:
        """All that is held."""
        return b"".join([piece.whole for piece in self._pieces])

    @property
    def has_room(self) -> bool:
        """Whether `room` would return at once."""
        if not self._readers or self._hurries > 0:
            return True
        ahead = self._came - max([reader.passed for reader in self._readers])
        # One that is farther behind than what is held is cut off, and no reason to wait.
        return ahead < self._ahead_bytes or ahead > self._held

    async def room(self, patience_seconds: float | None = None) -> None:
        """Return when the fastest reader is near enough; at once where nobody reads.

        Where somebody may wait for the end who is not known here, readers are waited for no longer
        than `patience_seconds`, once, as long as all is held.
        """
        limit = patience_seconds if self._keeps else None
        if self.has_room or (limit is not None and not self._has_patience):
            return
        try:
            async with asyncio.timeout(limit):
                await self._near()
        except TimeoutError:
            self._has_patience = False

    async def _near(self) -> None:
        while not self.has_room:
            self._source = asyncio.get_running_loop().create_future()
            try:
                await self._source
            finally:
                self._source = None

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """While somebody waits for the end, and reads nothing."""
        self._hurries += 1
        self._move_on()
        try:
            yield
        finally:
            self._hurries -= 1

    # What follows is for readers.

    def take(self, reader: "Reader", *, trimmed: bool) -> bytes | None:
        """The bytes from where the reader is, which moves on; None: nothing yet."""
        at = reader.number - self._first
        if at < 0:
            raise CutOff("The client read so slowly that a part of the answer is gone.")
        left = len(self._pieces) - at
        if left == 0:
            return None
        if left == 1:  # as it is with everyone who keeps up
            piece = self._pieces[at]
            reader.number += 1
            reader.passed += len(piece.whole)
            return piece.trimmed if trimmed else piece.whole
        taken: list[bytes] = []
        size = 0
        for place in range(at, len(self._pieces)):
            piece = self._pieces[place]
            taken.append(piece.trimmed if trimmed else piece.whole)
            size += len(piece.whole)
            if size >= _LONGEST_READ:
                break
        reader.number += len(taken)
        reader.passed += size
        return b"".join(taken)

    def moved(self) -> None:
        """A reader has read something."""
        if not self._keeps:
            self._let_go()
        self._move_on()

    def leave(self, reader: "Reader") -> None:
        """This reader reads no more."""
        self._readers.discard(reader)
        self.moved()

    def _fastest(self) -> int:
        if self._hurries:
            return self.end
        return max((reader.number for reader in self._readers), default=self.end)

    def _let_go(self) -> None:
        slowest = min((reader.number for reader in self._readers), default=self.end)
        passed = max(0, slowest - self._first)
        dropped = sum(len(piece.whole) for piece in self._pieces[:passed])
        # The source waits for the fastest, so nothing is taken from it.
        most = self._fastest() - self._first
        while self._held - dropped > self._max_bytes and passed < most:
            dropped += len(self._pieces[passed].whole)
            passed += 1
        if passed:
            del self._pieces[:passed]
            self._first += passed
            self._held -= dropped

    def _move_on(self) -> None:
        if self._source is not None and not self._source.done() and self.has_room:
            self._source.set_result(None)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()


class Reader:
    """One reader of a broadcast; leave it when done."""

    __slots__ = ("_broadcast", "_news", "_trimmed", "number", "passed")

    def __init__(self, broadcast: Broadcast, number: int, passed: int, *, trimmed: bool) -> None:
        self._broadcast = broadcast
        self._trimmed = trimmed
        self._news: asyncio.Future[None] | None = None
        self.number = number
        """The number of the piece that is read next."""
        self.passed = passed
        """The bytes of all pieces before that one, read or let go."""

    async def read(self) -> bytes | None:
        """The next bytes, as many as are there; None at the end.

        Raises the error with which the body broke off, and `CutOff` where it fell behind.
        """
        broadcast = self._broadcast
        while True:
            chunk = broadcast.take(self, trimmed=self._trimmed)
            if chunk is not None:
                broadcast.moved()
                if chunk:
                    return chunk
            elif broadcast.closed:
                if broadcast.error is not None:
                    raise broadcast.error
                return None
            else:
                self._news = asyncio.get_running_loop().create_future()
                try:
                    await self._news
                finally:
                    self._news = None

    @property
    def has_terminal(self) -> bool:
        """True once everything was read up to what completes the answer."""
        terminal = self._broadcast.terminal
        return terminal is not None and self.number > terminal

    def wake(self) -> None:
        """There is news."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def leave(self) -> None:
        """Read no more; safe to call twice."""
        self._broadcast.leave(self)
