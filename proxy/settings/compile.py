"""Turn the rules as they are written into the rules that the core applies."""

import re
from typing import Final

from proxy.core.matching import RuleSet
from proxy.core.paths import FieldPath
from proxy.core.resources import PathPattern, Resource, ResourceSet
from proxy.core.rules import Normalization, Rule, When
from proxy.core.tags import TagTemplate
from proxy.core.wire import Endpoint
from proxy.settings.cache import MODEL_RESOURCES, ResourceSettings, RuleSettings, WhenSettings
from proxy.settings.models import Settings

# A read in this part of an answer's time has a new one fetched.
_LAST_PART: Final = 5
# How long a list of models stays in which an upstream's part is missing.
_PARTIAL_SECONDS: Final = 10.0


def compile_rules(settings: Settings) -> RuleSet:
    """The rules in file order; none where caching is off."""
    cache = settings.cache_settings
    return RuleSet(compile_rule(rule) for rule in cache.rules) if cache.enabled else RuleSet()


def compile_resources(settings: Settings) -> ResourceSet:
    """The resources in file order, then the list of models."""
    given = [
        _resource(f"resource-{place}", resource)
        for place, resource in enumerate(settings.cache_settings.resources, start=1)
    ]
    return ResourceSet([*given, _resource("models", MODEL_RESOURCES)])


def _resource(name: str, resource: ResourceSettings) -> Resource:
    rule = Rule(
        name=name,
        model_names=(),
        include_in_key=(),
        endpoints=frozenset({Endpoint.RESOURCE}),
        ttl_seconds=resource.ttl_seconds,
        fallback_ttl_seconds=_PARTIAL_SECONDS,
        stale_if_error_seconds=resource.stale_if_error_seconds,
        refresh_before_seconds=resource.ttl_seconds / _LAST_PART,
        max_entry_bytes=resource.max_entry_bytes,
        honor_upstream=resource.honor_upstream,
    )
    return Resource(
        rule,
        tuple(PathPattern.parse(text) for text in resource.paths),
        tuple(name.lower().encode() for name in resource.vary),
    )


def compile_rule(rule: RuleSettings) -> Rule:
    """One rule. Its paths and patterns are known to be sound: the models checked them."""
    return Rule(
        name=rule.name,
        model_names=rule.model_names,
        include_in_key=_paths(rule.include_in_key),
        exclude_from_key=_paths(rule.exclude_from_key),
        endpoints=frozenset(rule.endpoints),
        when=_when(rule.when),
        unlisted_fields=rule.unlisted_fields,
        normalize=tuple(
            Normalization(FieldPath.parse(step.path), re.compile(step.pattern), step.replacement)
            for step in rule.normalize
        ),
        ttl_seconds=rule.ttl_seconds,
        store_finish_reasons=frozenset(rule.store_finish_reasons),
        max_entry_bytes=rule.max_entry_bytes,
        fallback_ttl_seconds=rule.fallback_ttl_seconds,
        client_control=rule.client_control,
        honor_upstream=rule.honor_upstream,
        fresh_ids=rule.fresh_ids,
        ttl_jitter=rule.ttl_jitter,
        stale_while_revalidate_seconds=rule.stale_while_revalidate_seconds,
        stale_if_error_seconds=rule.stale_if_error_seconds,
        refresh_ahead=rule.refresh_ahead,
        coalesce=rule.coalesce,
        on_disconnect=rule.on_disconnect,
        variants=rule.variants,
        variant_choice=rule.variant_choice,
        tags=tuple(TagTemplate.parse(text) for text in rule.tags),
    )


def _paths(texts: tuple[str, ...]) -> tuple[FieldPath, ...]:
    return tuple(FieldPath.parse(text) for text in texts)


def _when(when: WhenSettings) -> When:
    return When(
        max_temperature=when.max_temperature,
        max_messages=when.max_messages,
        has_user_message=when.has_user_message,
        headers=tuple(when.headers.items()),
    )
