"""A stand-in upstream: it answers like OpenAI's API, offline, and fails like one on demand.

The demo and the integration tests use this one. It imports nothing
above `proxy.clock`.
"""

from proxy.standin.app import Pace, StandIn
from proxy.standin.record import Recorded
from proxy.standin.script import (
    Close,
    Script,
    deactivated,
    error_in_ok,
    out_of_quota,
    rate_limited,
    server_error,
    unauthorised,
)
from proxy.standin.server import RunningServer, RunningStandIn, serve_in_thread, start_standin
from proxy.standin.signals import Signal

__all__ = [
    "Close",
    "Pace",
    "Recorded",
    "RunningServer",
    "RunningStandIn",
    "Script",
    "Signal",
    "StandIn",
    "deactivated",
    "error_in_ok",
    "out_of_quota",
    "rate_limited",
    "serve_in_thread",
    "server_error",
    "start_standin",
    "unauthorised",
]
