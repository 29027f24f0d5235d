"""What building from some settings imports later: before a fork, so that it is done once."""

from importlib import import_module

from proxy.settings.models import Settings, Tier

_BY_TIER = {
    Tier.DISK: ("proxy.coalesce.disk",),
    Tier.REDIS: (
        "proxy.backends.redis_channel",
        "proxy.coalesce.redis",
        "proxy.stores.marks_redis",
        "proxy.stores.redis",
        "proxy.upstream.board_redis",
    ),
}


def preload(settings: Settings) -> None:
    """Import it."""
    modules = {f"proxy.upstream.{upstream.transport}" for upstream in settings.upstreams.values()}
    for tier in settings.store.resolved_tiers:
        modules.update(_BY_TIER.get(tier, ()))
    for module in sorted(modules):
        import_module(module)
