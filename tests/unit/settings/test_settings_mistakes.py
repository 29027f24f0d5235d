"""Every mistake in a file is told with its file, line, column and what is allowed."""

from pathlib import Path

import pytest

from proxy.errors import Mistake, SettingsError
from proxy.settings.load import load_settings

RULE = "model_names: [a], include_in_key: [messages], ttl_seconds: 1"
HASH = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


def with_rule(more: str) -> str:
    return f"cache_settings: {{rules: [{{{RULE}, {more}}}]}}"


# What is written, with » before the mistake; which setting it names; words of the message.
TABLE = [
    pytest.param("server: {»prot: 1}", "server.prot", ["did you mean `port`", "access_log, host"], id="unknown-setting"),
    pytest.param("»sever: {}", "sever", ["did you mean `server`", "cache_settings"], id="unknown-section"),
    pytest.param("server:\n  port: »eighty", "server.port", ["whole number"], id="text-for-number"),
    pytest.param("server: {port: »true}", "server.port", ["a number"], id="bool-for-number"),
    pytest.param("server: {port: »1.5}", "server.port", ["whole number"], id="fraction-for-number"),
    pytest.param("server: {port: »65536}", "server.port", ["less than or equal to 65535"], id="too-large"),
    pytest.param("server: {host: »5}", "server.host", ["text", "quotes"], id="number-for-text"),
    pytest.param("server: {access_log: »perhaps}", "server.access_log", ["true or false"], id="not-bool"),
    pytest.param("server: {shutdown_grace_seconds: »soon}", "server.shutdown_grace_seconds", ["must be a number"], id="not-seconds"),
    pytest.param("server: {max_body_bytes: »3 parsecs}", "server.max_body_bytes", ["size", "MiB"], id="not-a-size"),
    pytest.param("server: {log_level: »loud}", "server.log_level", ["debug, info, warning, error"], id="not-a-level"),
    pytest.param("store: »floppy", "store", ["auto, memory, disk, redis"], id="unknown-store"),
    pytest.param("store: [memory, »floppy]", "store[1]", ["auto, memory, disk, redis"], id="unknown-tier"),
    pytest.param("store: »[memory, memory]", "store", ["each tier once"], id="tier-twice"),
    pytest.param("store: »[auto, memory]", "store", ["`auto` stands alone"], id="auto-and-more"),
    pytest.param("store: »redis", "store.tiers", ["store.redis.url"], id="redis-without-url"),
    pytest.param("store: {redis: {url: »http://x}}", "store.redis.url", ["redis://, rediss://, unix://"], id="redis-scheme"),
    pytest.param("cache_settings: {rules: »{}}", "cache_settings.rules", ["must be a list"], id="mapping-for-list"),
    pytest.param("cache_settings: »[]", "cache_settings", ["must be a mapping"], id="list-for-mapping"),
    pytest.param("»- a", "", ["must be a mapping"], id="list-at-top"),
    pytest.param("»just words", "", ["must be a mapping"], id="text-at-top"),
    pytest.param("cache_settings:\n  rules:\n    - »model_names: [a]\n      include_in_key: [b]", "cache_settings.rules[0].ttl_seconds", ["is required"], id="missing"),
    pytest.param(with_rule("»ttl_seconds: 2"), "cache_settings.rules[0].ttl_seconds", ["stands twice", "line 1, column 73"], id="twice-in-a-flow"),
    pytest.param("server: {}\n»server: {}", "server", ["stands twice", "line 1, column 1"], id="twice"),
    pytest.param("cache_settings: {rules: [{model_names: »[], include_in_key: [a], ttl_seconds: 1}]}", "cache_settings.rules[0].model_names", ["must not be empty"], id="no-names"),
    pytest.param("cache_settings: {rules: [{model_names: [a], include_in_key: [»'a[0]'], ttl_seconds: 1}]}", "cache_settings.rules[0].include_in_key[0]", ["not a field path"], id="bad-path"),
    pytest.param("cache_settings: {rules: [{model_names: [a], include_in_key: [a], ttl_seconds: »-1}]}", "cache_settings.rules[0].ttl_seconds", ["greater than or equal to 0"], id="negative-ttl"),
    pytest.param(with_rule("unlisted_fields: »drop"), "cache_settings.rules[0].unlisted_fields", ["ignore, guard, bypass"], id="unlisted-fields"),
    pytest.param(with_rule("endpoints: [»images]"), "cache_settings.rules[0].endpoints[0]", ["chat, embeddings"], id="endpoint"),
    pytest.param(with_rule("name: »'a b'"), "cache_settings.rules[0].name", ["letters, digits"], id="rule-name"),
    pytest.param(f"cache_settings: {{rules: [{{{RULE}, name: x}}, {{{RULE}, name: »x}}]}}", "cache_settings.rules[1].name", ["rule 1 is called `x` too"], id="rule-name-twice"),
    pytest.param(with_rule("normalize: [{path: a, pattern: »'('}]"), "cache_settings.rules[0].normalize[0].pattern", ["regular expression"], id="bad-pattern"),
    pytest.param(with_rule("normalize: [{path: a, pattern: x, replacement: »'\\2'}]"), "cache_settings.rules[0].normalize[0].replacement", ["does not fit the pattern"], id="bad-replacement"),
    pytest.param("upstreams: {»a b: {base_url: http://x}}", 'upstreams["a b"]', ["letters, digits"], id="upstream-name"),
    pytest.param("upstreams: »{}", "upstreams", ["must not be empty"], id="no-upstream"),
    pytest.param("upstreams: {a: {base_url: »ftp://x}}", "upstreams.a.base_url", ["http://, https://"], id="base-url-scheme"),
    pytest.param("upstreams: {a: {base_url: »'http://x?a=b'}}", "upstreams.a.base_url", ["no query"], id="base-url-query"),
    pytest.param("upstreams: {a: {base_url: »'http://'}}", "upstreams.a.base_url", ["host"], id="base-url-host"),
    pytest.param("upstreams: {a: {base_url: »'http://x:y/'}}", "upstreams.a.base_url", ["must be a URL"], id="base-url-port"),
    pytest.param("upstreams: {a: {base_url: http://x, headers: {»'a b': c}}}", 'upstreams.a.headers["a b"]', ["header name"], id="header-name"),
    pytest.param('upstreams: {a: {base_url: http://x, headers: {b: »"c\\nd"}}}', "upstreams.a.headers.b", ["one line"], id="header-value"),
    pytest.param("upstreams: {a: {base_url: http://x, api_keys: [»{env: NOT_SET}]}}", "upstreams.a.api_keys[0]", ["NOT_SET is not set"], id="key-variable"),
    pytest.param("upstreams: {a: {base_url: http://x, api_keys: [»{file: none.txt}]}}", "upstreams.a.api_keys[0]", ["cannot read", "FileNotFoundError"], id="key-file"),
    pytest.param("upstreams: {a: {base_url: http://x, api_keys: [»{weight: 2}]}}", "upstreams.a.api_keys[0]", ["exactly one of: value, env, file"], id="key-without-source"),
    pytest.param("upstreams: {a: {base_url: http://x, api_keys: [»'']}}", "upstreams.a.api_keys[0]", ["must not be empty"], id="empty-key"),
    pytest.param("upstreams: {a: {base_url: http://x, transport: »urllib}}", "upstreams.a.transport", ["aiohttp, httpx"], id="transport"),
    pytest.param("models: {'a.b': {upstream: »oepnai}}", 'models["a.b"].upstream', ["no upstream `oepnai`", "did you mean `openai`"], id="model-upstream"),
    pytest.param("default_upstream: »azure", "default_upstream", ["no upstream `azure`", "known: openai"], id="default-upstream"),
    pytest.param("models: {a: {fallbacks: [»b]}}", "models.a.fallbacks[0]", ["no model `b`", "known: a"], id="unknown-fallback"),
    pytest.param("upstreams: {a: &a {base_url: http://x, max_attempts: 1}, b: {max_attempts: »x, <<: *a}}", "upstreams.b.max_attempts", ["whole number"], id="beside-a-merge"),
    pytest.param('upstreams: {a: {base_url: http://x, auth: {scheme: »"a\\nb"}}}', "upstreams.a.auth.scheme", ["one line"], id="auth-scheme"),
    pytest.param("models: {a: {fallbacks: [»a]}}", "models.a.fallbacks[0]", ["stand in for itself"], id="fallback-to-itself"),
    pytest.param("models: {a: {params: »{stream: true}}}", "models.a.params", ["`stream` is for clients"], id="stream-as-param"),
    pytest.param("models: {a: {default_params: »{stream_options: {include_usage: true}, model: b}}}", "models.a.default_params", ["`model` is a setting", "request_usage"], id="delivery-as-param"),
    pytest.param("models: {a: {context_window_fallbacks: [»b]}}", "models.a.context_window_fallbacks[0]", ["no model `b`", "known: a"], id="unknown-context-window-fallback"),
    pytest.param("models: {a: {content_policy_fallbacks: [»a]}}", "models.a.content_policy_fallbacks[0]", ["for itself"], id="content-policy-fallback-to-itself"),
    pytest.param("upstreams: {a: {base_url: https://a, circuit: »true}}", "upstreams.a.circuit", ["must be a mapping"], id="circuit-true"),
    pytest.param("upstreams: {a: {base_url: https://a, circuit: {failure_rate: »0}}}", "upstreams.a.circuit.failure_rate", ["greater than 0"], id="circuit-rate"),
    pytest.param("upstreams: {a: {base_url: https://a, retry_budget: »-1}}", "upstreams.a.retry_budget", ["0"], id="retry-budget"),
    pytest.param("aliases: {x: »y}", "aliases.x", ["no model `y`"], id="alias-target"),
    pytest.param("models: {a: {}, b: {}}\naliases: {»a: b}", "aliases.a", ["is a model already"], id="alias-shadows"),
    pytest.param("clients: »close", "clients", ["must be one of: open"], id="clients-word"),
    pytest.param("clients: [{name: a, key_hashes: [»abc]}]", "clients[0].key_hashes[0]", ["sha256:", "64 hex digits"], id="not-a-hash"),
    pytest.param(f"clients: [{{name: »'a b', key_hashes: [{HASH}]}}]", "clients[0].name", ["letters, digits"], id="client-name"),
    pytest.param("clients: [»{name: a}]", "clients[0].key_hashes", ["is required"], id="client-without-key"),
    pytest.param(f"clients: [{{name: a, key_hashes: [{HASH}]}}, {{name: »a, key_hashes: [{OTHER}]}}]", "clients[1].name", ["client 1 is called `a` too"], id="client-twice"),
    pytest.param(f"clients: [{{name: a, key_hashes: [{HASH}]}}, {{name: b, key_hashes: [»{HASH}]}}]", "clients[1].key_hashes[0]", ["client `a` has this key already"], id="hash-twice"),
    pytest.param("server: {port: »'${NOT_SET}'}", "server.port", ["NOT_SET is not set", ":-default"], id="variable"),
    pytest.param("server: {host: »'${1X}'}", "server.host", ["variable's name"], id="variable-syntax"),
    pytest.param("server:\n»\tport: 1", "", ["tab"], id="tab"),
    pytest.param("server:\n  host: a\n »\tport: 1", "", ["tab"], id="tab-after-space"),
    pytest.param("server: [»", "", ["not YAML"], id="unclosed"),
    pytest.param("a: b»: c", "", ["not YAML", "mapping values"], id="colon"),
    pytest.param("server: {host: 'x»\x01'}", "", ["U+0001"], id="control-character"),
    pytest.param("a: »*nobody", "", ["undefined alias"], id="unknown-alias"),
    pytest.param("store: »&a [*a]", "store[0]", ["contains itself"], id="alias-of-itself"),
    pytest.param("store: »!!python/name:os.system x", "store", ["tag"], id="tag"),
    pytest.param("a: 1\n»---\nb: 1", "", ["single document"], id="two-documents"),
    pytest.param("? »[a]\n: b", "", ["a name must be a text"], id="name-not-text"),
]  # fmt: skip


