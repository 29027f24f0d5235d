"""The settings: frozen, complete, and checked. `load.py` reads them, `runtime` builds from them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from proxy.settings.cache import (
    CacheSettings,
    NormalizeSettings,
    ResourceSettings,
    RuleSettings,
    WhenSettings,
)
from proxy.settings.checks import contradictions
from proxy.settings.clients import OPEN, AdminSettings, Clients, ClientSettings
from proxy.settings.invalidation import EventSettings, Invalidation
from proxy.settings.routing import CatalogueKind, ModelSettings, PriceSettings, UnlistedModels
from proxy.settings.server import LogLevel, ServerSettings
from proxy.settings.store import (
    DiskSettings,
    MemorySettings,
    RedisSettings,
    StoreSettings,
    Tier,
    default_disk_path,
)
from proxy.settings.types import Name, Section, Text
from proxy.settings.upstreams import (
    ApiKeySettings,
    AuthSettings,
    CircuitSettings,
    RetryBudgetSettings,
    TimeoutSettings,
    TransportKind,
    UpstreamSettings,
    WeightedKey,
)

__all__ = [
    "DEFAULT_UPSTREAMS",
    "OPEN",
    "AdminSettings",
    "ApiKeySettings",
    "AuthSettings",
    "CacheSettings",
    "CatalogueKind",
    "CircuitSettings",
    "ClientSettings",
    "Clients",
    "DiskSettings",
    "EventSettings",
    "LogLevel",
    "MemorySettings",
    "ModelSettings",
    "NormalizeSettings",
    "PriceSettings",
    "RedisSettings",
    "ResourceSettings",
    "RetryBudgetSettings",
    "RuleSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "Tier",
    "TimeoutSettings",
    "TransportKind",
    "UnlistedModels",
    "UpstreamSettings",
    "WeightedKey",
    "WhenSettings",
    "default_disk_path",
]

# As it would stand in a file; the loader starts from it where a variable changes a part of it.
DEFAULT_UPSTREAMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"openai": {"base_url": "https://api.openai.com/v1", "request_usage": True}}
)


def _default_upstreams() -> Mapping[str, UpstreamSettings]:
    return {name: UpstreamSettings(**given) for name, given in DEFAULT_UPSTREAMS.items()}


class Settings(Section):
    """Everything that can be set. Without any of it the proxy runs, in front of OpenAI."""

    server: ServerSettings = Field(
        default=ServerSettings(),
        description="Where the proxy listens, and how it starts and stops.",
    )
    cache_settings: CacheSettings = Field(
        default=CacheSettings(), description="What is cached, under which key, for how long."
    )
    store: StoreSettings = Field(
        default_factory=StoreSettings,
        description="Where entries are kept. Short forms: `store: disk`, `store: [memory, redis]`.",
    )
    upstreams: Mapping[Name, UpstreamSettings] = Field(
        default_factory=_default_upstreams,
        min_length=1,
        description="The APIs that answer, by name. Default: `openai`, at "
        "`https://api.openai.com/v1`, with `request_usage: true`.",
    )
    default_upstream: Text | None = Field(
        default=None,
        description="The upstream for all that names no other; default: the first one.",
    )
    models: Mapping[Text, ModelSettings] = Field(
        default={}, description="Internal model names, and who answers for them."
    )
    unlisted_models: UnlistedModels = Field(
        default=UnlistedModels.FORWARD,
        description="A model name that `models` does not list: `forward` sends it to the default "
        "upstream under its own name, `refuse` answers 404. Only chat completions, embeddings and "
        "WebSockets are looked at: what else passes through is not.",
    )
    aliases: Mapping[Text, Text] = Field(
        default={},
        description="Further names of internal models: `alias: internal name`. Like `models`, for "
        "chat completions, embeddings and WebSockets.",
    )
    catalogue: CatalogueKind | None = Field(
        default=None,
        description="What `GET /v1/models` lists: `merged` every name that clients may use (those "
        "of `models`, `aliases`, and of the default upstream), `passthrough` what the default "
        "upstream does. Default: `merged` where there are several upstreams, models or aliases.",
    )
    prices: Mapping[Text, PriceSettings] = Field(
        default={},
        description="What models cost, by internal name or glob; the first that matches counts. "
        "Turns the counters of tokens into counters of cost.",
    )
    clients: Clients | None = Field(
        default=None,
        description="Who may use the proxy. Null: everybody with a credential that the upstream "
        "accepts, each with entries of its own. `open`: everybody. A list: those clients.",
    )
    invalidation: Invalidation = Field(
        default={},
        description="Events that purge, by name: `POST /admin/events/<name>` fires one. Short "
        "form: `<name>: [targets]`.",
    )
    admin: AdminSettings = Field(
        default=AdminSettings(), description="Who may use `/admin`, and see cache keys."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = contradictions(self)
        if problems:
            # One error carries them all, each with its place; the loader takes them apart.
            raise PydanticCustomError(
                "contradictions",
                "{text}",
                {
                    "text": "; ".join(problem.message for problem in problems),
                    "problems": problems,
                },
            )
        return self

    @property
    def main_upstream(self) -> str:
        """The name of the upstream for all that names no other."""
        return self.default_upstream or next(iter(self.upstreams))

    @property
    def merges_catalogue(self) -> bool:
        """Whether the list of models is made here."""
        if self.catalogue is None:
            return len(self.upstreams) > 1 or bool(self.models or self.aliases)
        return self.catalogue is CatalogueKind.MERGED
