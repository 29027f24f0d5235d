"""Remarks on `cache_settings.rules`: rules that never match, and keys that say too little."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Final

from proxy.core.matching import DEFAULT_TEMPERATURE
from proxy.core.paths import FieldPath
from proxy.core.projection import FORM_FIELDS
from proxy.core.rules import UnlistedFields
from proxy.core.wire import Endpoint
from proxy.settings.cache import RuleSettings
from proxy.settings.coverage import covers
from proxy.settings.document import Loc
from proxy.settings.models import Settings, UnlistedModels


class Severity(StrEnum):
    """How bad it is."""

    WARNING = "warning"  # answers may be wrong, money lost, or a rule without effect
    NOTE = "note"  # fine if it is meant


class Code(StrEnum):
    """What was found; scripts may rely on the names."""

    RULE_NEVER_MATCHES = "rule-never-matches"  # earlier rules, models or conditions leave nothing
    NAME_NEVER_MATCHES = "name-never-matches"  # one of its model names does
    NO_KEY = "no-key"  # the requests that it matches never carry a field of its key
    FIELD_LEFT_OUT = "field-left-out"  # requests that want different answers share a key
    TTL_ZERO = "ttl-zero"  # nothing is stored
    PATTERN_MATCHES_EMPTY = "pattern-matches-empty"  # the replacement lands between all characters
    MODEL_WITHOUT_UPSTREAM = "model-without-upstream"  # the first of several answers, by chance
    NO_MODELS = "no-models"  # all are refused
    UNUSED_UPSTREAM = "unused-upstream"  # nothing is sent there
    OPEN_KEY_POOL = "open-key-pool"  # anybody spends the keys
    UNVERIFIED_TLS = "unverified-tls"  # certificates are not checked
    CREDENTIAL_TO_FALLBACK = "credential-to-fallback"  # a client's key goes to another provider
    KEYS_IN_CLEAR = "keys-in-clear"  # keys over plain HTTP
    SEPARATE_MEMORIES = "separate-memories"  # several workers, and no store that they share


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding before its place is known."""

    severity: Severity
    code: Code
    loc: Loc
    message: str


# Fields of chat requests that change what is answered, though not its form (the form's are
# FORM_FIELDS): left out of a key, requests that want different answers share one.
SAMPLING: Final = (
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "reasoning_effort",
    "verbosity",
    "web_search_options",
)
_FORM: Final = {
    Endpoint.CHAT: ("tools", "tool_choice", "functions", "function_call", "response_format", "n",
                    "logprobs", "top_logprobs", "modalities", "audio"),
    Endpoint.EMBEDDINGS: ("dimensions",),
}  # fmt: skip
_CONTENT: Final = {Endpoint.CHAT: "messages", Endpoint.EMBEDDINGS: "input"}
_ONLY_EMBEDDINGS: Final = frozenset({"input", "encoding_format", "dimensions"})
_ONLY_CHAT: Final = frozenset({"messages", *SAMPLING}) | (FORM_FIELDS - _ONLY_EMBEDDINGS)


def rule_remarks(settings: Settings) -> Iterator[Remark]:
    """All remarks on rules."""
    rules = settings.cache_settings.rules
    for place, rule in enumerate(rules):
        loc: Loc = ("cache_settings", "rules", place)
        yield from _never(settings, place, loc)
        yield from _key(rule, loc)
        if rule.ttl_seconds == 0:
            yield Remark(Severity.WARNING, Code.TTL_ZERO, (*loc, "ttl_seconds"), "0 stores nothing")
        for index, step in enumerate(rule.normalize):
            if re.search(step.pattern, "") is not None:
                yield Remark(
                    Severity.WARNING,
                    Code.PATTERN_MATCHES_EMPTY,
                    (*loc, "normalize", index, "pattern"),
                    "matches the empty text, so the replacement lands between all characters; "
                    "use `+` instead of `*`?",
                )


def _never(settings: Settings, place: int, loc: Loc) -> Iterator[Remark]:
    """Why the rule, or one of its names, can't match."""
    rules = settings.cache_settings.rules
    rule = rules[place]
    shadow = next((earlier for earlier in rules[:place] if covers(earlier, rule)), None)
    if shadow is not None:
        yield _rule_never(loc, f"rule `{shadow.name}` before it takes every such request")
        return
    if rule.endpoints == (Endpoint.EMBEDDINGS,):
        limit = rule.when.max_temperature
        if limit is not None and limit < DEFAULT_TEMPERATURE:
            yield _rule_never(
                (*loc, "when"), "embeddings requests have no temperature, which counts as 1.0"
            )
        if rule.when.has_user_message:
            yield _rule_never((*loc, "when"), "embeddings requests have no messages")
    reasons = [_dead_name(settings, name) for name in rule.model_names]
    if all(reasons):
        yield _rule_never((*loc, "model_names"), "; ".join(map(str, reasons)))
        return
    for index, reason in enumerate(reasons):
        if reason:
            yield Remark(
                Severity.WARNING, Code.NAME_NEVER_MATCHES, (*loc, "model_names", index), reason
            )


