"""From settings to parts."""

from collections.abc import Iterable, Mapping

from proxy.access.clients import Access, Client, ClientMode
from proxy.backends.redis_config import RedisConfig
from proxy.clock import Clock
from proxy.core.catalogue import Listing, Named
from proxy.core.codec import peek_expiry
from proxy.core.scope import CREDENTIAL_HEADERS
from proxy.engine.base import StorageObserver
from proxy.engine.dictionaries import Dictionaries
from proxy.engine.service import CachePolicy
from proxy.engine.write_behind import WriteLimits
from proxy.metrics import Price
from proxy.settings.compile import compile_rules
from proxy.settings.models import (
    OPEN,
    CircuitSettings,
    ModelSettings,
    RedisSettings,
    RetryBudgetSettings,
    Settings,
    Tier,
    UnlistedModels,
    UpstreamSettings,
    WeightedKey,
)
from proxy.stores.base import LookUpObserver, Store
from proxy.stores.disk import DiskStore
from proxy.stores.memory import MemoryStore
from proxy.stores.tiered import TieredStore
from proxy.tasks import TaskGroup
from proxy.upstream.base import AttemptObserver, Forwarder, Profile, Timeouts
from proxy.upstream.budget import UNLIMITED, BudgetPolicy
from proxy.upstream.catalogue import Catalogue
from proxy.upstream.circuit import NEVER_OPENS, CircuitPolicy
from proxy.upstream.config import KeySecret, TransportName, UpstreamConfig
from proxy.upstream.dispatch import UpstreamSet
from proxy.upstream.queueing import QueuePolicy
from proxy.upstream.router import Route, Router

_ACCOUNT_HEADERS = ("openai-organization", "openai-project")


def build_tiers(settings: Settings, clock: Clock, observer: LookUpObserver) -> list[Store]:
    """The tiers in the order to ask; `observer` is told of look-ups that leave the process."""
    store = settings.store
    tiers: list[Store] = []
    for tier in store.resolved_tiers:
        match tier:
            case Tier.MEMORY:
                tiers.append(MemoryStore(max_bytes=store.memory.max_bytes, clock=clock))
            case Tier.DISK:
                tiers.append(
                    DiskStore(
                        store.disk.path,
                        max_bytes=store.disk.max_bytes,
                        sweep_interval_seconds=store.disk.sweep_interval_seconds,
                        clock=clock,
                        observer=observer,
                    )
                )
            case Tier.REDIS:
                tiers.append(_redis(store.redis, clock, observer))
            case Tier.AUTO:
                raise AssertionError("resolved_tiers leaves no `auto`")
    return tiers


def _redis(redis: RedisSettings, clock: Clock, observer: LookUpObserver) -> Store:
    from proxy.stores.redis import RedisStore  # noqa: PLC0415  # its client costs 0.2 s and 15 MB

    return RedisStore(
        redis_config(redis),
        timeout_seconds=redis.timeout_seconds,
        write_timeout_seconds=redis.write_timeout_seconds,
        max_connections=redis.max_connections,
        max_value_bytes=redis.max_value_bytes,
        clock=clock,
        observer=observer,
    )


def redis_config(redis: RedisSettings) -> RedisConfig:
    """The server that the store and what is shared beside it are on."""
    assert redis.url is not None, "the settings refuse this tier without a URL"
    return RedisConfig(
        redis.url.get_secret_value(),
        ca_file=str(redis.ca_file) if redis.ca_file is not None else None,
        connect_timeout_seconds=redis.connect_timeout_seconds,
        failure_threshold=redis.failure_threshold,
        retry_seconds=redis.retry_seconds,
    )


def combine(tiers: list[Store]) -> Store:
    """One store over all tiers; a single tier needs no layer above it."""
    return tiers[0] if len(tiers) == 1 else TieredStore(tiers, expires_at_of=peek_expiry)


def write_limits(settings: Settings) -> WriteLimits:
    """The bounds of the write queue."""
    store = settings.store
    return WriteLimits(
        entries=store.write_queue_entries,
        bytes=store.write_queue_bytes,
        compress_above_bytes=store.compress_above_bytes,
    )


def build_dictionaries(
    settings: Settings,
    tiers: list[Store],
    clock: Clock,
    tasks: TaskGroup,
    observer: StorageObserver,
) -> Dictionaries:
    """Dictionaries in the last tier: it outlives the others, and all share it."""
    return Dictionaries(
        tiers[-1],
        clock,
        tasks,
        observer,
        writing=settings.store.dictionaries,
        compress_above_bytes=settings.store.compress_above_bytes,
    )


def build_policy(settings: Settings) -> CachePolicy:
    """What the operator set for the cache as a whole."""
    cache = settings.cache_settings
    return CachePolicy(
        rules=compile_rules(settings),
        enabled=cache.enabled,
        key_prefix=cache.key_prefix,
        expose_key=cache.expose_key,
        tags_header=cache.tags_header.lower().encode() if cache.tags_header else None,
        max_refreshes=cache.max_refreshes,
    )


def build_access(settings: Settings) -> Access:
    """Who may use the proxy."""
    admins = frozenset(settings.admin.key_hashes)
    if settings.clients is None:
        return Access(ClientMode.TRANSPARENT, {}, admins)
    if settings.clients == OPEN:
        return Access(ClientMode.OPEN, {}, admins)
    by_hash = {
        key_hash: Client(client.name, client.tenant)
        for client in settings.clients
        for key_hash in client.key_hashes
    }
    return Access(ClientMode.KEYS, by_hash, admins)


