"""Where a Redis is, and when it is left alone: the same for all adapters that use it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RedisConfig:
    """`url` as redis-py takes it, with the password, if any; `ca_file` counts for `rediss:` alone.

    `failure_threshold` failures in a row open the circuit, at first for about `retry_seconds`.
    """

    url: str = field(repr=False)
    ca_file: str | None = None
    connect_timeout_seconds: float = 1.0
    failure_threshold: int = 3
    retry_seconds: float = 1.0
