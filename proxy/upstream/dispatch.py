"""All upstreams of one configuration: the `Forwarder` that the engine is given."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain as chained

from proxy.clock import Clock
from proxy.core.breaker import CircuitState
from proxy.errors import CircuitOpen
from proxy.upstream.base import AttemptObserver, Chain, Exchange, Outgoing, Transport
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.course import Course
from proxy.upstream.gate import Gate, GateState
from proxy.upstream.guard import Guard
from proxy.upstream.keypool import KeyPool
from proxy.upstream.pooled_key import KeyStatus
from proxy.upstream.router import Router
from proxy.upstream.running import Upstream
from proxy.upstream.transport import open_transport


class UpstreamSet:
    """Resolves models, and sends along their chains.

    `strip_client_credentials` is for a proxy that checks credentials itself: then they never go
    upstream, also not to an upstream without keys. `shows_names`: clients are told who answered.
    Raises `ValueError` for a route to an upstream that is not among `configs`.
    """

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        router: Router,
        *,
        clock: Clock,
        strip_client_credentials: bool = False,
        shows_names: bool = True,
        observer: AttemptObserver | None = None,
        transport_factory: Callable[[UpstreamConfig], Transport] = open_transport,
    ) -> None:
        self._router = router
        self._clock = clock
        self._strip = strip_client_credentials
        self._shows_names = shows_names
        self._observer = observer
        if unknown := sorted(router.upstreams() - {config.name for config in configs}):
            raise ValueError(f"a route leads to an unknown upstream: {', '.join(unknown)}")
        self._upstreams = {
            config.name: Upstream(
                config,
                transport_factory(config),
                _pool(config),
                Guard(config, clock),
                clock,
                Gate(config.name, config.queue, clock) if config.queue is not None else None,
            )
            for config in configs
        }
        self._account_headers = {
            config.name: tuple(
                dict.fromkeys([name.lower().encode() for name in config.account_headers])
            )
            for config in configs
        }

    def take_over(self, other: "UpstreamSet") -> None:
        """Go on with what `other` has learned of the upstreams that both have.

        The circuit and the retry budget stay the same ones for requests under the old and the new
        settings, where what they guard and how is unchanged; so does the line of those who wait.
        """
        for name, upstream in list(self._upstreams.items()):
            before = other._upstreams.get(name)  # noqa: SLF001  # its own kind
            if before is None:
                continue
            if upstream.pool is not None and before.pool is not None:
                upstream.pool.take_over(before.pool)
            guard, gate, queue = upstream.guard, upstream.gate, upstream.config.queue
            if before.config.is_guarded_like(upstream.config):
                guard = before.guard
            if before.gate is not None and queue is not None:
                gate = before.gate
                gate.change(queue)
            self._upstreams[name] = replace(upstream, guard=guard, gate=gate)

    def resolve(self, model: str | None) -> Chain:
        """The chain for a client's model name. Raises `UnknownModel`."""
        return self._router.resolve(model)

    async def send(self, chain: Chain, outgoing: Outgoing) -> Exchange:
        """Try keys, then profiles, until one answers or the attempts are used up.

        Raises `UpstreamError`, `KeysExhausted` among them, and whatever a streamed body's source
        raises.
        """
        course = Course(
            chain,
            self._upstreams,
            outgoing,
            self._clock,
            strip_credentials=self._strip,
            shows_names=self._shows_names,
            observer=self._observer,
        )
        return await course.run()

    def spared(self, chain: Chain) -> CircuitOpen | None:
        """Why a call that can do without this chain is not to wait for it; counted as withheld."""
        refusals: dict[str, CircuitOpen] = {}
        for name in dict.fromkeys(profile.upstream for profile in chain.profiles):
            guard = self._upstreams[name].guard
            if guard.state is CircuitState.CLOSED:
                return None
            refusals[name] = guard.refusal
        soonest = min(refusals.values(), key=lambda refusal: refusal.seconds, default=None)
        if self._observer is not None and soonest is not None and soonest.seconds:
            for name in refusals:
                self._observer.withheld(name, "circuit-open")
        return soonest

    def account_headers(self, chain: Chain) -> tuple[bytes, ...]:
        """Names (lower case) of the request headers that choose an account along this chain."""
        every = chain.every
        if len(every) == 1:  # nearly always, and asked for each request
            return self._account_headers[every[0].upstream]
        names = [self._account_headers[profile.upstream] for profile in every]
        return tuple(dict.fromkeys(chained.from_iterable(names)))

    def uses_client_credentials(self, chain: Chain) -> bool:
        """True where the client's own credential goes to any upstream of the chain."""
        return not self._strip and any(
            self._upstreams[profile.upstream].pool is None for profile in chain.every
        )

    def max_batch(self, chain: Chain) -> int | None:
        """Most inputs in one embeddings request; None is no limit."""
        limits = [self._upstreams[profile.upstream].config.max_batch for profile in chain.every]
        return min((limit for limit in limits if limit is not None), default=None)

    def key_states(self) -> dict[str, tuple[KeyStatus, ...]]:
        """For each upstream with keys: their fingerprints and states."""
        now = self._clock.monotonic()
        return {name: pool.states(now) for name, pool in self.pools.items()}

    @property
    def pools(self) -> dict[str, KeyPool]:
        """The pools of the upstreams with keys, by name."""
        return {
            name: upstream.pool
            for name, upstream in self._upstreams.items()
            if upstream.pool is not None
        }

    def circuit_states(self) -> dict[str, CircuitState]:
        """For each upstream: where its circuit stands."""
        return {name: upstream.guard.state for name, upstream in self._upstreams.items()}

    def gate_states(self) -> dict[str, GateState]:
        """For each upstream with a limit of requests: how full it is."""
        return {
            name: upstream.gate.state
            for name, upstream in self._upstreams.items()
            if upstream.gate is not None
        }

    @property
    def transports(self) -> tuple[Transport, ...]:
        """Its connections, for who closes them once nobody holds on to this set."""
        return tuple(upstream.transport for upstream in self._upstreams.values())


def _pool(config: UpstreamConfig) -> KeyPool | None:
    if not config.keys:
        return None
    return KeyPool(
        config.keys,
        cooldown_seconds=config.key_cooldown_seconds,
        quota_cooldown_seconds=config.quota_cooldown_seconds,
        retire_seconds=config.key_retire_seconds,
    )
