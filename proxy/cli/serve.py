"""`magic-proxy serve`: the server process, or several under one that watches them."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client import disable_created_metrics

from proxy.cli.logs import configure_logging, name_worker
from proxy.cli.options import ConfigFile, settings_file, settings_or_exit
from proxy.cli.output import fail
from proxy.clock import SystemClock
from proxy.errors import SettingsError
from proxy.settings.load import load_settings
from proxy.settings.models import Settings, Tier
from proxy.workers.alone import serve_alone
from proxy.workers.cores import usable_cores
from proxy.workers.server import bind

log = logging.getLogger("magic_proxy")


def serve(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|auto", help="How many processes serve; auto is one for each core."),
    ] = None,
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
    flags = _flags(host, port, workers, insecure_open=insecure_open)
    settings = settings_or_exit(path, flags)
    configure_logging(settings.server.log_level.value)
    # A second series for each counter, with the time of its making, that no rule here looks at.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client's gap
    log.info("settings: %s", path if path is not None else "defaults (no file)")
    try:
        code = _serve(settings, path, flags)
    except SettingsError as error:
        for mistake in error.mistakes:
            fail(str(mistake))
        raise typer.Exit(2) from None
    if code:
        raise typer.Exit(code)


def _serve(settings: Settings, path: Path | None, flags: dict[str, Any]) -> int:
    given = settings.server.workers
    count = given if isinstance(given, int) else usable_cores()
    for line in summary(settings, count):
        log.info("%s", line)

    def read_settings() -> Settings:
        return load_settings(path, os.environ, flags)

    if count == 1:
        return serve_alone(settings, read_settings)
    if settings.store.resolved_tiers == (Tier.MEMORY,):
        log.warning(
            "%d workers with `store: memory` are as many caches, each to be filled by itself: add "
            "a tier that they share, `disk` or `redis`",
            count,
        )
    # No single process needs it.
    from proxy.workers.supervisor import Supervisor  # noqa: PLC0415

    try:
        listeners = bind(settings.server.host, settings.server.port)
    except OSError as error:
        log.error("cannot listen on %s: %s", _address(settings), error)  # noqa: TRY400  # it says enough
        return 1
    return Supervisor(
        settings,
        listeners,
        count,
        SystemClock(),
        read_settings=read_settings,
        in_worker=name_worker,
    ).run()


def _address(settings: Settings) -> str:
    return f"{settings.server.host} port {settings.server.port}"


def summary(settings: Settings, workers: int) -> list[str]:
    """What a start says of itself: workers, stores, upstreams, rules."""
    tiers = ", ".join(tier.value for tier in settings.store.resolved_tiers)
    upstreams = ", ".join(
        f"{name} ({len(upstream.keys) or 'client'} key{'s' * (len(upstream.keys) > 1)})"
        for name, upstream in settings.upstreams.items()
    )
    return [
        f"workers: {workers}",
        f"store: {tiers}",
        f"upstreams: {upstreams}",
        f"rules: {len(settings.cache_settings.rules)}",
    ]


def _flags(
    host: str | None, port: int | None, workers: str | None, *, insecure_open: bool
) -> dict[str, Any]:
    """The options that were given, by the names of the settings that they come before."""
    given = {
        "server.host": host,
        "server.port": port,
        "server.workers": workers,
        "server.insecure_open": insecure_open or None,
    }
    return {name: value for name, value in given.items() if value is not None}
