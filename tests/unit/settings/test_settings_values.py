"""What a file, variables and flags say, and what holds where they say nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.core.wire import Endpoint
from proxy.errors import SettingsError
from proxy.settings.load import load, load_settings
from proxy.settings.models import Settings, Tier

SAMPLE = """
cache_settings:
  enabled: true
  key_prefix: "magic_proxy:cache:"
  rules:
    - model_names: ["openai_embedding_3_large", "google_embedding_004"]
      include_in_key: ["input"]
      ttl_seconds: 3600
    - model_names: ["openai_gpt4_main"]
      include_in_key: ["messages", "temperature", "max_tokens"]
      ttl_seconds: 600
"""

HASH = "sha256:" + "0" * 64


LoadText = Callable[..., Settings]


@pytest.fixture
def load_text(tmp_path: Path) -> LoadText:
    def load_it(text: str, env: dict[str, str] | None = None, **flags: Any) -> Settings:
        file = tmp_path / "settings.yaml"
        file.write_text(text, encoding="utf-8")
        return load_settings(file, env or {}, flags)

    return load_it


def test_the_given_sample_is_valid_as_it_stands(load_text: LoadText) -> None:
    settings = load_text(SAMPLE)
    first, second = settings.cache_settings.rules
    assert (first.name, second.name) == ("rule-1", "rule-2")
    assert first.model_names == ("openai_embedding_3_large", "google_embedding_004")
    assert first.include_in_key == ("input",)
    assert (first.ttl_seconds, second.ttl_seconds) == (3600, 600)
    assert second.include_in_key == ("messages", "temperature", "max_tokens")
    assert settings.cache_settings.key_prefix == "magic_proxy:cache:"


def test_without_a_file_a_second_call_can_be_a_hit() -> None:
    settings = load_settings(None, {"HOME": "/home/ada"})
    embeddings, chat = settings.cache_settings.rules
    assert (embeddings.name, embeddings.endpoints, embeddings.ttl_seconds) == (
        "embeddings",
        (Endpoint.EMBEDDINGS,),
        86_400,
    )
    assert (chat.name, chat.endpoints, chat.ttl_seconds) == ("chat", (Endpoint.CHAT,), 3_600)
    assert chat.when.max_temperature == 1.0
    assert embeddings.include_in_key == chat.include_in_key == ("*",)
    assert settings.upstreams["openai"].base_url == "https://api.openai.com/v1"
    assert settings.main_upstream == "openai"
    assert settings.clients is None
    assert settings.store.resolved_tiers == (Tier.MEMORY, Tier.DISK)
    assert settings.store.disk.path == Path("/home/ada/.cache/magic-proxy/cache.sqlite3")


@pytest.mark.parametrize(
    "text", ["", "\n# nothing\n", "---\n", "null", "cache_settings:\nstore:\nmodels:\n"]
)
def test_nothing_means_the_defaults(text: str, load_text: LoadText) -> None:
    assert load_text(text) == load_settings(None, {})


def test_settings_can_be_compared_and_not_changed(load_text: LoadText) -> None:
    assert load_text("server: {port: 1}") != load_settings(None, {})
    with pytest.raises(ValueError, match="frozen"):
        load_text("").server.port = 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("7", 7), ("'7'", 7), ("7B", 7), ("8MiB", 8 * 1024**2), ("512kb", 512_000), ("1.5 GiB", 3 * 2**29),
        ("2Gb", 2 * 10**9), ("1KIB", 1024), ("1TiB", 1024**4),
    ],
)  # fmt: skip
def test_sizes_have_units(text: str, size: int, load_text: LoadText) -> None:
    assert load_text(f"server: {{max_body_bytes: {text}}}").server.max_body_bytes == size


@pytest.mark.parametrize(
    ("store", "tiers"),
    [
        ("auto", ["memory", "disk"]),
        ("memory", ["memory"]),
        ("disk", ["disk"]),
        ("[memory, disk]", ["memory", "disk"]),
        ("{tiers: disk}", ["disk"]),
        ("{tiers: [disk, memory]}", ["disk", "memory"]),
        ("{redis: {url: redis://x}}", ["memory", "redis"]),
        ("{redis: {url: ''}}", ["memory", "disk"]),
        ("{redis: {url: }}", ["memory", "disk"]),
        ("{tiers: auto, redis: {url: unix:///run/redis.sock}}", ["memory", "redis"]),
        ("{tiers: redis, redis: {url: rediss://x}}", ["redis"]),
    ],
)
def test_stores_have_short_forms(store: str, tiers: list[str], load_text: LoadText) -> None:
    assert [str(tier) for tier in load_text(f"store: {store}").store.resolved_tiers] == tiers


def test_yaml_is_read_by_the_rules_of_1_2(load_text: LoadText) -> None:
    settings = load_text(
        "models:\n  no: {params: {a: no, b: 010, c: 1:30, d: 2024-10-21, e: true, f: 1e3, g: '1', h: ~, i: -2, j: .5}}\n"
    )
    assert settings.models["no"].params == {
        "a": "no", "b": "010", "c": "1:30", "d": "2024-10-21", "e": True, "f": 1000.0, "g": "1",
        "h": None, "i": -2, "j": 0.5,
    }  # fmt: skip


def test_anchors_and_merges_work_and_own_members_win(load_text: LoadText) -> None:
    settings = load_text(
        "upstreams:\n"
        "  a: &a {base_url: http://a, request_usage: true, max_attempts: 7}\n"
        "  b: {max_attempts: 2, <<: *a, base_url: http://b}\n"
        "  c: *a\n"
    )
    b = settings.upstreams["b"]
    assert (b.base_url, b.request_usage, b.max_attempts) == ("http://b", True, 2)
    assert settings.upstreams["c"] == settings.upstreams["a"]


def test_the_first_of_several_merges_wins(load_text: LoadText) -> None:
    settings = load_text(
        "upstreams:\n"
        "  a: &a {base_url: http://a, max_attempts: 7}\n"
        "  b: &b {base_url: http://b, request_usage: true}\n"
        "  c: {<<: [*a, *b]}\n"
    )
    c = settings.upstreams["c"]
    assert (c.base_url, c.max_attempts, c.request_usage) == ("http://a", 7, True)


def test_keys_lose_the_line_end_that_secret_files_have(load_text: LoadText) -> None:
    text = "upstreams: {a: {base_url: http://x, api_keys: ['${KEY}', {env: KEY}]}}\nclients: open"
    keys = load_text(text, {"KEY": "sk-1\n"}).upstreams["a"].keys
    assert [key.secret.get_secret_value() for key in keys] == ["sk-1", "sk-1"]


@pytest.mark.parametrize(
    ("text", "env", "host"),
    [
        ("${HOST}", {"HOST": "h"}, "h"),
        ("'${HOST}'", {"HOST": "h"}, "h"),
        ("a-${HOST}-${B}.c", {"HOST": "h", "B": "b"}, "a-h-b.c"),
        ("${HOST:-d}", {}, "d"),
        ("${HOST:-d}", {"HOST": ""}, "d"),
        ("${HOST:-d}", {"HOST": "h"}, "h"),
        ("'${HOST:-http://x:1/}'", {}, "http://x:1/"),
        ("$$HOST", {}, "$HOST"),
        ("'$${HOST}'", {}, "${HOST}"),
        ("$HOST", {}, "$HOST"),
        ("a$", {}, "a$"),
        ("${HOST}", {"HOST": "${OTHER}"}, "${OTHER}"),
        ("${HOST}", {"HOST": "123"}, "123"),
        ("${HOST}", {"HOST": "a: [b"}, "a: [b"),
    ],
)
def test_variables_expand(text: str, env: dict[str, str], host: str, load_text: LoadText) -> None:
    assert load_text(f"server:\n  host: {text}\n", env).server.host == host


def test_expanded_values_have_the_type_of_their_place(load_text: LoadText) -> None:
    env = {"PORT": "99", "LOG": "false", "T": "0.5", "EMPTY": "", "SIZE": "1MiB", "TIER": "disk"}
    settings = load_text(
        "server: {port: '${PORT}', access_log: '${LOG}', max_body_bytes: '${SIZE}'}\n"
        "store:\n  ${TIER}\n"
        "models:\n  m:\n    params:\n      temperature: ${T}\n      quoted: '${T}'\n      list: ['${T}', 1]\n",
        env,
    )
    assert (settings.server.port, settings.server.access_log) == (99, False)
    assert settings.server.max_body_bytes == 1024**2
    assert settings.store.tiers == (Tier.DISK,)
    assert settings.models["m"].params == {"temperature": 0.5, "quoted": "0.5", "list": ["0.5", 1]}


def test_variables_do_not_expand_in_names(load_text: LoadText) -> None:
    assert "${A}" in load_text("models: {'${A}': {}}", {"A": "x"}).models


def test_overrides_win_over_the_file(load_text: LoadText) -> None:
    text = (
        "server: {port: 1, host: a}\nstore: memory\n"
        "upstreams: {azure-eu: {base_url: http://x}, B.c: {base_url: http://y}}\n"
        "cache_settings: {rules: [{model_names: [a], include_in_key: [b], ttl_seconds: 1}]}\n"
    )
    env = {
        "MAGIC_PROXY__SERVER__PORT": "2",
        "MAGIC_PROXY__SERVER__LOG_LEVEL": "DEBUG",
        "MAGIC_PROXY__STORE__MEMORY__MAX_BYTES": "1KiB",
        "MAGIC_PROXY__UPSTREAMS__AZURE_EU__MAX_ATTEMPTS": "9",
        "MAGIC_PROXY__UPSTREAMS__AZURE_EU__TIMEOUTS__TOTAL_SECONDS": "null",
        "MAGIC_PROXY__UPSTREAMS__B_C__ACCOUNT_HEADERS": "[x-a, x-b]",
        "MAGIC_PROXY__CACHE_SETTINGS__RULES__0__TTL_SECONDS": "5",
        "MAGIC_PROXY__MODELS": "{m: {model: x}}",
        "MAGIC_PROXY__MODELS__M__PARAMS__TOP_K": "3",
        "MAGIC_PROXY_UNRELATED": "x",
    }
    settings = load_text(text, env)
    assert (settings.server.port, settings.server.host, settings.server.log_level) == (
        2,
        "a",
        "debug",
    )
    assert settings.store.tiers == (Tier.MEMORY,)
    assert settings.store.memory.max_bytes == 1024
    azure = settings.upstreams["azure-eu"]
    assert (azure.max_attempts, azure.timeouts.total_seconds, azure.base_url) == (
        9,
        None,
        "http://x",
    )
    assert settings.upstreams["B.c"].account_headers == ("x-a", "x-b")
    assert settings.cache_settings.rules[0].ttl_seconds == 5
    assert settings.cache_settings.rules[0].name == "rule-1"
    assert settings.models["m"].params == {"top_k": 3}


def test_overrides_leave_secrets_as_they_are(load_text: LoadText) -> None:
    url = "redis://:p a: 'ss${X}$$@h/0"
    secret = load_text("", {"MAGIC_PROXY__STORE__REDIS__URL": url}).store.redis.url
    assert secret is not None
    assert secret.get_secret_value() == url


def test_overrides_work_without_a_file_and_keep_the_other_defaults() -> None:
    settings = load_settings(None, {"MAGIC_PROXY__UPSTREAMS__OPENAI__BASE_URL": "http://x/v1/"})
    assert settings.upstreams["openai"].base_url == "http://x/v1"
    assert settings.upstreams["openai"].request_usage
    assert load_settings(None, {"MAGIC_PROXY__CLIENTS": "open"}).clients == "open"


def test_flags_win_over_overrides(load_text: LoadText) -> None:
    env = {"MAGIC_PROXY__SERVER__PORT": "2"}
    assert load_text("server: {port: 1}", env, **{"server.port": 3}).server.port == 3


def test_an_override_repairs_what_the_file_leaves_open(load_text: LoadText) -> None:
    env = {"MAGIC_PROXY__SERVER__PORT": "2", "X": "y"}
    assert load_text("server: {port: 0, host: '${X}'}", env).server.port == 2
    assert load_text("server: {port: wrong}", env).server.port == 2
    assert load_text("server: {port: '${NOT_SET}'}", env).server.port == 2


def test_file_names_are_relative_to_the_settings_file(load_text: LoadText, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("one\n# two\n three  # really\n\n")
    settings = load_text(
        "store: {disk: {path: d/cache.db}}\n"
        "upstreams: {a: {base_url: http://x, ca_file: /etc/ca.pem, api_keys: [{file: keys.txt, weight: 2}]}}\n"
        "clients: open\n"
    )
    assert settings.store.disk.path == tmp_path / "d/cache.db"
    assert settings.upstreams["a"].ca_file == Path("/etc/ca.pem")
    keys = settings.upstreams["a"].keys
    assert [(key.secret.get_secret_value(), key.weight) for key in keys] == [
        ("one", 2),
        ("three", 2),
    ]


def test_an_empty_key_file_is_a_mistake(load_text: LoadText, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("# none yet\n")
    with pytest.raises(SettingsError, match="holds no key"):
        load_text(
            "upstreams: {a: {base_url: http://x, api_keys: [{file: keys.txt}]}}\nclients: open"
        )


def test_the_cache_directory_follows_the_environment() -> None:
    env = {"XDG_CACHE_HOME": "/var/x", "HOME": "/home/ada"}
    assert load_settings(None, env).store.disk.path == Path("/var/x/magic-proxy/cache.sqlite3")


def test_clients_have_a_tenant_of_their_own_or_share_one(load_text: LoadText) -> None:
    other = HASH.replace("0", "1")
    settings = load_text(
        f"clients: [{{name: a, key_hashes: ['{HASH}']}}, {{name: b, key_hashes: ['{other}'], tenant: a}}]"
    )
    assert settings.clients is not None
    assert not isinstance(settings.clients, str)
    assert [client.tenant for client in settings.clients] == ["a", "a"]


def test_places_are_known_for_whoever_has_more_to_say(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("server:\n  port: 1\n")
    loaded = load(file, {"MAGIC_PROXY__SERVER__HOST": "a"})
    assert (
        loaded.place_of(("server", "port")).line,
        loaded.place_of(("server", "port")).column,
    ) == (2, 9)
    assert loaded.place_of(("server", "log_level")).line == 2
    assert loaded.place_of(("server", "host")).variable == "MAGIC_PROXY__SERVER__HOST"
    assert loaded.place_of(("store",)).line == 1


# ---- circuits and retry budgets ----

ONE_UPSTREAM = "upstreams:\n  a:\n    base_url: https://a\n    %s\n"


@pytest.mark.parametrize("off", ["false", "null", "${OFF}"])
def test_a_circuit_and_a_retry_budget_can_be_switched_off(off: str, load_text: LoadText) -> None:
    text = ONE_UPSTREAM % f"circuit: {off}\n    retry_budget: {off}"
    upstream = load_text(text, {"OFF": "false"}).upstreams["a"]
    assert (upstream.circuit, upstream.retry_budget) == (None, None)


@pytest.mark.parametrize("spelled", ["0.5", "${HALF}", "{share: 0.5}"])
def test_a_retry_budget_has_a_short_form(spelled: str, load_text: LoadText) -> None:
    text = ONE_UPSTREAM % f"retry_budget: {spelled}"
    budget = load_text(text, {"HALF": "0.5"}).upstreams["a"].retry_budget
    assert budget is not None
    assert (budget.share, budget.per_second) == (0.5, 3.0)


def test_an_upstream_has_both_without_being_asked(load_text: LoadText) -> None:
    upstream = load_text(ONE_UPSTREAM % "circuit:").upstreams["a"]
    assert upstream.retry_budget is not None
    settings = Settings()
    assert settings.upstreams["openai"].circuit is not None


@pytest.mark.parametrize(("keys", "attempts"), [(0, 5), (1, 5), (7, 7), (20, 10)])
def test_the_default_of_attempts_goes_by_the_keys(
    keys: int, attempts: int, load_text: LoadText
) -> None:
    listed = ", ".join(f"key-{number}" for number in range(keys))
    text = ONE_UPSTREAM % f"api_keys: [{listed}]" + "clients: open"
    assert load_text(text).upstreams["a"].attempts == attempts
