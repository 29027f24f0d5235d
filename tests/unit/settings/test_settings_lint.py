"""`check` finds slips, and says nothing about what is meant."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.settings.cache import WhenSettings
from proxy.settings.coverage import covers, names_cover
from proxy.settings.document import Place
from proxy.settings.lint import Code, Severity, lint
from proxy.settings.load import load
from proxy.settings.models import RuleSettings, Settings

CHAT = "model_names: ['*'], endpoints: [chat], ttl_seconds: 1"
ALL = "model_names: ['*'], include_in_key: ['*'], ttl_seconds: 1"


def rules(*texts: str) -> str:
    return "cache_settings: {rules: [%s]}\n" % ", ".join(f"{{{text}}}" for text in texts)  # noqa: UP031 (braces)


# What is written; what is found: code, severity, setting, words of the message.
TABLE = [
    pytest.param(rules(ALL, f"name: b, {ALL}"), [("rule-never-matches", "warning", "cache_settings.rules[1]", "rule `rule-1` before it")], id="shadowed"),
    pytest.param(rules(f"{ALL}, endpoints: [chat]", ALL), [], id="not-shadowed-for-one-endpoint"),
    pytest.param(rules(f"{ALL}, when: {{max_temperature: 1}}", f"{ALL}, when: {{max_temperature: 0.5}}"), [("rule-never-matches", "warning", "cache_settings.rules[1]", "rule-1")], id="shadowed-by-a-wider-condition"),
    pytest.param(rules(f"{ALL}, when: {{max_temperature: 0.5}}", f"{ALL}, when: {{max_temperature: 1}}"), [], id="not-shadowed-by-a-narrower-one"),
    pytest.param(rules(f"{ALL}, endpoints: [embeddings], when: {{max_temperature: 0.5}}"), [("rule-never-matches", "warning", "cache_settings.rules[0].when", "no temperature")], id="embeddings-have-no-temperature"),
    pytest.param(rules(f"{ALL}, endpoints: [embeddings], when: {{max_temperature: 1}}"), [], id="which-counts-as-1"),
    pytest.param(rules(f"{ALL}, endpoints: [embeddings], when: {{has_user_message: true}}"), [("rule-never-matches", "warning", "cache_settings.rules[0].when", "no messages")], id="embeddings-have-no-messages"),
    pytest.param("models: {a: {}}\nunlisted_models: refuse\n" + rules("model_names: [b, 'c*'], include_in_key: ['*'], ttl_seconds: 1"), [("rule-never-matches", "warning", "cache_settings.rules[0].model_names", "`b`")], id="no-such-model"),
    pytest.param("models: {a: {}}\nunlisted_models: refuse\n" + rules("model_names: [b, 'a*'], include_in_key: ['*'], ttl_seconds: 1"), [("name-never-matches", "warning", "cache_settings.rules[0].model_names[0]", "`b`")], id="one-such-model"),
    pytest.param("models: {a: {}}\n" + rules("model_names: [b], include_in_key: ['*'], ttl_seconds: 1"), [], id="unlisted-models-pass"),
    pytest.param("models: {a: {}}\naliases: {b: a}\n" + rules("model_names: [b], include_in_key: ['*'], ttl_seconds: 1"), [("rule-never-matches", "warning", "cache_settings.rules[0].model_names", "internal name `a`")], id="alias"),
    pytest.param(rules(ALL.replace("ttl_seconds: 1", "ttl_seconds: 0")), [("ttl-zero", "warning", "cache_settings.rules[0].ttl_seconds", "stores nothing")], id="ttl-zero"),
    pytest.param(rules(f"{ALL}, normalize: [{{path: messages, pattern: '\\d*'}}]"), [("pattern-matches-empty", "warning", "cache_settings.rules[0].normalize[0].pattern", "empty text")], id="empty-pattern"),
    pytest.param(rules(f"{ALL}, normalize: [{{path: messages, pattern: '\\d+'}}]"), [], id="pattern"),
    pytest.param(rules(f"{CHAT}, include_in_key: [temperature], unlisted_fields: ignore"), [("field-left-out", "warning", "cache_settings.rules[0].include_in_key", "without `messages`")], id="messages-left-out"),
    pytest.param(rules(f"{CHAT}, include_in_key: [temperature], unlisted_fields: bypass"), [("no-key", "warning", "cache_settings.rules[0].include_in_key", "bypasses the cache")], id="messages-bypassed"),
    pytest.param(rules(f"{CHAT}, include_in_key: [messages], unlisted_fields: bypass"), [], id="bypass-leaves-nothing-out"),
    pytest.param(rules(f"{CHAT}, include_in_key: [messages]"), [("field-left-out", "note", "cache_settings.rules[0].include_in_key", "`temperature`, `top_p`")], id="guard-passes-over-seed"),
    pytest.param(rules(f"{CHAT}, include_in_key: ['messages[*].content'], unlisted_fields: bypass"), [("field-left-out", "warning", "cache_settings.rules[0].include_in_key", "`role`")], id="roles-left-out"),
    pytest.param(rules(f"{CHAT}, include_in_key: ['messages[*].content', 'messages[*].role'], unlisted_fields: bypass"), [], id="roles-in"),
    pytest.param(rules(f"{CHAT}, include_in_key: ['*'], exclude_from_key: [messages]"), [("field-left-out", "warning", "cache_settings.rules[0].exclude_from_key[0]", "share a key")], id="messages-excluded"),
    pytest.param(rules(f"{CHAT}, include_in_key: ['*'], exclude_from_key: [seed, 'messages[*].name']"), [], id="excluded-on-purpose"),
    pytest.param(rules(f"{CHAT}, include_in_key: [input]"), [("no-key", "warning", "cache_settings.rules[0].include_in_key", "chat")], id="fields-of-another-endpoint"),
    pytest.param(rules("model_names: [a], include_in_key: [input], ttl_seconds: 1"), [], id="input-for-both-endpoints"),
    pytest.param(rules("model_names: [a], include_in_key: [input], endpoints: [embeddings], unlisted_fields: ignore, ttl_seconds: 1"), [("field-left-out", "warning", "cache_settings.rules[0].include_in_key", "`dimensions`")], id="dimensions-left-out"),
    pytest.param("upstreams: {a: {base_url: http://a}, b: {base_url: http://b}}\nmodels: {m: {}, n: {upstream: b}}\n", [("model-without-upstream", "warning", "models.m", "`a`")], id="model-without-upstream"),
    pytest.param("upstreams: {a: {base_url: http://a}, b: {base_url: http://b}}\nmodels: {m: {}, n: {upstream: b}}\ndefault_upstream: a\n", [], id="model-with-default-upstream"),
    pytest.param("upstreams: {a: {base_url: http://a}, b: {base_url: http://b}}\n", [("unused-upstream", "note", "upstreams.b", "no model uses")], id="unused-upstream"),
    pytest.param("unlisted_models: refuse\n", [("no-models", "warning", "unlisted_models", "refused")], id="no-models"),
    pytest.param("server: {host: 0.0.0.0, insecure_open: true}\nclients: open\nupstreams: {a: {base_url: https://a, api_keys: [k]}}\n", [("open-key-pool", "warning", "upstreams.a.api_keys", "0.0.0.0")], id="open-key-pool"),
    pytest.param("clients: open\nupstreams: {a: {base_url: https://a, api_keys: [k]}}\n", [], id="open-on-loopback"),
    pytest.param("upstreams: {a: {base_url: https://a, verify_tls: false}}\n", [("unverified-tls", "warning", "upstreams.a.verify_tls", "ca_file")], id="unverified"),
    pytest.param("default_upstream: a\nupstreams: {a: {base_url: https://a}, b: {base_url: https://b}}\nmodels: {x: {upstream: a, fallbacks: [y]}, y: {upstream: b}}\n", [("credential-to-fallback", "warning", "models.x.fallbacks[0]", "the client's own key is sent to `b`")], id="credential-to-fallback"),
    pytest.param("default_upstream: a\nupstreams: {a: {base_url: https://a}, b: {base_url: https://b}}\nmodels: {x: {upstream: a, content_policy_fallbacks: [y]}, y: {upstream: b}}\n", [("credential-to-fallback", "warning", "models.x.content_policy_fallbacks[0]", "the client's own key is sent to `b`")], id="credential-to-special-fallback"),
    pytest.param("clients: open\nupstreams: {a: {base_url: http://a, api_keys: [k]}}\n", [("keys-in-clear", "note", "upstreams.a.base_url", "encryption")], id="keys-in-clear"),
    pytest.param("clients: open\nupstreams: {a: {base_url: 'http://127.0.0.1:1', api_keys: [k]}}\n", [], id="keys-on-loopback"),
    pytest.param("server: {workers: 2}\nstore: memory\n", [("separate-memories", "note", "store", "`disk` or `redis`")], id="separate-memories"),
    pytest.param("server: {workers: auto}\n", [], id="workers-on-one-disk"),
    pytest.param("store: memory\n", [], id="one-memory"),
    pytest.param("", [], id="defaults"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_lint_finds_slips(
    text: str, expected: list[tuple[str, str, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    loaded = load(file, {})
    found = lint(loaded.settings, loaded.place_of)
    assert [(one.code, one.severity, one.path) for one in found] == [row[:3] for row in expected]
    for one, row in zip(found, expected, strict=True):
        assert row[3] in one.message
        assert one.file == str(file)
        assert one.line > 0
        assert str(one).startswith(f"{file}:{one.line}:{one.column}: {row[2]}: ")


def test_every_code_of_lint_is_tried() -> None:
    tried = {row[0] for param in TABLE for row in param.values[1]}  # type: ignore[union-attr]  # ParameterSet is untyped
    assert tried == set(Code)


def test_lint_works_without_a_file() -> None:
    settings = Settings.model_validate({"unlisted_models": "refuse"})
    [found] = lint(settings, lambda _: Place())
    assert found.line == 0
    assert str(found).startswith("unlisted_models: ")
    assert found.severity is Severity.WARNING


def rule(names: list[str], **when: Any) -> RuleSettings:
    return RuleSettings.model_validate(
        {"model_names": names, "include_in_key": ["*"], "ttl_seconds": 1, "when": when}
    )


@pytest.mark.parametrize(
    ("earlier", "later", "covered"),
    [
        ({}, {}, True),
        ({}, {"max_messages": 1}, True),
        ({"max_messages": 2}, {"max_messages": 2}, True),
        ({"max_messages": 2}, {"max_messages": 3}, False),
        ({"max_messages": 2}, {}, False),
        ({"has_user_message": True}, {"has_user_message": True}, True),
        ({"has_user_message": True}, {"has_user_message": False}, False),
        ({"has_user_message": True}, {}, False),
        ({"headers": {"A": "*"}}, {"headers": {"a": "x"}}, True),
        ({"headers": {"A": "x"}}, {"headers": {"a": "x", "b": "y"}}, True),
        ({"headers": {"a": "x"}}, {"headers": {"a": "y"}}, False),
        ({"headers": {"a": "*"}}, {}, False),
    ],
)
def test_conditions_cover_each_other(
    earlier: dict[str, Any], later: dict[str, Any], covered: bool
) -> None:
    assert covers(rule(["a"], **earlier), rule(["a"], **later)) is covered
    assert WhenSettings.model_validate(earlier) is not None


@example(name="a?", pattern="a*", model="ab")
@example(name="a?", pattern="a*", model="a")
@given(
    name=st.text("ab*?[]", min_size=1, max_size=5),
    pattern=st.text("ab*?[]", min_size=1, max_size=5),
    model=st.text("ab[]", min_size=1, max_size=5),
)
def test_a_name_that_covers_a_pattern_matches_all_that_it_matches(
    name: str, pattern: str, model: str
) -> None:
    def matches(one: str) -> bool:
        return one == model or fnmatchcase(model, one)

    if names_cover([name], pattern) and matches(pattern):
        assert matches(name)
