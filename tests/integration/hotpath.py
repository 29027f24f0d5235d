"""A proxy whose connections can be watched from inside, and a client that sees each byte."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import orjson
import yaml

from proxy.clock import Clock
from proxy.edge.app import Edge, create_app
from proxy.edge.direct import Begun, Direct
from proxy.edge.heads import Known
from proxy.edge.hot_table import OnWire
from proxy.edge.hotpath import ProxyProtocol
from proxy.settings.load import load_settings
from proxy.settings.models import Settings
from proxy.standin import RunningServer, serve_in_thread
from proxy.workers.server import server_config
from tests.fakes import FakeClock
from tests.integration.contract import chat, metrics
from tests.integration.processes import ServedProxy
from tests.integration.servers import RunningProxy, merged
from tests.integration.wire import Wire, chunked
from tests.waiting import eventually

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
OFF: Mapping[str, Any] = {"server": {"hot_path_bytes": 0}}
Lines = Iterable[str]
T = TypeVar("T")


class SteadyClock(FakeClock):
    """Stands still for whoever reads it; who sleeps, sleeps, and moves nothing."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass
class Watch:
    """What the protocols of one server were given: counted in the server's thread."""

    parsed: int = 0
    """Requests that were read: not answered by their bytes alone."""
    by_head: int = 0
    """Of those, the ones that were answered without the server's parser."""
    received: int = 0
    lost: int = 0
    unsent: int = 0
    """The most that one connection had to hold for a client that does not read."""
    connections: list[ProxyProtocol] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, holds: Callable[[], bool], timeout: float = 10.0) -> None:
        """Return as soon as `holds` does."""
        with self.changed:
            assert self.changed.wait_for(holds, timeout), f"not within {timeout} s: {self}"


def watched(protocol: type[ProxyProtocol], watch: Watch) -> type[ProxyProtocol]:
    """The same protocol; `watch` hears of its reads, and of the requests that are parsed."""

    class Watched(protocol):  # type: ignore[valid-type, misc]  # a class made for one server
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            with watch.changed:
                watch.connections.append(self)
                watch.changed.notify_all()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            with watch.changed:
                watch.received += len(data)
                watch.unsent = max(watch.unsent, self.transport.get_write_buffer_size())
                watch.changed.notify_all()

        def on_message_begin(self) -> None:
            watch.parsed += 1
            super().on_message_begin()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            with watch.changed:
                watch.lost += 1
                watch.changed.notify_all()

    return Watched


def watch_heads(direct: Direct, watch: Watch) -> None:
    """Have `watch` hear of the requests that are answered by their heads and bodies."""
    begin = direct.begin

    def watched_begin(known: Known, received: bytes) -> OnWire | Begun | None:
        reply = begin(known, received)
        if isinstance(reply, tuple):
            watch.parsed += 1
            watch.by_head += 1
        return reply

    direct.begin = watched_begin  # type: ignore[method-assign]  # for one server


