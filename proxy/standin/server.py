"""Runs servers in threads, each with a loop of its own, on free ports of the loopback."""

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import Any, Self, cast

import uvicorn
from uvicorn.loops.auto import auto_loop_factory
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from proxy.standin.app import StandIn
from proxy.standin.delivery import Connection

HOST = "127.0.0.1"


_TICK_SECONDS = 1.0
_LOOK_SECONDS = 0.005


class _Server(uvicorn.Server):
    """Says when it listens, and when it never will; ends when it is told to.

    uvicorn looks ten times a second whether it is to end, and whether it may: 0.2 s for each of
    the hundreds of servers that tests start.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def end(self) -> None:
        """Begin to end. To be called from another thread, also when it has ended."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed: it has ended
                self._loop.call_soon_threadsafe(self._told.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _TICK_SECONDS)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, in its order."""
        for server in self.servers:
            server.close()
        for listener in sockets or ():
            listener.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while state.connections or state.tasks:  # noqa: ASYNC110 - uvicorn tells nobody
                    await asyncio.sleep(_LOOK_SECONDS)
                for server in self.servers:
                    await server.wait_closed()
        except TimeoutError:
            for task in state.tasks:
                task.cancel()
        await self.lifespan.shutdown()


class RunningServer:
    """A server in a thread; leaving the `with` block, or `stop`, ends it."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._server = _Server(config)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"server:{self.port}", daemon=True)

    @property
    def url(self) -> str:
        """The root of the server, without a slash at the end."""
        return f"http://{HOST}:{self.port}"

    def start(self, timeout: float = 20.0) -> None:
        """Return when it listens. Raises RuntimeError if it does not come up."""
        self._thread.start()
        if not self._server.ready.wait(timeout):
            raise RuntimeError(f"the server on {self.url} is not up after {timeout} s")
        if self._failure is not None:
            raise RuntimeError(f"the server on {self.url} did not start") from self._failure

    def stop(self, timeout: float = 20.0) -> None:
        """End in order: finish what is under way, then the app's shutdown. Safe to call twice."""
        self._server.end()
        self._thread.join(timeout)
        self._listener.close()
        if self._thread.is_alive():
            raise RuntimeError(f"the server on {self.url} is still there after {timeout} s")
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise RuntimeError(f"the server on {self.url} failed") from failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
                runner.run(self._server.serve(sockets=[self._listener]))
        except BaseException as failure:  # noqa: BLE001 - told to whoever starts or stops the server
            self._failure = failure
        finally:
            self._server.ready.set()


class RunningStandIn(RunningServer):
    """A running stand-in: `url` is where it is, `app` what it saw and does."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, app: StandIn) -> None:
        super().__init__(config, listener)
        self.app = app

    @property
    def base_url(self) -> str:
        """What an OpenAI client or the proxy takes as its base URL."""
        return f"{self.url}/v1"

    def drop_connections(self) -> None:
        """Reset every connection, idle or not, as a restarted upstream does."""
        for connection in list(self.app.connections):
            # A loop that has ended has no connections left.
            connection.loop.call_soon_threadsafe(connection.transport.abort)

    def stop(self, timeout: float = 20.0) -> None:
        """End now: what is held or under way is cut off."""
        self.app.reset()
        if self._thread.is_alive():
            self.drop_connections()
        super().stop(timeout)


class _StandInProtocol(HttpToolsProtocol):
    """Gives the app its connection, to cut it and to hear that it is gone."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._connection = Connection(transport, self.loop)
        self._standin.connections.add(self._connection)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["standin.connection"] = self._connection

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._standin.connections.discard(self._connection)
        self._connection.lost.set()

    @property
    def _standin(self) -> StandIn:
        return cast("StandIn", self.config.app)


def listen(port: int = 0) -> socket.socket:
    """A listening socket on the loopback; 0 takes a free port."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # So that a server can come back on the port that it had.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen(1024)
    return listener


def serve_in_thread(config: uvicorn.Config, *, port: int = 0) -> RunningServer:
    """Run a server as configured, but for its address; it listens when this returns.

    Raises RuntimeError if it does not start.
    """
    running = RunningServer(config, listen(port))
    running.start()
    return running


def start_standin(app: StandIn | None = None, *, port: int = 0) -> RunningStandIn:
    """Run a stand-in; it listens when this returns."""
    app = app or StandIn()
    config = uvicorn.Config(
        app,
        lifespan="off",
        http=_StandInProtocol,
        access_log=False,
        log_config=None,
        date_header=True,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    running = RunningStandIn(config, listen(port), app)
    running.start()
    return running