def build_forwarder(settings: Settings, clock: Clock, observer: AttemptObserver) -> UpstreamSet:
    """All upstreams with their pools, and the router over them."""
    configs = [_upstream(name, upstream) for name, upstream in settings.upstreams.items()]
    return UpstreamSet(
        configs,
        build_router(settings),
        clock=clock,
        observer=observer,
        shows_names=settings.cache_settings.expose_upstream,
        # Where clients show keys of this proxy, these are secrets that no upstream may see.
        strip_client_credentials=settings.clients is not None and settings.clients != OPEN,
    )


def build_router(settings: Settings) -> Router:
    """The model names and where they lead."""
    return Router(
        default_upstream=settings.main_upstream,
        routes={
            name: _route(name, model, settings.main_upstream)
            for name, model in settings.models.items()
        },
        aliases=settings.aliases,
        closed=settings.unlisted_models is UnlistedModels.REFUSE,
    )


def build_catalogue(settings: Settings, forwarder: Forwarder) -> Catalogue:
    """What reads of resources are sent through."""
    return Catalogue(forwarder, _listing(settings) if settings.merges_catalogue else None)


def _listing(settings: Settings) -> Listing:
    main = settings.main_upstream
    is_closed = settings.unlisted_models is UnlistedModels.REFUSE
    names = {**{name: name for name in settings.models}, **settings.aliases}

    def named(name: str, internal: str) -> Named:
        model = settings.models[internal]
        return Named(name, model.upstream or main, model.model or internal)

    listed = tuple(named(name, internal) for name, internal in names.items())
    return Listing(listed, None if is_closed else main)


def _route(name: str, model: ModelSettings, main_upstream: str) -> Route:
    profile = Profile(
        name=name,
        upstream=model.upstream or main_upstream,
        model=model.model,
        params=model.params,
        default_params=model.default_params,
    )
    return Route(profile, **model.chains)


def _upstream(name: str, upstream: UpstreamSettings) -> UpstreamConfig:
    timeouts = upstream.timeouts
    proxy = upstream.http_proxy
    return UpstreamConfig(
        name=name,
        base_url=upstream.base_url,
        keys=key_secrets(upstream.keys),
        auth_header=upstream.auth.header,
        auth_scheme=upstream.auth.scheme,
        query=tuple(upstream.query.items()),
        headers=tuple(
            (header, value.get_secret_value()) for header, value in upstream.headers.items()
        ),
        account_headers=_account_headers(upstream),
        request_usage=upstream.request_usage,
        max_batch=upstream.max_batch,
        timeouts=Timeouts(
            connect_seconds=timeouts.connect_seconds,
            first_byte_seconds=timeouts.first_byte_seconds,
            between_bytes_seconds=timeouts.between_bytes_seconds,
            total_seconds=timeouts.total_seconds,
        ),
        max_connections=upstream.max_connections or None,
        http_proxy=proxy.get_secret_value() if proxy is not None else None,
        ca_file=str(upstream.ca_file) if upstream.ca_file is not None else None,
        verify_tls=upstream.verify_tls,
        transport=TransportName(upstream.transport.value),
        key_cooldown_seconds=upstream.key_cooldown_seconds,
        quota_cooldown_seconds=upstream.quota_cooldown_seconds,
        key_retire_seconds=upstream.key_retire_seconds,
        wait_for_key_seconds=upstream.wait_for_key_seconds,
        sticky_prefix_chars=upstream.sticky_prefix_chars,
        max_attempts=upstream.attempts,
        circuit=_circuit(upstream.circuit),
        retry_budget=_retry_budget(upstream.retry_budget),
        queue=_queue(upstream),
    )


def _circuit(circuit: CircuitSettings | None) -> CircuitPolicy:
    return NEVER_OPENS if circuit is None else CircuitPolicy(**circuit.model_dump())


def _retry_budget(budget: RetryBudgetSettings | None) -> BudgetPolicy:
    return UNLIMITED if budget is None else BudgetPolicy(**budget.model_dump())


def key_secrets(keys: Iterable[WeightedKey]) -> tuple[KeySecret, ...]:
    """Keys as their pool takes them."""
    return tuple(
        KeySecret(
            key.secret.get_secret_value(),
            key.weight,
            key.requests_per_minute,
            key.tokens_per_minute,
        )
        for key in keys
    )


def _queue(upstream: UpstreamSettings) -> QueuePolicy | None:
    if upstream.max_concurrent is None:
        return None
    return QueuePolicy(upstream.max_concurrent, upstream.max_waiting, upstream.max_wait_seconds)


def _account_headers(upstream: UpstreamSettings) -> tuple[str, ...]:
    names = (*_ACCOUNT_HEADERS, *upstream.account_headers)
    own = upstream.auth.header
    # Without keys this is where clients put theirs. The usual places are known anyway.
    if upstream.keys or own.lower().encode() in CREDENTIAL_HEADERS:
        return names
    return (*names, own)


def prices(settings: Settings) -> Mapping[str, Price]:
    """What models cost, by glob."""
    return {
        pattern: Price(price.prompt_per_million, price.completion_per_million)
        for pattern, price in settings.prices.items()
    }
