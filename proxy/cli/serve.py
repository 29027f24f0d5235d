"""`magic-proxy serve`: the server process."""

import asyncio
import logging
import math
import os
import signal
import socket
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from prometheus_client import disable_created_metrics

from proxy.cli.logs import configure_logging
from proxy.cli.options import ConfigFile, settings_file, settings_or_exit
from proxy.cli.output import fail
from proxy.edge.app import Edge, create_app
from proxy.edge.hotpath import hot_protocol
from proxy.errors import SettingsError
from proxy.runtime import Runtime
from proxy.settings.load import load_settings
from proxy.settings.models import Settings

log = logging.getLogger("magic_proxy")


def serve(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    insecure_open: Annotated[
        bool,
        typer.Option(
            "--insecure-open",
            help="Allow 'clients: open' on an address that other machines reach.",
        ),
    ] = False,
) -> None:
    """Start the proxy. SIGTERM stops it in order, SIGHUP reads the settings again."""
    path = settings_file(config)
    flags = _flags(host, port, insecure_open=insecure_open)
    settings = settings_or_exit(path, flags)
    configure_logging(settings.server.log_level.value)
    # A second series for each counter, with the time of its making, that no rule here looks at.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client's gap
    log.info("settings: %s", path if path is not None else "defaults (no file)")
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            started = runner.run(_serve(settings, path, flags))
    except SettingsError as error:
        for mistake in error.mistakes:
            fail(str(mistake))
        raise typer.Exit(2) from None
    if not started:
        raise typer.Exit(1)


def event_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it can be had: it halves the cost of a socket."""
    try:
        import uvloop  # noqa: PLC0415  # not everywhere to be had
    except ImportError:  # Windows has none
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def server_config(app: Edge, settings: Settings) -> uvicorn.Config:
    """uvicorn as this proxy wants it: its own log off, no headers added to upstreams' answers."""
    return uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        loop="none",
        http=hot_protocol(app.direct),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=math.ceil(settings.server.shutdown_grace_seconds),
    )


class _Server(uvicorn.Server):
    """Says where it listens once it does: port 0 is known only then."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in (each for server in self.servers for each in server.sockets):
            host, port, *_ = listener.getsockname()
            shown = f"[{host}]" if ":" in host else host
            log.info("listening on http://%s:%d/v1", shown, port)


async def _serve(settings: Settings, path: Path | None, flags: dict[str, Any]) -> bool:
    app = create_app(settings)
    server = _Server(server_config(app, settings))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, app.runtime, path, flags)
    for stop in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these in order, and raises them again when it has: that is no failure.
        signal.signal(stop, lambda *_: None)
    for line in summary(settings):
        log.info("%s", line)
    try:
        await server.serve()
    except SystemExit:  # how uvicorn gives up; it has logged why
        return False
    return server.started


def _reload(runtime: Runtime, path: Path | None, flags: dict[str, Any]) -> None:
    """Put the file's settings in force; with a mistake in them, the old ones stay."""
    try:
        runtime.reload(load_settings(path, os.environ, flags))
    except SettingsError as error:
        for mistake in error.mistakes:
            log.error("not reloaded, the old settings stay in force: %s", mistake)  # noqa: TRY400  # the place says more than a traceback


def summary(settings: Settings) -> list[str]:
    """What a start says of itself: stores, upstreams, rules."""
    tiers = ", ".join(tier.value for tier in settings.store.resolved_tiers)
    upstreams = ", ".join(
        f"{name} ({len(upstream.keys) or 'client'} key{'s' * (len(upstream.keys) > 1)})"
        for name, upstream in settings.upstreams.items()
    )
    return [
        f"store: {tiers}",
        f"upstreams: {upstreams}",
        f"rules: {len(settings.cache_settings.rules)}",
    ]


def _flags(host: str | None, port: int | None, *, insecure_open: bool) -> dict[str, Any]:
    """The options that were given, by the names of the settings that they come before."""
    given = {
        "server.host": host,
        "server.port": port,
        "server.insecure_open": insecure_open or None,
    }
    return {name: value for name, value in given.items() if value is not None}
