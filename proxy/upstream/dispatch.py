"""All upstreams of one configuration: the `Forwarder` that the engine is given."""

from collections.abc import Callable, Sequence

from proxy.clock import Clock
from proxy.upstream.base import AttemptObserver, Chain, Exchange, Outgoing, Transport
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.course import Course, Upstream
from proxy.upstream.keypool import KeyPool, KeyStatus
from proxy.upstream.router import Router
from proxy.upstream.transport import open_transport


class UpstreamSet:
    """Resolves models, and sends along their chains.

    `strip_client_credentials` is for a proxy that checks credentials itself: then they never go
    upstream, also not to an upstream without keys. Raises `ValueError` for a route to an upstream
    that is not among `configs`.
    """

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        router: Router,
        *,
        clock: Clock,
        strip_client_credentials: bool = False,
        observer: AttemptObserver | None = None,
        transport_factory: Callable[[UpstreamConfig], Transport] = open_transport,
    ) -> None:
        self._router = router
        self._clock = clock
        self._strip = strip_client_credentials
        self._observer = observer
        if unknown := sorted(router.upstreams() - {config.name for config in configs}):
            raise ValueError(f"a route leads to an unknown upstream: {', '.join(unknown)}")
        self._upstreams = {
            config.name: Upstream(config, transport_factory(config), _pool(config))
            for config in configs
        }

    def take_over(self, other: "UpstreamSet") -> None:
        """Go on with what `other` has learned of the keys of upstreams that both have."""
        for name, upstream in self._upstreams.items():
            before = other._upstreams.get(name)  # noqa: SLF001  # its own kind
            if upstream.pool is not None and before is not None and before.pool is not None:
                upstream.pool.take_over(before.pool)

    def resolve(self, model: str | None) -> Chain:
        """The chain for a client's model name. Raises `UnknownModel`."""
        return self._router.resolve(model)

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        """Try keys, then profiles, until one answers or the attempts are used up.

        Raises `UpstreamError`, `KeysExhausted` among them, and whatever a streamed body's source
        raises.
        """
        course = Course(
            [(profile, self._upstreams[profile.upstream]) for profile in chain.profiles],
            outgoing,
            self._clock,
            strip_credentials=self._strip,
            observer=self._observer,
        )
        return await course.run()

    def account_headers(self, chain: Chain) -> tuple[bytes, ...]:
        """Names (lower case) of the request headers that choose an account along this chain."""
        names = (
            name.lower().encode()
            for profile in chain.profiles
            for name in self._upstreams[profile.upstream].config.account_headers
        )
        return tuple(dict.fromkeys(names))

    def uses_client_credentials(self, chain: Chain) -> bool:
        """True where the client's own credential goes to any upstream of the chain."""
        return not self._strip and any(
            self._upstreams[profile.upstream].pool is None for profile in chain.profiles
        )

    def max_batch(self, chain: Chain) -> int | None:
        """Most inputs in one embeddings request; None is no limit."""
        limits = [self._upstreams[profile.upstream].config.max_batch for profile in chain.profiles]
        return min((limit for limit in limits if limit is not None), default=None)

    def key_states(self) -> dict[str, tuple[KeyStatus, ...]]:
        """For each upstream with keys: their fingerprints and states."""
        now = self._clock.monotonic()
        return {
            name: upstream.pool.states(now)
            for name, upstream in self._upstreams.items()
            if upstream.pool is not None
        }

    @property
    def transports(self) -> tuple[Transport, ...]:
        """Its connections, for who closes them once nobody holds on to this set."""
        return tuple(upstream.transport for upstream in self._upstreams.values())

    async def aclose(self) -> None:
        """Close every connection of every upstream, also those in use."""
        for transport in self.transports:
            await transport.aclose()


def _pool(config: UpstreamConfig) -> KeyPool | None:
    if not config.keys:
        return None
    return KeyPool(
        config.keys,
        cooldown_seconds=config.key_cooldown_seconds,
        quota_cooldown_seconds=config.quota_cooldown_seconds,
        retire_seconds=config.key_retire_seconds,
    )
