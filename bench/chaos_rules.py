"""The upstreams, keys and models of an hour of chaos, and the proxy's settings made from them.

Each model has an upstream that it asks first and, but for one, others to fall back on. Upstreams
get the model's own name whoever asks, so that an answer's digest is the same from all of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ADMIN_KEY = "chaos-admin"
KEYS: Mapping[str, Sequence[str]] = {
    "alpha": ("sk-alpha-1", "sk-alpha-2", "sk-alpha-3"),
    "beta": ("sk-beta-1", "sk-beta-2"),
    "gamma": ("sk-gamma-1", "sk-gamma-2"),
}
# What passes through, and the list of models, goes here.
DEFAULT = "alpha"
# The upstream with so many requests of one worker at once; the others wait in line.
LINED, MOST_AT_ONCE = "beta", 8
WORKERS = 2

FIRST_BYTE_SECONDS = 1.2
BETWEEN_BYTES_SECONDS = 1.5
TOTAL_SECONDS = 4.0
KEY_COOLDOWN_SECONDS = 1.0
QUOTA_COOLDOWN_SECONDS = 1.5
KEY_RETIRE_SECONDS = 0.5
MAX_ATTEMPTS = 10
OPEN_SECONDS, MAX_OPEN_SECONDS = 0.5, 2.0
LEASE_SECONDS = 1.5
RESOURCE_TTL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Model:
    """A model, the upstreams of its chain in order, and its rule. Times in seconds; ttl 0: none."""

    name: str
    chain: tuple[str, ...]
    ttl: float = 0.0
    stale_if_error: float = 0.0
    embeds: bool = False

    @property
    def rule(self) -> dict[str, Any]:
        """As it stands in the settings."""
        return {
            "name": self.name,
            "model_names": [self.name],
            "include_in_key": ["input"] if self.embeds else ["messages", "temperature"],
            "ttl_seconds": self.ttl,
            "stale_if_error_seconds": self.stale_if_error,
        }

    @property
    def profiles(self) -> dict[str, dict[str, Any]]:
        """Under `models`: itself, and one more for each fallback."""
        first, *others = self.chain
        names = [f"{self.name}-{other}" for other in others]
        return {self.name: {"upstream": first, "model": self.name, "fallbacks": names}} | {
            name: {"upstream": other, "model": self.name}
            for name, other in zip(names, others, strict=True)
        }


MODELS = {
    model.name: model
    for model in (
        Model("main", ("alpha", "beta", "gamma"), ttl=3.0),
        Model("tolerant", ("beta", "gamma"), ttl=2.0, stale_if_error=20.0),
        Model("lonely", ("gamma",), ttl=2.0, stale_if_error=20.0),
        Model("uncached", ("alpha", "gamma")),
        Model("embedder", ("alpha", "gamma"), ttl=4.0, embeds=True),
        Model("embedder-tolerant", ("beta", "alpha"), ttl=2.0, stale_if_error=20.0, embeds=True),
    )
}
THROUGH = Model("", (DEFAULT,), ttl=RESOURCE_TTL_SECONDS)


def settings(*, port: int, upstream_urls: Mapping[str, str], redis_url: str) -> dict[str, Any]:
    """The settings file."""
    return {
        "server": {"port": port, "workers": WORKERS, "hot_path_bytes": "2MiB"},
        "store": {
            "tiers": ["memory", "redis"],
            "memory": {"max_bytes": "1MiB"},
            "redis": {"url": redis_url, "timeout_seconds": 0.1},
        },
        "upstreams": {name: _upstream(name, url) for name, url in upstream_urls.items()},
        "default_upstream": DEFAULT,
        "catalogue": "passthrough",
        "models": {
            name: profile for model in MODELS.values() for name, profile in model.profiles.items()
        },
        "clients": "open",
        "admin": {"key_hashes": ["sha256:" + hashlib.sha256(ADMIN_KEY.encode()).hexdigest()]},
        "cache_settings": {
            "key_prefix": "chaos:",
            "lease_seconds": LEASE_SECONDS,
            "resources": [{"paths": ["/v1/models"], "ttl_seconds": RESOURCE_TTL_SECONDS}],
            "rules": [model.rule for model in MODELS.values() if model.ttl],
        },
    }


def _upstream(name: str, url: str) -> dict[str, Any]:
    given: dict[str, Any] = {
        "base_url": url,
        "api_keys": list(KEYS[name]),
        "request_usage": True,
        "max_attempts": MAX_ATTEMPTS,
        "key_cooldown_seconds": KEY_COOLDOWN_SECONDS,
        "quota_cooldown_seconds": QUOTA_COOLDOWN_SECONDS,
        "key_retire_seconds": KEY_RETIRE_SECONDS,
        "timeouts": {
            "connect_seconds": 1.0,
            "first_byte_seconds": FIRST_BYTE_SECONDS,
            "between_bytes_seconds": BETWEEN_BYTES_SECONDS,
            "total_seconds": TOTAL_SECONDS,
        },
        "circuit": {
            "failure_rate": 0.5,
            "min_calls": 10,
            "window_seconds": 5.0,
            "connect_failures": 5,
            "open_seconds": OPEN_SECONDS,
            "max_open_seconds": MAX_OPEN_SECONDS,
        },
        "retry_budget": {"share": 0.3, "per_second": 2.0},
    }
    if name == LINED:
        line = {"max_concurrent": MOST_AT_ONCE, "max_waiting": 20, "max_wait_seconds": 1.0}
        given |= line
    if name == "gamma":
        given["wait_for_key_seconds"] = 0.5
    return given
