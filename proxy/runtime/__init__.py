"""The composition root: the one place that names concrete classes and reads settings."""

from proxy.runtime.connections import ConnectionLimits
from proxy.runtime.peers import Peers
from proxy.runtime.runtime import LONGEST_STOP_SECONDS, Runtime
from proxy.runtime.snapshot import Snapshot
from proxy.settings.models import Settings

__all__ = [
    "LONGEST_STOP_SECONDS",
    "ConnectionLimits",
    "Peers",
    "Runtime",
    "Settings",
    "Snapshot",
]
