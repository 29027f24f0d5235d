"""The supervisor's end of the socket to one worker: without waiting, in both directions."""

import selectors
import socket
from collections.abc import Iterator
from typing import Final

from proxy.workers.messages import Message, Unpacker

_RECEIVE_BYTES: Final = 256 * 1024


class Line:
    """Watched by `selector`, where `owner` is its data; closed by whoever hangs up first."""

    def __init__(self, end: socket.socket, selector: selectors.BaseSelector, owner: object) -> None:
        end.setblocking(False)  # noqa: FBT003  # the standard library's name for it
        self.end = end
        self._selector = selector
        self._owner = owner
        self._unpacker = Unpacker()
        self._unsent = bytearray()
        selector.register(end, selectors.EVENT_READ, owner)

    def say(self, message: bytes) -> None:
        """Send it, as soon as the worker takes it."""
        if self._is_open:
            self._unsent += message
            self.send()

    def send(self) -> None:
        """Send what the worker takes of what it did not take before."""
        if not self._is_open:
            return
        try:
            while self._unsent:
                del self._unsent[: self.end.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it ends
            self._unsent.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if self._selector.get_key(self.end).events != events:
            self._selector.modify(self.end, events, self._owner)

    def received(self) -> Iterator[Message]:
        """What the worker has said; hangs up where it has."""
        while self._is_open:
            try:
                received = self.end.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                received = b""
            if not received:
                self.hang_up()
                return
            yield from self._unpacker.feed(received)

    def hang_up(self) -> None:
        """Close this end; safe to call twice."""
        if self._is_open:
            self._selector.unregister(self.end)
            self.end.close()

    @property
    def _is_open(self) -> bool:
        return self.end.fileno() >= 0
