"""`store`: where entries are kept."""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from proxy.settings.types import Bytes, ConfigPath, Positive, Section, Wait, check_url


class Tier(StrEnum):
    """A place for entries."""

    AUTO = "auto"  # memory before redis if a URL is set, else memory before disk
    MEMORY = "memory"  # this worker's own
    DISK = "disk"  # shared by the workers of one machine
    REDIS = "redis"  # shared by all replicas


def default_disk_path(env: Mapping[str, str] | None = None) -> Path:
    """A file in the user's cache directory."""
    env = os.environ if env is None else env
    root = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME") or "~").expanduser() / ".cache")
    return Path(root) / "magic-proxy" / "cache.sqlite3"


def _redis_url(value: SecretStr) -> SecretStr:
    check_url(value.get_secret_value(), "redis", "rediss", "unix")
    return value


def _tiers(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _distinct(tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
    if len(set(tiers)) < len(tiers):
        raise ValueError("must name each tier once")
    if Tier.AUTO in tiers and len(tiers) > 1:
        raise ValueError("`auto` stands alone")
    return tiers


_ONE_TIER = {"type": "string", "enum": [str(tier) for tier in Tier]}
TIERS_SCHEMA: Final[Mapping[str, Any]] = {
    "anyOf": [
        _ONE_TIER,
        {
            "type": "array",
            "items": {"type": "string", "enum": [str(tier) for tier in Tier if tier != Tier.AUTO]},
            "minItems": 1,
            "uniqueItems": True,
        },
    ]
}


class MemorySettings(Section):
    """The memory tier, one per worker."""

    max_bytes: Bytes = Field(default=256 * 1024 * 1024, description="Most bytes that it holds.")


class DiskSettings(Section):
    """The disk tier: one SQLite file, shared by the workers of one machine."""

    path: ConfigPath = Field(
        default_factory=default_disk_path,
        description="The file. Default: `magic-proxy/cache.sqlite3` in `$XDG_CACHE_HOME`, or in "
        "`~/.cache`.",
    )
    max_bytes: Bytes = Field(default=1024 * 1024 * 1024, description="Most bytes that it holds.")
    sweep_interval_seconds: Wait = Field(
        default=30.0, description="How often expired entries are swept away."
    )


class RedisSettings(Section):
    """The Redis tier, shared by all replicas."""

    url: Annotated[SecretStr, AfterValidator(_redis_url)] | None = Field(
        default=None, description="`redis://`, `rediss://` (TLS) or `unix://`; empty means none."
    )
    connect_timeout_seconds: Wait = Field(default=1.0, description="Longest wait for a connection.")
    timeout_seconds: Wait = Field(
        default=0.05,
        description="Longest wait for a look-up; then it's a miss. One for a batch of embeddings "
        "may take 20 times as long, while replies keep coming.",
    )
    write_timeout_seconds: Wait = Field(default=1.0, description="Longest wait for a write.")
    max_value_bytes: Bytes = Field(
        default=1024 * 1024,
        description="Largest entry kept there, as stored (compressed): a larger one could not be "
        "read within `timeout_seconds`.",
    )
    max_connections: Positive = Field(default=16, description="Most connections of one worker.")
    failure_threshold: Positive = Field(
        default=3, description="Failures in a row after which Redis is left alone for a while."
    )
    retry_seconds: Wait = Field(
        default=1.0, description="How long it is left alone before a new try."
    )
    ca_file: ConfigPath | None = Field(
        default=None, description="CA certificates (PEM) for `rediss://`; default: the system's."
    )


class StoreSettings(Section):
    """Where entries are kept. Short forms: `store: disk`, `store: [memory, redis]`."""

    tiers: Annotated[
        tuple[Tier, ...],
        BeforeValidator(_tiers),
        Field(min_length=1),
        AfterValidator(_distinct),
        WithJsonSchema(dict(TIERS_SCHEMA)),
    ] = Field(
        default=(Tier.AUTO,),
        description="`auto`, `memory`, `disk`, `redis`, or a list of tiers in the order to ask. "
        "`auto` is memory and Redis if `redis.url` is set, else memory and disk.",
    )
    memory: MemorySettings = Field(default=MemorySettings(), description="The memory tier.")
    disk: DiskSettings = Field(default_factory=DiskSettings, description="The disk tier.")
    redis: RedisSettings = Field(default=RedisSettings(), description="The Redis tier.")
    write_queue_bytes: Bytes = Field(
        default=64 * 1024 * 1024, description="Most bytes waiting to be written; more are dropped."
    )
    write_queue_entries: Positive = Field(
        default=10_000, description="Most entries waiting to be written; more are dropped."
    )
    compress_above_bytes: Bytes = Field(
        default=2048,
        description="Entries larger than this are compressed; with a dictionary, smaller ones too.",
    )
    dictionaries: bool = Field(
        default=True,
        description="Compress chat entries with dictionaries that are trained on them and kept in "
        "the store: short ones get two to five times smaller. A dictionary holds pieces of the "
        "answers of all tenants; clients never see one.",
    )

    share_key_states: bool = Field(
        default=True,
        description="Tell the other workers and replicas on this disk or Redis which upstream keys "
        "rest or are refused, and what was used of their limits. Keys are named by a hash there.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        return {"tiers": given} if isinstance(given, str | list | tuple) else given

    @property
    def resolved_tiers(self) -> tuple[Tier, ...]:
        """The tiers in the order to ask, with `auto` decided."""
        if self.tiers != (Tier.AUTO,):
            return self.tiers
        return (Tier.MEMORY, Tier.DISK if self.redis.url is None else Tier.REDIS)
