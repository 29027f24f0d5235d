"""The models of the soak, each with a rule of its own, and the proxies' settings made from them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The proxy that lives through it all, and the one that is killed and comes back.
SURVIVOR, VICTIM = "stays", "killed"
ADMIN_HEADER, ADMIN_KEY = "x-admin-key", "soak-admin"
PROJECT_HEADER = "x-project"
TAGS_HEADER = "x-cache-tags"
EVENTS = {
    "model_updated": ["model:{model}"],
    "project_closed": {"targets": ["tag:project:{project}"], "soft": True},
}
LEASE_SECONDS = 1.5
PURGE_POLL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model and its rule, which has the same name. Times in seconds."""

    name: str
    ttl: float
    stale_while_revalidate: float = 0.0
    stale_if_error: float = 0.0
    embeds: bool = False
    temperature: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rule(self) -> dict[str, Any]:
        """As it stands in the settings."""
        return {
            "name": self.name,
            "model_names": [self.name],
            "include_in_key": ["input"] if self.embeds else ["messages", "temperature"],
            "ttl_seconds": self.ttl,
            "stale_while_revalidate_seconds": self.stale_while_revalidate,
            "stale_if_error_seconds": self.stale_if_error,
            "tags": ["project:{header." + PROJECT_HEADER + "}"],
            **self.more,
        }


MODELS = {
    model.name: model
    for model in (
        Model("plain", ttl=15),
        Model("revalidated", ttl=2, stale_while_revalidate=4),
        Model("fault-tolerant", ttl=2, stale_if_error=60),
        Model("ahead", ttl=3, more={"refresh_ahead": 1.0, "ttl_jitter": 0.2}),
        Model("cancelled", ttl=15, more={"on_disconnect": "cancel"}),
        Model("alone", ttl=15, more={"coalesce": "off"}),
        Model("local", ttl=15, more={"coalesce": "local"}),
        Model("several", ttl=15, temperature=0.9, more={"variants": 3}),
        Model("embedder", ttl=15, embeds=True),
        Model("embedder-stale", ttl=2, stale_while_revalidate=4, embeds=True),
    )
}


def settings(
    *, proxy: str, port: int, upstream_url: str, redis_url: str, proxy_header: str, max_batch: int
) -> dict[str, Any]:
    """The settings file of one proxy; they differ in port and in the name that upstream sees."""
    return {
        "server": {"port": port, "access_log": True},
        "store": {
            "tiers": ["memory", "redis"],
            "memory": {"max_bytes": "2MiB"},
            "redis": {"url": redis_url, "timeout_seconds": 0.25},
        },
        "upstreams": {
            "soak": {
                "base_url": upstream_url,
                "api_keys": ["sk-one", "sk-two"],
                "headers": {proxy_header: proxy},
                "request_usage": True,
                "max_batch": max_batch,
            }
        },
        "clients": "open",
        "admin": {"key_hashes": ["sha256:" + hashlib.sha256(ADMIN_KEY.encode()).hexdigest()]},
        "invalidation": EVENTS,
        "cache_settings": {
            "key_prefix": "soak:",
            "tags_header": TAGS_HEADER,
            "lease_seconds": LEASE_SECONDS,
            "purge_poll_seconds": PURGE_POLL_SECONDS,
            "rules": [model.rule for model in MODELS.values()],
        },
    }
