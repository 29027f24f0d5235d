"""`cache_settings`: what is cached, under which key, for how long."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from proxy.core.paths import FieldPath
from proxy.core.resources import PathPattern
from proxy.core.rules import (
    DEFAULT_FINISH_REASONS,
    Coalescing,
    OnDisconnect,
    UnlistedFields,
    VariantChoice,
)
from proxy.core.tags import TagTemplate
from proxy.core.wire import MODEL_ENDPOINTS, Endpoint
from proxy.settings.types import (
    PREFIX_PATTERN,
    Bytes,
    Fraction,
    HeaderName,
    Name,
    Positive,
    Seconds,
    Section,
    Text,
    Wait,
)


def _field_path(text: str) -> str:
    FieldPath.parse(text)
    return text


def _tag(text: str) -> str:
    TagTemplate.parse(text)
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"must be a regular expression: {error.msg}") from None
    return text


def _resource_path(text: str) -> str:
    PathPattern.parse(text)
    return text


def _model_endpoint(endpoint: Endpoint) -> Endpoint:
    if endpoint not in MODEL_ENDPOINTS:
        raise ValueError(f"must be one of: {', '.join(MODEL_ENDPOINTS)}")
    return endpoint


ModelEndpoint: TypeAlias = Annotated[
    Endpoint,
    AfterValidator(_model_endpoint),
    WithJsonSchema({"type": "string", "enum": [each.value for each in MODEL_ENDPOINTS]}),
]
ResourcePath: TypeAlias = Annotated[Text, AfterValidator(_resource_path)]
TagText: TypeAlias = Annotated[Text, AfterValidator(_tag)]
PathText: TypeAlias = Annotated[Text, AfterValidator(_field_path)]
Pattern: TypeAlias = Annotated[Text, AfterValidator(_pattern)]


class NormalizeSettings(Section):
    """A replacement in what is hashed; what goes upstream stays as it is."""

    path: PathText = Field(description="The texts to change, such as `messages[*].content`.")
    pattern: Pattern = Field(description="Regular expression (Python syntax) of what to replace.")
    replacement: str = Field(
        default="", description=r"What stands instead; `\1` is the first group."
    )

    @field_validator("replacement")
    @classmethod
    def _fits_pattern(cls, replacement: str, info: ValidationInfo) -> str:
        pattern = info.data.get("pattern")
        if pattern is not None:
            try:
                re.sub(pattern, replacement, "")
            except (re.error, IndexError) as error:
                raise ValueError(f"does not fit the pattern: {error}") from None
        return replacement


class WhenSettings(Section):
    """Conditions on the request; all that are set must hold."""

    max_temperature: Seconds | None = Field(
        default=None, description="Highest `temperature`; a request without one counts as 1.0."
    )
    max_messages: Positive | None = Field(
        default=None, description="Most messages in the conversation."
    )
    has_user_message: bool | None = Field(
        default=None,
        description="Whether a message with role `user` must be (true) or not be (false).",
    )
    headers: Mapping[HeaderName, str] = Field(
        default={}, description="Request headers, each with a glob that its value must match."
    )


class RuleSettings(Section):
    """Which requests are cached, under which key, for how long; the first that matches wins."""

    name: Name = Field(
        default="rule",
        description="Name in headers, logs and explanations. Default: `rule-<n>`, its place.",
    )
    model_names: tuple[Text, ...] = Field(
        min_length=1, description="Internal model names, exact or as globs (`gpt-4*`, `*`)."
    )
    include_in_key: tuple[PathText, ...] = Field(
        min_length=1,
        description="Request fields that make up the key: names, paths such as "
        "`messages[*].content`, or `*` for all.",
    )
    exclude_from_key: tuple[PathText, ...] = Field(
        default=(), description="Fields or paths taken out again."
    )
    endpoints: tuple[ModelEndpoint, ...] = Field(
        default=MODEL_ENDPOINTS, min_length=1, description="Endpoints that the rule is for."
    )
    when: WhenSettings = Field(
        default=WhenSettings(), description="Conditions on the request; all that are set must hold."
    )
    unlisted_fields: UnlistedFields = Field(
        default=UnlistedFields.GUARD,
        description="What a field that is not in the key does: `ignore` passes over it; `guard` "
        "bypasses the cache if it changes the form of the answer (tools, response_format, n, …); "
        "`bypass` bypasses on any that affects the answer.",
    )
    normalize: tuple[NormalizeSettings, ...] = Field(
        default=(),
        description="Replacements in what is hashed, such as for time stamps in prompts.",
    )
    ttl_seconds: Seconds = Field(description="How long an answer stays fresh; 0 stores nothing.")
    store_finish_reasons: tuple[Text, ...] = Field(
        default=tuple(sorted(DEFAULT_FINISH_REASONS)),
        description="Chat answers are stored only with one of these in each choice.",
    )
    max_entry_bytes: Bytes = Field(
        default=8 * 1024 * 1024, description="Largest answer that is stored."
    )
    fallback_ttl_seconds: Seconds = Field(
        default=300.0,
        description="How long an answer of a fallback model stays fresh, never above "
        "`ttl_seconds`.",
    )
    client_control: bool = Field(
        default=True, description="Obey a client's `Cache-Control` header."
    )
    honor_upstream: bool = Field(
        default=False,
        description="Obey the upstream's `Cache-Control` (most providers send `no-store` always).",
    )
    fresh_ids: bool = Field(
        default=False, description="Give each replayed answer a new `id` and `created`."
    )
    ttl_jitter: Fraction = Field(
        default=0.0,
        description="Spreads expiry: each answer stays fresh for this share less of its time at "
        "most, such as 0.1 for up to 10 %.",
    )
    stale_while_revalidate_seconds: Seconds = Field(
        default=0.0,
        description="How long after its time an answer is still served at once, while a new one "
        "is fetched in the background.",
    )
    stale_if_error_seconds: Seconds = Field(
        default=0.0,
        description="How long after its time an answer is still served where the upstream fails.",
    )
    refresh_ahead: Seconds = Field(
        default=0.0,
        description="Refresh popular answers in the background before their time is over; larger "
        "is earlier, 1 is a good start, 0 is never.",
    )
    coalesce: Coalescing = Field(
        default=Coalescing.SHARED,
        description="Who shares one upstream request for equal requests that come at once: "
        "`shared` all workers and replicas with this store, `local` each worker for itself, `off` "
        "nobody.",
    )
    on_disconnect: OnDisconnect = Field(
        default=OnDisconnect.FINISH,
        description="What becomes of an upstream request when nobody waits for it any more: "
        "`finish` it and store the answer, or `cancel` it.",
    )
    variants: Positive = Field(
        default=1,
        description="How many different answers to collect for a request with a temperature above "
        "0 before they are served in turn.",
    )
    variant_choice: VariantChoice = Field(
        default=VariantChoice.ROTATE,
        description="Which of several answers a hit gives: in turn (`rotate`) or at `random`.",
    )
    tags: tuple[TagText, ...] = Field(
        default=(),
        description="Names to purge by, such as `project:{header.x-project}` or `user:{user}`: a "
        "place is a header or a path of a request field.",
    )


class ResourceSettings(Section):
    """GETs that are answered from the cache, and forgotten with each write to what they read."""

    paths: tuple[ResourcePath, ...] = Field(
        min_length=1,
        description="Paths from `/v1` on, such as `/v1/assistants/*`: `*` is one segment, `**` at "
        "the end one or more.",
    )
    ttl_seconds: Seconds = Field(
        default=300.0,
        description="How long an answer stays fresh; a read in the last fifth of that has a new "
        "one fetched in the background. 0 stores nothing.",
    )
    stale_if_error_seconds: Seconds = Field(
        default=0.0,
        description="How long after its time an answer is still served where the upstream fails.",
    )
    max_entry_bytes: Bytes = Field(
        default=1024 * 1024, description="Largest answer that is stored."
    )
    vary: tuple[HeaderName, ...] = Field(
        default=("OpenAI-Beta",),
        description="Request headers on which the answer depends: they are in the key. An answer "
        "whose own `Vary` names another one is not stored.",
    )
    honor_upstream: bool = Field(
        default=False,
        description="Obey the upstream's `Cache-Control` (`no-store`, `private`, `max-age`).",
    )


MODEL_RESOURCES = ResourceSettings(paths=("/v1/models", "/v1/models/**"))

DEFAULT_RULES = (
    RuleSettings(
        name="embeddings",
        model_names=("*",),
        include_in_key=("*",),
        endpoints=(Endpoint.EMBEDDINGS,),
        ttl_seconds=86_400.0,
    ),
    RuleSettings(
        name="chat",
        model_names=("*",),
        include_in_key=("*",),
        endpoints=(Endpoint.CHAT,),
        when=WhenSettings(max_temperature=1.0),
        ttl_seconds=3_600.0,
    ),
)


def _name_rules(given: Any) -> Any:
    """Give each rule without a name that of its place."""
    if not isinstance(given, list):
        return given
    return [
        {**rule, "name": rule.get("name") or f"rule-{place}"} if isinstance(rule, dict) else rule
        for place, rule in enumerate(given, start=1)
    ]


class CacheSettings(Section):
    """What is cached, under which key, for how long."""

    enabled: bool = Field(default=True, description="Cache at all.")
    key_prefix: str = Field(
        default="magic_proxy:cache:",
        pattern=PREFIX_PATTERN,
        description="Start of every store key; two proxies share entries if it is the same.",
    )
    tags_header: HeaderName | None = Field(
        default=None,
        description="Request header in which clients may name further tags, separated by commas; "
        "null means that they may not.",
    )
    max_refreshes: Positive = Field(
        default=16, description="Most answers that are refreshed in the background at once."
    )
    lease_seconds: Wait = Field(
        default=5.0,
        description="How long the other workers and replicas wait for one that died while it asked "
        "the upstream for them.",
    )
    purge_poll_seconds: Wait = Field(
        default=5.0,
        description="How often to look for purges by others, where the message of one got lost.",
    )
    expose_key: bool = Field(
        default=False, description="Show the key in `Cache-Status` to every client."
    )
    expose_upstream: bool = Field(
        default=True,
        description="Tell clients in `X-Upstream` which upstream and model gave a new answer.",
    )
    resources: tuple[ResourceSettings, ...] = Field(
        default=(),
        description="GETs that are cached, tried in order; the first that fits counts. After them "
        "come `/v1/models` and `/v1/models/**`, for 300 seconds.",
    )
    rules: Annotated[tuple[RuleSettings, ...], BeforeValidator(_name_rules)] = Field(
        default=DEFAULT_RULES,
        description="Tried in order; the first that matches a request wins. Given rules replace "
        "the default ones.",
    )
