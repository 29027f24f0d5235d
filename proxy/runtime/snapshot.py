"""One configuration in force: immutable, replaced as a whole by a reload."""

from dataclasses import dataclass

from proxy.access.clients import Access
from proxy.core.invalidation import Events
from proxy.engine.base import Observer
from proxy.engine.resources import Resources
from proxy.engine.service import CacheService
from proxy.upstream.base import Forwarder


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """What a request needs; it keeps the one it began with."""

    service: CacheService
    resources: Resources
    forwarder: Forwarder
    access: Access
    observer: Observer
    max_body_bytes: int
    websocket_idle_seconds: float | None
    key_prefix: str
    events: Events
