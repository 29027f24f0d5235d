"""One configuration in force: immutable, replaced as a whole by a reload."""

from dataclasses import dataclass, field
from itertools import count

from proxy.access.clients import Access
from proxy.core.invalidation import Events
from proxy.engine.base import Observer
from proxy.engine.resources import Resources
from proxy.engine.service import CacheService
from proxy.upstream.base import Forwarder


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Snapshot:
    """What a request needs; it keeps the one it began with.

    `number` tells it from every other, for those who may not hold on to it: settings that were
    replaced have connections to close once nobody does.
    """

    service: CacheService
    resources: Resources
    forwarder: Forwarder
    access: Access
    observer: Observer
    max_body_bytes: int
    websocket_idle_seconds: float | None
    key_prefix: str
    events: Events
    number: int = field(default_factory=count(1).__next__)
