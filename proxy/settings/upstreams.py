"""`upstreams`: the APIs that answer, and the keys for them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    model_validator,
)

from proxy.settings.key_files import check_keys, read_key_file
from proxy.settings.types import (
    Amount,
    ConfigPath,
    Count,
    HeaderName,
    HeaderValue,
    HttpUrl,
    NotBool,
    Plain,
    Positive,
    Seconds,
    Section,
    Surroundings,
    Text,
    Wait,
    check_url,
)


class TransportKind(StrEnum):
    """The HTTP client towards an upstream."""

    AIOHTTP = "aiohttp"  # the faster one
    HTTPX = "httpx"  # the more widely known one


@dataclass(frozen=True, slots=True)
class WeightedKey:
    """One key of a pool."""

    secret: SecretStr
    weight: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class ApiKeySettings(Section):
    """One key, or a file of keys. Short form: the key itself, usually as `${VARIABLE}`."""

    value: SecretStr | None = Field(default=None, description="The key, usually as `${VARIABLE}`.")
    env: Text | None = Field(default=None, description="Name of the variable that holds the key.")
    file: ConfigPath | None = Field(
        default=None,
        description="File with one key on each line; `#` starts a comment. It is read again when "
        "it changes.",
    )
    weight: Positive = Field(
        default=1, description="Share of the load, relative to the other keys."
    )
    requests_per_minute: Positive | None = Field(
        default=None,
        description="Most requests in any minute, of all who share the states of keys. Null: what "
        "the upstream's answers tell.",
    )
    tokens_per_minute: Positive | None = Field(
        default=None,
        description="Most tokens in any minute, likewise: as estimated, then as billed. Null: what "
        "the upstream's answers tell.",
    )
    _secrets: tuple[SecretStr, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        if isinstance(given, str) and not given.strip():
            raise ValueError("a key must not be empty")
        return {"value": given} if isinstance(given, str | SecretStr) else given

    @model_validator(mode="after")
    def _read(self, info: ValidationInfo) -> Self:
        if sum(source is not None for source in (self.value, self.env, self.file)) != 1:
            raise ValueError("must have exactly one of: value, env, file")
        if self.value is not None:
            texts = [self.value.get_secret_value().strip()]
        elif self.env is not None:
            text = Surroundings.of(info).env.get(self.env)
            if not text:
                raise ValueError(f"the environment variable {self.env} is not set")
            texts = [text.strip()]
        else:
            assert self.file is not None
            texts = list(read_key_file(self.file))
        check_keys(texts)
        self._secrets = tuple(SecretStr(text) for text in texts)
        return self

    @property
    def keys(self) -> tuple[WeightedKey, ...]:
        """The keys themselves, read when the settings were loaded."""
        return self.with_secrets(self._secrets)

    def with_secrets(self, secrets: Iterable[SecretStr]) -> tuple[WeightedKey, ...]:
        """Other keys under the same settings."""
        return tuple(
            WeightedKey(secret, self.weight, self.requests_per_minute, self.tokens_per_minute)
            for secret in secrets
        )


class AuthSettings(Section):
    """The header that carries the key."""

    header: HeaderName = Field(
        default="Authorization", description="Its name; Azure wants `api-key`."
    )
    scheme: HeaderValue = Field(
        default="Bearer", description="Word before the key; empty sends the bare key."
    )


class TimeoutSettings(Section):
    """Time-outs towards the upstream; null is no limit."""

    connect_seconds: Wait | None = Field(default=5.0, description="For a connection, with TLS.")
    first_byte_seconds: Wait | None = Field(
        default=600.0, description="From the end of the request to the first byte of the answer."
    )
    between_bytes_seconds: Wait | None = Field(default=300.0, description="Between two reads.")
    total_seconds: Wait | None = Field(default=1800.0, description="For the whole exchange.")


class CircuitSettings(Section):
    """When an upstream that fails is left alone for a while. Short form: `false` for never."""

    failure_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NotBool] = Field(
        default=0.9,
        description="Share of the calls within `window_seconds` that must fail. With fallbacks, "
        "0.5 spares more requests the failing upstream; without any, each call that might have "
        "succeeded is lost while it is left alone.",
    )
    min_calls: Positive = Field(
        default=20,
        description="Fewer calls of one worker than this within `window_seconds` say nothing.",
    )
    window_seconds: Wait = Field(default=10.0, description="How far back calls count.")
    connect_failures: Positive = Field(
        default=5, description="So many connections in a row that fail are enough by themselves."
    )
    open_seconds: Wait = Field(
        default=1.0,
        description="How long it is left alone; then one request at a time probes it. Doubles "
        "with each probe that fails.",
    )
    max_open_seconds: Wait = Field(default=30.0, description="Longest time that it is left alone.")
    probes: Positive = Field(default=1, description="Requests that probe it at the same time.")


class RetryBudgetSettings(Section):
    """How many requests may be sent again after the upstream failed. Short form: the share."""

    share: Amount = Field(
        default=0.3, description="Retries may be this share of the requests of the last 10 seconds."
    )
    per_second: Amount = Field(
        default=3.0,
        description="So many more of one worker are allowed, for times with little traffic.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        is_share = isinstance(given, int | float | str) and not isinstance(given, bool)
        return {"share": given} if is_share and given != "" else given


def _off(value: Any) -> Any:
    """`false` switches a part off, as null does."""
    return None if value is False or (isinstance(value, Plain) and value == "false") else value


def _secret_header(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be printable ASCII on one line, as headers are")
    return value


def _proxy_url(value: SecretStr) -> SecretStr:
    check_url(value.get_secret_value(), "http", "https")
    return value


class UpstreamSettings(Section):
    """One API that answers requests."""

    base_url: HttpUrl = Field(description="Root of the API, such as `https://api.openai.com/v1`.")
    api_keys: tuple[ApiKeySettings, ...] = Field(
        default=(),
        description="Keys to use in turn. None: the client's own `Authorization` goes upstream.",
    )
    auth: AuthSettings = Field(
        default=AuthSettings(), description="The header that carries the key."
    )
    query: Mapping[str, str] = Field(
        default={},
        repr=False,
        description="Query parameters added to every request, such as `api-version`.",
    )
    headers: Mapping[HeaderName, Annotated[SecretStr, AfterValidator(_secret_header)]] = Field(
        default={}, description="Headers added to every request; the values are kept secret."
    )
    account_headers: tuple[HeaderName, ...] = Field(
        default=(),
        description="Client headers that choose an account here, beside `OpenAI-Organization` "
        "and `OpenAI-Project`: requests that differ in them share no entry.",
    )
    request_usage: bool = Field(
        default=False,
        description="Ask streams for their token counts; taken out again for clients that did "
        "not ask.",
    )
    max_batch: Positive | None = Field(
        default=None,
        description="Most inputs that it takes in one embeddings request; larger ones are split. "
        "Null is no limit.",
    )
    transport: TransportKind = Field(
        default=TransportKind.AIOHTTP, description="The HTTP client towards this upstream."
    )
    timeouts: TimeoutSettings = Field(
        default=TimeoutSettings(), description="Time-outs; null is no limit."
    )
    max_connections: Count = Field(
        default=1000, description="Most connections of one worker; 0 is no limit."
    )
    max_concurrent: Positive | None = Field(
        default=None,
        description="Most requests of one worker that are under way at once; more wait in line, "
        "tenants in turn. Null is no limit.",
    )
    max_waiting: Count = Field(
        default=100, description="Most requests that wait in line; more are answered with 429."
    )
    max_wait_seconds: Wait = Field(
        default=30.0, description="How long a request waits in line before it is answered with 429."
    )
    http_proxy: Annotated[SecretStr, AfterValidator(_proxy_url)] | None = Field(
        default=None, description="Forward proxy on the way to this upstream."
    )
    ca_file: ConfigPath | None = Field(
        default=None, description="CA certificates (PEM); default: the system's."
    )
    verify_tls: bool = Field(default=True, description="Check the upstream's certificate.")
    allow_metadata_address: bool = Field(
        default=False,
        description="Allow a `base_url` at an address where clouds tell a machine its own "
        "credentials, such as 169.254.169.254.",
    )
    key_cooldown_seconds: Seconds = Field(
        default=20.0, description="Rest of a key after a 429 that names no time."
    )
    quota_cooldown_seconds: Seconds = Field(
        default=3600.0, description="Rest of a key whose quota is used up."
    )
    key_retire_seconds: Seconds = Field(
        default=600.0, description="Time after which a refused key (401) is tried again."
    )
    wait_for_key_seconds: Seconds = Field(
        default=0.0,
        description="How long a request may wait for a key to become available again before it "
        "is answered with 429.",
    )
    sticky_prefix_chars: Count = Field(
        default=0,
        description="Requests whose prompts begin with the same so many characters go to the same "
        "key, so that the provider's own prompt cache finds them; 0: any key.",
    )
    max_attempts: Positive | None = Field(
        default=None,
        description="Most tries of one request over its whole chain. Default: 5, or one for each "
        "key if there are more, but no more than 10.",
    )
    circuit: Annotated[CircuitSettings | None, BeforeValidator(_off)] = Field(
        default=CircuitSettings(),
        description="When it is left alone because it fails. Null or `false`: never.",
    )
    retry_budget: Annotated[RetryBudgetSettings | None, BeforeValidator(_off)] = Field(
        default=RetryBudgetSettings(),
        description="How much of the traffic may be retries after failures. Short form: the "
        "share. Null or `false` is no limit.",
    )

    @property
    def attempts(self) -> int:
        """Most tries of one request, the default decided."""
        return self.max_attempts or min(max(5, len(self.keys)), 10)

    @property
    def keys(self) -> tuple[WeightedKey, ...]:
        """The keys of the pool, in file order."""
        return tuple(key for item in self.api_keys for key in item.keys)
