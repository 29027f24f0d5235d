"""What is written in a rule is what the core applies."""

from proxy.core.paths import FieldPath
from proxy.core.rules import (
    Coalescing,
    OnDisconnect,
    Rule,
    UnlistedFields,
    VariantChoice,
    When,
)
from proxy.core.tags import TagTemplate
from proxy.core.wire import Endpoint
from proxy.settings.cache import RuleSettings
from proxy.settings.compile import compile_rule, compile_rules
from proxy.settings.models import Settings

RULE = {
    "name": "a",
    "model_names": ["m", "n*"],
    "include_in_key": ["messages[*].content", "seed"],
    "exclude_from_key": ["user"],
    "endpoints": ["chat"],
    "when": {
        "max_temperature": 0.5,
        "max_messages": 3,
        "has_user_message": True,
        "headers": {"X-Team": "a*"},
    },
    "unlisted_fields": "bypass",
    "normalize": [{"path": "messages[*].content", "pattern": r"\d+", "replacement": "<n>"}],
    "ttl_seconds": 5,
    "store_finish_reasons": ["length"],
    "max_entry_bytes": "1KiB",
    "fallback_ttl_seconds": 2,
    "client_control": False,
    "honor_upstream": True,
    "fresh_ids": True,
    "ttl_jitter": 0.1,
    "stale_while_revalidate_seconds": 3,
    "stale_if_error_seconds": 4,
    "refresh_ahead": 1.5,
    "coalesce": "local",
    "on_disconnect": "cancel",
    "variants": 2,
    "variant_choice": "random",
    "tags": ["project:{header.x-project}"],
}


def test_every_setting_of_a_rule_arrives() -> None:
    rule = compile_rule(RuleSettings.model_validate(RULE))
    [normalization] = rule.normalize
    assert normalization.path == FieldPath.parse("messages[*].content")
    assert normalization.pattern.sub(normalization.replacement, "a 12") == "a <n>"
    assert rule == Rule(
        name="a",
        model_names=("m", "n*"),
        include_in_key=(FieldPath.parse("messages[*].content"), FieldPath.parse("seed")),
        ttl_seconds=5.0,
        exclude_from_key=(FieldPath.parse("user"),),
        endpoints=frozenset({Endpoint.CHAT}),
        when=When(0.5, 3, True, (("X-Team", "a*"),)),
        unlisted_fields=UnlistedFields.BYPASS,
        normalize=rule.normalize,
        store_finish_reasons=frozenset({"length"}),
        max_entry_bytes=1024,
        fallback_ttl_seconds=2.0,
        client_control=False,
        honor_upstream=True,
        fresh_ids=True,
        ttl_jitter=0.1,
        stale_while_revalidate_seconds=3.0,
        stale_if_error_seconds=4.0,
        refresh_ahead=1.5,
        coalesce=Coalescing.LOCAL,
        on_disconnect=OnDisconnect.CANCEL,
        variants=2,
        variant_choice=VariantChoice.RANDOM,
        tags=(TagTemplate.parse("project:{header.x-project}"),),
    )
    assert set(RULE) == set(RuleSettings.model_fields)


def test_the_defaults_of_a_rule_are_those_of_the_core() -> None:
    given = {"name": "a", "model_names": ["m"], "include_in_key": ["input"], "ttl_seconds": 1}
    assert compile_rule(RuleSettings.model_validate(given)) == Rule(
        name="a",
        model_names=("m",),
        include_in_key=(FieldPath.parse("input"),),
        ttl_seconds=1.0,
    )


def test_rules_keep_their_order() -> None:
    assert [rule.name for rule in compile_rules(Settings()).rules] == ["embeddings", "chat"]


def test_no_rule_holds_where_caching_is_off() -> None:
    settings = Settings.model_validate({"cache_settings": {"enabled": False}})
    assert compile_rules(settings).rules == ()
