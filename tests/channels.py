"""A `Channel` within one process, for tests of those who talk over one."""

from collections.abc import Callable

from proxy.errors import StoreUnavailable


class FakeAir:
    """What messages travel through: all `FakeChannel`s over one `FakeAir` hear each other.

    While it is `down`, publishing fails and nothing is heard; `come_back` reconnects everyone.
    """

    def __init__(self) -> None:
        self.down = False
        self.said: list[tuple[str, bytes]] = []
        self.channels: list[FakeChannel] = []

    def come_back(self) -> None:
        self.down = False
        for channel in self.channels:
            channel.reconnect()


class FakeChannel:
    """Delivers at once, in the call of `publish`, to those who are open."""

    def __init__(self, air: FakeAir | None = None) -> None:
        self.air = air or FakeAir()
        self._heard: dict[str, list[Callable[[bytes], None]]] = {}
        self._connected: list[Callable[[], None]] = []

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        self._heard.setdefault(topic, []).append(heard)

    def when_connected(self, callback: Callable[[], None]) -> None:
        self._connected.append(callback)

    async def publish(self, topic: str, message: bytes) -> None:
        if self.air.down:
            raise StoreUnavailable("the channel is down")
        self.air.said.append((topic, message))
        for channel in list(self.air.channels):
            channel.hear(topic, message)

    def hear(self, topic: str, message: bytes) -> None:
        for heard in self._heard.get(topic, ()):
            heard(message)

    def reconnect(self) -> None:
        for callback in self._connected:
            callback()

    async def open(self) -> None:
        self.air.channels.append(self)
        if not self.air.down:
            self.reconnect()

    async def close(self) -> None:
        if self in self.air.channels:
            self.air.channels.remove(self)
