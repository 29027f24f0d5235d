"""Rules: which requests are cached, under which key, for how long."""

import re
from dataclasses import dataclass
from enum import StrEnum

from proxy.core.paths import FieldPath
from proxy.core.tags import TagTemplate
from proxy.core.wire import MODEL_ENDPOINTS, Endpoint


class UnlistedFields(StrEnum):
    """What a request field that is not in the key does (B6)."""

    IGNORE = "ignore"
    GUARD = "guard"
    BYPASS = "bypass"


class Coalescing(StrEnum):
    """With whom the requests of a rule share the upstream's answer (B40)."""

    SHARED = "shared"  # across workers and replicas, where the store is shared
    LOCAL = "local"  # inside one worker
    OFF = "off"


class OnDisconnect(StrEnum):
    """What becomes of an upstream request that no client waits for any more (B42)."""

    FINISH = "finish"  # the answer is stored
    CANCEL = "cancel"


class VariantChoice(StrEnum):
    """Which of several stored answers a hit gives."""

    ROTATE = "rotate"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class When:
    """Predicates on the request; all that are set must hold. Header values are globs."""

    max_temperature: float | None = None
    max_messages: int | None = None
    has_user_message: bool | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Normalization:
    """A replacement in the text at `path`, applied to what is hashed only (B7)."""

    path: FieldPath
    pattern: re.Pattern[str]
    replacement: str


DEFAULT_FINISH_REASONS = frozenset({"stop", "tool_calls", "function_call"})


@dataclass(frozen=True, slots=True)
class Rule:
    """One item of `cache_settings.rules`, compiled. Sizes in bytes, times in seconds."""

    name: str
    model_names: tuple[str, ...]
    include_in_key: tuple[FieldPath, ...]
    ttl_seconds: float
    exclude_from_key: tuple[FieldPath, ...] = ()
    endpoints: frozenset[Endpoint] = frozenset(MODEL_ENDPOINTS)
    when: When = When()
    unlisted_fields: UnlistedFields = UnlistedFields.GUARD
    normalize: tuple[Normalization, ...] = ()
    store_finish_reasons: frozenset[str] = DEFAULT_FINISH_REASONS
    max_entry_bytes: int = 8 * 1024 * 1024
    fallback_ttl_seconds: float = 300.0
    client_control: bool = True
    honor_upstream: bool = False
    fresh_ids: bool = False
    ttl_jitter: float = 0.0
    stale_while_revalidate_seconds: float = 0.0
    stale_if_error_seconds: float = 0.0
    refresh_ahead: float = 0.0
    refresh_before_seconds: float = 0.0
    coalesce: Coalescing = Coalescing.SHARED
    on_disconnect: OnDisconnect = OnDisconnect.FINISH
    variants: int = 1
    variant_choice: VariantChoice = VariantChoice.ROTATE
    tags: tuple[TagTemplate, ...] = ()
