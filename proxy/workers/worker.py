"""One worker, from its fork to its end."""

import asyncio
import faulthandler
import logging
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxy.clock import SystemClock
from proxy.edge.app import create_app
from proxy.errors import SettingsError
from proxy.runtime import Runtime, Settings
from proxy.runtime.key_reports import Report
from proxy.workers.accepting import Crowd
from proxy.workers.link import Link, mark_of, settings_of
from proxy.workers.messages import Kind, Topic
from proxy.workers.roster import SAY_WHERE
from proxy.workers.server import WorkerServer, event_loop, server_config

log = logging.getLogger("magic_proxy")


@dataclass(frozen=True, slots=True)
class Seat:
    """What a worker begins with.

    `first` are the settings of the supervisor's start, `latest` those of the last reload: what a
    reload can't change is the same in all workers.
    """

    number: int
    end: socket.socket
    listeners: Sequence[socket.socket]
    crowd: Crowd
    first: Settings
    latest: Settings


def run_worker(seat: Seat) -> int:
    """Serve until told to stop; the exit code."""
    faulthandler.enable()
    faulthandler.register(SAY_WHERE)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the supervisor's: a terminal sends it to all
    try:
        with asyncio.Runner(loop_factory=event_loop) as runner:
            return runner.run(_serve(seat))
    except SettingsError as error:
        for mistake in error.mistakes:
            log.error("%s", mistake)  # noqa: TRY400  # the place says more than a traceback
        return 2


async def _serve(seat: Seat) -> int:
    link = Link(SystemClock(), lambda: setattr(server, "should_exit", True))
    app = create_app(seat.first, peers=link)
    runtime = app.runtime
    if seat.latest is not seat.first:
        runtime.reload(seat.latest)
    server = WorkerServer(
        server_config(app, seat.first), lambda: link.say(Kind.READY), seat.number, seat.crowd
    )
    await link.open(seat.end, _answerers(runtime))
    link.begin(runtime.metrics.families)
    for stop in (signal.SIGTERM, signal.SIGINT):
        # uvicorn stops on these in order, and raises them again when it has: that is no failure.
        signal.signal(stop, lambda *_: None)
    try:
        await server.serve(sockets=list(seat.listeners))
    except SystemExit:  # how uvicorn gives up; it has logged why
        return 1
    finally:
        await link.close(runtime.metrics.families())
    return 0 if server.started else 1


def _answerers(runtime: Runtime) -> dict[str, Any]:
    async def metrics(_: object) -> list[list[Any]]:
        return [family.as_json() for family in await runtime.families()]

    async def keys(_: object) -> Report:
        return runtime.own_key_report()

    async def purged(body: dict[str, Any]) -> bool:
        await runtime.purged_elsewhere(mark_of(body))
        return True

    async def reload(body: str) -> bool:
        runtime.reload(settings_of(body))
        return True

    return {
        Topic.METRICS: metrics,
        Topic.KEYS: keys,
        Topic.PURGED: purged,
        Topic.RELOAD: reload,
    }
