"""Resources: GETs that are answered from the cache, and the writes that make them out of date."""

from typing import Final

from proxy.clock import Clock
from proxy.core.control import client_control
from proxy.core.outcome import BypassReason
from proxy.core.replay import AS_STORED
from proxy.core.resources import (
    PARTIAL,
    READS,
    Resource,
    ResourceSet,
    accepts_json,
    derive_resource,
    tags_of_path,
)
from proxy.core.selectors import Selector
from proxy.core.wire import Headers
from proxy.engine.base import Answer, Call
from proxy.engine.explaining import Explained, passing
from proxy.engine.generations import Generations
from proxy.engine.plan import Plan, scope_of
from proxy.engine.service import CacheService
from proxy.upstream.base import ResourceForwarder

_ROOT: Final = "/v1"
# The upstream refused the request, and did nothing of it.
_REFUSALS = range(400, 500)


class Resources:
    """The resources of one configuration; paths are raw, after the API root.

    With `enabled` false nothing is cached, and only what is made here is read through this.
    """

    def __init__(
        self,
        resources: ResourceSet,
        service: CacheService,
        forwarder: ResourceForwarder,
        generations: Generations,
        clock: Clock,
        *,
        enabled: bool,
    ) -> None:
        self._resources = resources
        self._service = service
        self._forwarder = forwarder
        self._generations = generations
        self._clock = clock
        self._enabled = enabled

    def find(self, method: str, path: str, headers: Headers) -> Resource | None:
        """The resource that a request reads as a whole; None for what passes through."""
        if method not in READS:
            return None
        resource = self._resources.find(_ROOT + path)
        if resource is None or self._forwarder.merges(path):
            return resource  # what is made here is given whole, whatever was asked for
        is_cached = self._enabled and resource.rule.ttl_seconds > 0
        is_whole = accepts_json(headers) and not any(name in PARTIAL for name, _ in headers)
        return resource if is_cached and is_whole else None

    async def read(self, resource: Resource, call: Call) -> Answer:
        """The answer to a read. Raises `UnknownModel`; other proxy errors become answers."""
        return await self._service.finish(self._plan(resource, call))

    async def explain(self, call: Call) -> Explained:
        """What would happen to a read, without doing it. Raises `UnknownModel`."""
        resource = self.find("GET", call.path, call.headers)
        if resource is not None:
            return await self._service.explain_plan(self._plan(resource, call))
        named = self._resources.find(_ROOT + call.path)
        is_kept = named is not None and named.rule.ttl_seconds > 0
        reason = BypassReason.NOT_CACHEABLE if is_kept else BypassReason.NO_RULE
        return passing(call.endpoint, reason if self._enabled else BypassReason.DISABLED)

    def _plan(self, resource: Resource, call: Call) -> Plan:
        chain = self._forwarder.chain(call.path)
        path = _ROOT + call.path
        return Plan(
            call=call,
            chain=chain,
            derivation=derive_resource(
                resource, path, call.headers, scope_of(call, self._forwarder, chain), chain.model
            ),
            control=client_control(call.headers),
            wanted=AS_STORED,
            items=None,
            started=self._clock.monotonic(),
            generation=self._generations.current,
            given_tags=tags_of_path(path),
            keyed=(*resource.vary, *self._forwarder.account_headers(chain)),
        )

    async def written(self, method: str, path: str, status: int | None) -> None:
        """A write was answered so: what it made out of date is not served any more.

        Nor is what it may have made so, where it failed half-way or nobody knows (None).
        """
        if status in _REFUSALS:
            return
        tags = self._resources.outdated_by(method, _ROOT + path)
        await self._generations.add_all(Selector(tag=tag) for tag in tags)
