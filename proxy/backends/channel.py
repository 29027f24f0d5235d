"""Short messages to all who share a medium, as they happen; what gets lost is found by polling."""

from collections.abc import Callable
from typing import Protocol


class Channel(Protocol):
    """Publish and subscribe. Messages can get lost while the medium is down, never be reordered."""

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Have `heard` called with each message to `topic`, one's own included."""
        ...

    def when_connected(self, callback: Callable[[], None]) -> None:
        """Have `callback` called after each (re)connection: messages may have been missed."""
        ...

    async def publish(self, topic: str, message: bytes) -> None:
        """Raises `StoreUnavailable`."""
        ...

    async def open(self) -> None:
        """Begin to listen; a medium that is down now must not make this fail."""
        ...

    async def close(self) -> None: ...
