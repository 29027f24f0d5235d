"""What one upstream is: its address, keys, time-outs. Plain values."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.upstream.base import Timeouts
from proxy.upstream.budget import BudgetPolicy
from proxy.upstream.circuit import CircuitPolicy
from proxy.upstream.queueing import QueuePolicy


class TransportName(StrEnum):
    """Which HTTP client speaks to an upstream."""

    # The default: the cheapest per request and per streamed event of those that close at once.
    AIOHTTP = "aiohttp"
    # The compatible alternative, several times the CPU.
    HTTPX = "httpx"


@dataclass(frozen=True, slots=True)
class KeySecret:
    """One upstream credential; only its fingerprint may be shown. `weight` is its share.

    None for a limit is no limit known from the settings.
    """

    value: str = field(repr=False)
    weight: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def fingerprint(self) -> str:
        """`key-` and the first 8 hex digits of the SHA-256 of the credential."""
        return "key-" + self.digest[:8]

    @property
    def digest(self) -> str:
        """32 hex digits that name the credential among those who share what they know of it.

        The start of its SHA-256. A credential can't be found out from that: it is random.
        """
        return hashlib.sha256(self.value.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class UpstreamConfig:
    """One upstream.

    `base_url` includes the API root (`https://api.openai.com/v1`). No `keys` means that the
    client's own credential is sent. `auth_scheme` "" sends the bare key. `query` and `headers`
    are added to each request and win over the client's. `account_headers` name (any case) the
    request headers that choose an account. `max_attempts` caps the attempts of one request over
    its whole chain, taken from the chain's first upstream. `wait_for_key_seconds` is how long a
    request may wait for a cooling key before it is refused. `max_connections` None is no limit;
    above it, requests wait in line for up to `first_byte_seconds`. `max_batch` None is no limit of
    inputs in one embeddings request, `queue` None none of requests at the same time.
    `sticky_prefix_chars` is how many characters of their prompts requests have in common that are
    to share a key; 0 is none. Fields that can hold secrets are not in the repr.
    """

    name: str
    base_url: str
    keys: tuple[KeySecret, ...] = ()
    auth_header: str = "Authorization"
    auth_scheme: str = "Bearer"
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    account_headers: tuple[str, ...] = ("openai-organization", "openai-project")
    request_usage: bool = False
    max_batch: int | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    max_connections: int | None = None
    http_proxy: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    verify_tls: bool = True
    transport: TransportName = TransportName.AIOHTTP
    key_cooldown_seconds: float = 20.0
    quota_cooldown_seconds: float = 3600.0
    key_retire_seconds: float = 600.0
    wait_for_key_seconds: float = 0.0
    sticky_prefix_chars: int = 0
    max_attempts: int = 3
    circuit: CircuitPolicy = field(default_factory=CircuitPolicy)
    retry_budget: BudgetPolicy = field(default_factory=BudgetPolicy)
    queue: QueuePolicy | None = None

    def is_guarded_like(self, other: "UpstreamConfig") -> bool:
        """Whether circuit and budget of the one are as good for the other."""
        return (self.base_url, self.http_proxy, self.circuit, self.retry_budget) == (
            other.base_url,
            other.http_proxy,
            other.circuit,
            other.retry_budget,
        )