class HotProxy:
    """A proxy as the command line runs it, but in a thread, and watched."""

    def __init__(
        self,
        upstream: str,
        directory: Path,
        over: Mapping[str, Any] | None = None,
        *,
        clock: Clock | None = None,
        keep_alive_seconds: int | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._file = directory / "proxy_config.yaml"
        self._settings = {
            "server": {"host": "127.0.0.1", "port": 0, "access_log": False},
            "upstreams": {"openai": {"base_url": upstream}},
            "store": {"tiers": ["memory"]},
        }
        self.watch = Watch()
        settings = self._loaded(over or {})
        self.app: Edge = create_app(settings, clock=clock)
        if self.app.direct is not None:
            watch_heads(self.app.direct, self.watch)
        config = server_config(self.app, settings)
        protocol = config.http
        assert isinstance(protocol, type)
        assert issubclass(protocol, ProxyProtocol)
        config.http = watched(protocol, self.watch)
        if keep_alive_seconds is not None:
            config.timeout_keep_alive = keep_alive_seconds
        self._server: RunningServer = serve_in_thread(config)
        self.url = self._server.url

    def _loaded(self, over: Mapping[str, Any]) -> Settings:
        self._file.write_text(yaml.safe_dump(merged(self._settings, over)))
        return load_settings(self._file, env={})

    def reload(self, over: Mapping[str, Any]) -> None:
        """Put other settings in force, where a reload is done: on the server's loop."""
        settings = self._loaded(over)
        self.on_loop(lambda: self.app.runtime.reload(settings))

    def on_loop(self, what: Callable[[], T]) -> T:
        """The result of a call between two events of the server. One client has to be there."""
        done: list[T] = []
        happened = threading.Event()

        def call() -> None:
            done.append(what())
            happened.set()

        self.watch.connections[-1].loop.call_soon_threadsafe(call)
        assert happened.wait(10.0)
        return done[0]

    def parsed_by(self, work: Callable[[], T]) -> tuple[T, int]:
        """What `work` returns, and how many requests the parser saw meanwhile."""
        before = self.watch.parsed
        return work(), self.watch.parsed - before

    def metrics(self) -> dict[str, float]:
        return metrics(self.url)

    def entries_written(self) -> None:
        """Return when nothing is on its way to the store."""
        eventually(lambda: self.metrics()["magic_proxy_write_queue_entries"] == 0)

    def stop(self) -> None:
        self._server.stop()


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer as it was received."""

    raw: bytes
    head: bytes
    body: bytes

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def lines(self) -> list[tuple[str, str]]:
        """The header lines in order, as they are written."""
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]

    def __getitem__(self, name: str) -> str:
        (value,) = (value for each, value in self.lines if each.lower() == name)
        return value

    @property
    def x_cache(self) -> str:
        return self["x-cache"]

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Line(Wire):
    """One connection; what is sent in one call arrives as one read, where it is short."""

    def __init__(
        self,
        proxy: HotProxy | RunningProxy | ServedProxy,
        *,
        receive_buffer: int | None = None,
    ) -> None:
        self._watch = watch = proxy.watch if isinstance(proxy, HotProxy) else Watch()
        before = len(watch.connections)
        super().__init__(proxy.url, receive_buffer=receive_buffer)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if isinstance(proxy, HotProxy):
            watch.wait(lambda: len(watch.connections) > before)

    @property
    def protocol(self) -> ProxyProtocol:
        """The server's end; of the connection that was opened last."""
        return self._watch.connections[-1]

    def send(self, *pieces: bytes) -> None:
        """Each piece in a read of its own: the next one leaves when the server has the last."""
        for piece in pieces:
            target = self._watch.received + len(piece)
            self._socket.sendall(piece)
            if piece is not pieces[-1]:
                self._watch.wait(lambda target=target: self._watch.received >= target)  # type: ignore[misc]

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def ask(self, *pieces: bytes) -> Reply:
        self.send(*pieces)
        return self.read()

    def read(self) -> Reply:
        """The next whole answer."""
        while b"\r\n\r\n" not in self.received:
            self._receive_more()
        head = self.received.partition(b"\r\n\r\n")[0]
        start = len(head) + 4
        if b"transfer-encoding: chunked" in head.lower():
            while b"0\r\n\r\n" not in self.received[start:]:
                self._receive_more()
            end = self.received.index(b"0\r\n\r\n", start) + 5
        elif head.startswith(b"HTTP/1.1 1"):
            end = start
        else:
            (length,) = (
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            )
            end = start + length
            while len(self.received) < end:
                self._receive_more()
        raw, self.received = self.received[:end], self.received[end:]
        return Reply(raw, head, raw[start:])

    def read_some(self) -> bytes:
        """What has arrived, without waiting for more than the first of it; `read` gets it too."""
        if not self.received:
            self._receive_more()
        return self.received

    def read_end(self) -> bytes:
        """All that still comes, until the server closes in order."""
        while self._receive():
            pass
        rest, self.received = self.received, b""
        return rest

    def _receive_more(self) -> None:
        if not self._receive():
            raise EOFError(f"the connection ended after {self.received!r}")


def request(
    *lines: str,
    body: Any = None,
    target: str = CHAT,
    key: str | None = "sk-1",
    version: str = "1.1",
) -> bytes:
    """A whole request; `lines` are headers besides the usual ones."""
    content = body if isinstance(body, bytes) else orjson.dumps(chat() if body is None else body)
    head = [f"POST {target} HTTP/{version}", "host: proxy", "content-type: application/json"]
    head += [f"authorization: Bearer {key}"] if key is not None else []
    head += [f"content-length: {len(content)}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + content


def chunked_request() -> bytes:
    """The usual request, its body in two chunks."""
    head, _, body = request().partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    framed = b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", b""])
    return framed + chunked([body[:20], body[20:]])


def heat(line: Line, raw: bytes) -> Reply:
    """Ask until the answer is a plain hit that a repetition can be given of; the last of them."""
    first = line.ask(raw)
    assert first.status == 200, first
    second = line.ask(raw)
    assert second.x_cache == "HIT"
    return second


class Starter:
    """Starts proxies in front of one upstream, and stops them all at the end of a test."""

    def __init__(self, upstream: str, directory: Path) -> None:
        self._upstream = upstream
        self._directory = directory
        self._started: list[HotProxy] = []

    def __call__(
        self,
        over: Mapping[str, Any] | None = None,
        *,
        clock: Clock | None = None,
        keep_alive_seconds: int | None = None,
    ) -> HotProxy:
        directory = self._directory / f"hot-{len(self._started)}"
        proxy = HotProxy(
            self._upstream, directory, over, clock=clock, keep_alive_seconds=keep_alive_seconds
        )
        self._started.append(proxy)
        return proxy

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._started:
            self._started.pop().stop()