def mistakes_in(text: str, tmp_path: Path, env: dict[str, str] | None = None) -> list[Mistake]:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, env or {})
    assert all(mistake.file in {"", str(file)} for mistake in caught.value.mistakes)
    return caught.value.mistakes


@pytest.mark.parametrize(("text", "path", "words"), TABLE)
def test_B74_a_mistake_names_its_place_and_what_is_allowed(
    text: str, path: str, words: list[str], tmp_path: Path
) -> None:
    before = text[: text.index("»")]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    mistakes = mistakes_in(text.replace("»", ""), tmp_path)
    assert len(mistakes) == 1, [str(mistake) for mistake in mistakes]
    [mistake] = mistakes
    assert (mistake.line, mistake.column, mistake.path) == (line, column, path)
    for word in words:
        assert word in mistake.message
    assert str(mistake).startswith(f"{tmp_path / 'settings.yaml'}:{line}:{column}: ")


def test_B74_all_mistakes_are_told_in_file_order(tmp_path: Path) -> None:
    text = (
        "server:\n  prot: 1\n  port: x\n"
        "store: floppy\n"
        "server: {}\n"
        "upstreams:\n  a:\n    base_url: ${NOT_SET}\n    transport: x\n"
        "clients: shut\n"
    )
    mistakes = mistakes_in(text, tmp_path)
    assert [(mistake.line, mistake.column) for mistake in mistakes] == [
        (2, 3),
        (3, 9),
        (4, 8),
        (5, 1),
        (8, 15),
        (9, 16),
        (10, 10),
    ]