def _rule_never(loc: Loc, reason: str) -> Remark:
    return Remark(Severity.WARNING, Code.RULE_NEVER_MATCHES, loc, f"never matches: {reason}")


def _dead_name(settings: Settings, name: str) -> str | None:
    """Why no request has an internal name that matches."""
    if name in settings.aliases:
        internal = settings.aliases[name]
        return f"`{name}` is an alias, and rules see the internal name `{internal}`"
    closed = settings.unlisted_models is UnlistedModels.REFUSE and settings.models
    if closed and not any(name == model or fnmatchcase(model, name) for model in settings.models):
        return f"no model in `models` is called `{name}`, and others are refused"
    return None


def _key(rule: RuleSettings, loc: Loc) -> Iterator[Remark]:
    """What the key leaves out, for each endpoint whose requests get a key at all."""
    paths = [FieldPath.parse(text) for text in rule.include_in_key]
    if any(path.takes_all for path in paths):
        yield from _content_excluded(rule, loc)
        return
    roots = {path.root for path in paths}
    alien = {Endpoint.CHAT: _ONLY_EMBEDDINGS, Endpoint.EMBEDDINGS: _ONLY_CHAT}
    keyed = [endpoint for endpoint in rule.endpoints if roots - alien[endpoint]]
    if not keyed:
        named = ", ".join(endpoint.value for endpoint in rule.endpoints)
        yield Remark(
            Severity.WARNING,
            Code.NO_KEY,
            (*loc, "include_in_key"),
            f"requests to {named} carry none of these fields, so they get no key",
        )
    for endpoint in keyed:
        yield from _left_out(rule, endpoint, paths, loc)


def _content_excluded(rule: RuleSettings, loc: Loc) -> Iterator[Remark]:
    for index, text in enumerate(rule.exclude_from_key):
        path = FieldPath.parse(text)
        contents = {_CONTENT[endpoint] for endpoint in rule.endpoints}
        if path.takes_all or (path.root in contents and not path.steps):
            yield Remark(
                Severity.WARNING,
                Code.FIELD_LEFT_OUT,
                (*loc, "exclude_from_key", index),
                f"without `{text}`, requests for different things share a key",
            )


def _left_out(
    rule: RuleSettings, endpoint: Endpoint, paths: list[FieldPath], loc: Loc
) -> Iterator[Remark]:
    here: Loc = (*loc, "include_in_key")
    # A field that is excluded by name is left out on purpose.
    named = {path.root for path in paths}
    named |= {FieldPath.parse(text).root for text in rule.exclude_from_key}
    content = _CONTENT[endpoint]
    if content not in {path.root for path in paths}:
        bypassed = rule.unlisted_fields is UnlistedFields.BYPASS
        yield Remark(
            Severity.WARNING,
            Code.NO_KEY if bypassed else Code.FIELD_LEFT_OUT,
            here,
            f"without `{content}`, every {endpoint.value} request bypasses the cache"
            if bypassed
            else f"without `{content}`, {endpoint.value} requests for different things share a key",
        )
        return
    missing = _message_parts_missing(paths) if endpoint is Endpoint.CHAT else []
    if missing:
        yield Remark(
            Severity.WARNING,
            Code.FIELD_LEFT_OUT,
            here,
            f"messages that differ only in {_words(missing)} share a key; include `messages`",
        )
    if rule.unlisted_fields is UnlistedFields.IGNORE:
        form = [name for name in _FORM[endpoint] if name not in named]
        if form:
            yield Remark(
                Severity.WARNING,
                Code.FIELD_LEFT_OUT,
                here,
                f"answers of different forms share a key: {_words(form)} "
                "left out; with `unlisted_fields: guard` such requests bypass the cache",
            )
    sampling = [name for name in SAMPLING if name not in named]
    unguarded = rule.unlisted_fields is not UnlistedFields.BYPASS
    if endpoint is Endpoint.CHAT and unguarded and sampling:
        yield Remark(
            Severity.NOTE,
            Code.FIELD_LEFT_OUT,
            here,
            f"requests that differ only in {_words(sampling)} share a key; include them (or "
            "`*`), exclude them by name, or set `unlisted_fields: bypass`",
        )


def _message_parts_missing(paths: list[FieldPath]) -> list[str]:
    """The parts of a message that the key never sees, of those that every message has."""
    steps = [path.steps for path in paths if path.root == "messages"]
    if any(below in {(), (None,)} for below in steps):
        return []
    seen = {below[1] for below in steps if len(below) > 1 and below[0] is None}
    return [part for part in ("role", "content") if part not in seen]


def _words(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
