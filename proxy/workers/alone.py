"""Serving with one process, which is its own supervisor."""

import asyncio
import logging
import signal
from collections.abc import Callable

from proxy.edge.app import create_app
from proxy.errors import SettingsError
from proxy.runtime import Runtime, Settings
from proxy.runtime.fixed import fixed_changes
from proxy.workers.server import ProxyServer, event_loop, server_config

log = logging.getLogger("magic_proxy")


def serve_alone(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    """Serve until told to stop; the exit code. Raises SettingsError for files that can't be used.

    `read_settings` is called at SIGHUP.
    """
    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(_serve(settings, read_settings))


async def _serve(settings: Settings, read_settings: Callable[[], Settings]) -> int:
    app = create_app(settings)

    def listening(urls: list[str]) -> None:
        for url in urls:
            log.info("listening on %s/v1", url)

    server = ProxyServer(server_config(app, settings), listening)

    def reload() -> None:
        _reload(app.runtime, settings, read_settings)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    for stop in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these in order, and raises them again when it has: that is no failure.
        signal.signal(stop, lambda *_: None)
    try:
        await server.serve()
    except SystemExit:  # how uvicorn gives up; it has logged why
        return 1
    return 0 if server.started else 1


def _reload(runtime: Runtime, first: Settings, read_settings: Callable[[], Settings]) -> None:
    """Put the file's settings in force; with a mistake in them, the old ones stay."""
    try:
        settings = read_settings()
        runtime.reload(settings)
    except SettingsError as error:
        not_reloaded(error)
        return
    for change in fixed_changes(first, settings):
        log.warning("%s", change)
    log.info("settings reloaded")


def not_reloaded(error: SettingsError) -> None:
    """Tell why the old settings stay in force."""
    for mistake in error.mistakes:
        log.error("not reloaded, the old settings stay in force: %s", mistake)