def test_B74_contradictions_are_told_together(tmp_path: Path) -> None:
    text = "models:\n  a: {upstream: x}\n  b: {fallbacks: [c]}\naliases: {d: e}\n"
    assert [mistake.line for mistake in mistakes_in(text, tmp_path)] == [2, 3, 4]


def test_B74_a_broken_value_is_told_once(tmp_path: Path) -> None:
    text = "upstreams: {a: {base_url: http://x, api_keys: [{value: '${NOT_SET}'}]}}"
    [mistake] = mistakes_in(text, tmp_path)
    assert "NOT_SET" in mistake.message


def test_B74_wrong_items_do_not_make_the_list_look_empty(tmp_path: Path) -> None:
    text = "cache_settings: {rules: [{model_names: [''], include_in_key: ['['], ttl_seconds: 1}]}"
    paths = [
        mistake.path.removeprefix("cache_settings.rules[0].")
        for mistake in mistakes_in(text, tmp_path)
    ]
    assert paths == ["model_names[0]", "include_in_key[0]"]


def test_B74_bytes_that_are_not_utf8_have_a_place(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"server:\n  host: \xff\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    assert str(caught.value) == f"{file}:2:9: not UTF-8"


def test_B74_deep_nesting_is_a_mistake_not_a_crash(tmp_path: Path) -> None:
    [mistake] = mistakes_in("[" * 5000, tmp_path)
    assert "too deeply" in mistake.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"cannot read .*absent\.yaml: No such file"):
        load_settings(tmp_path / "absent.yaml", {})


def test_B74_a_mistake_in_a_variable_names_the_variable(tmp_path: Path) -> None:
    env = {
        "MAGIC_PROXY__SERVER__PRT": "1",
        "MAGIC_PROXY__SERVER__PORT": "x",
        "MAGIC_PROXY__STORE": "[memory",
        "MAGIC_PROXY____X": "1",
        "MAGIC_PROXY__CACHE_SETTINGS__RULES__7__TTL_SECONDS": "1",
    }
    rules = f"cache_settings: {{rules: [{{{RULE}}}]}}"
    told = [str(mistake) for mistake in mistakes_in(rules, tmp_path, env)]
    assert len(told) == len(env)
    for variable in env:
        assert sum(variable in line for line in told) == 1, told


def test_B74_an_open_proxy_on_a_public_address_is_a_mistake(tmp_path: Path) -> None:
    [mistake] = mistakes_in("server: {host: 0.0.0.0}\nclients: open", tmp_path)
    assert (mistake.line, mistake.path) == (2, "clients")
    assert "insecure_open" in mistake.message


def test_B74_a_mistake_in_an_override_is_not_told_of_the_file(tmp_path: Path) -> None:
    [mistake] = mistakes_in("server: {port: 1}", tmp_path, {"MAGIC_PROXY__SERVER": "{port: x}"})
    assert (mistake.line, mistake.path) == (0, "server.port")
    assert "MAGIC_PROXY__SERVER" in mistake.message


def test_B74_a_wrong_override_of_a_broken_value_is_told(tmp_path: Path) -> None:
    env = {"MAGIC_PROXY__SERVER__PORT": "x"}
    [mistake] = mistakes_in("server: {port: '${NOT_SET}'}", tmp_path, env)
    assert "MAGIC_PROXY__SERVER__PORT" in mistake.message
