"""What is secret shows nowhere: not in a repr, not in an error."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from proxy.errors import SettingsError
from proxy.settings.load import load_settings
from proxy.settings.models import Settings

SECRET = "sk-hunter2-very-secret"

GOOD = f"""
store: {{redis: {{url: "rediss://user:{SECRET}@host:1/0"}}}}
upstreams:
  a:
    base_url: https://host/v1
    api_keys: ["{SECRET}", "${{KEY}}", {{value: "{SECRET}"}}, {{env: KEY}}, {{file: keys.txt}}]
    headers: {{x-token: "{SECRET}"}}
    query: {{key: "{SECRET}"}}
    http_proxy: "http://user:{SECRET}@proxy:3128"
clients: open
"""

BAD = {
    "key-in-the-wrong-place": "server: {port: %s}",
    "enum": "server: {log_level: %s}",
    "size": "server: {max_body_bytes: %s}",
    "redis-scheme": "store: {redis: {url: 'http://:%s@host'}}",
    "redis-port": "store: {redis: {url: 'redis://host:%s'}}",
    "userinfo": "upstreams: {a: {base_url: 'https://user:%s@host'}}",
    "base-url": "upstreams: {a: {base_url: %s}}",
    "query-in-base-url": "upstreams: {a: {base_url: 'https://host?key=%s'}}",
    "proxy": "upstreams: {a: {base_url: http://x, http_proxy: 'socks5://:%s@host'}}",
    "key-with-two-lines": 'upstreams: {a: {base_url: http://x, api_keys: ["%s\\nx"]}}',
    "key-with-weight": "upstreams: {a: {base_url: http://x, api_keys: [{value: %s, weight: x}]}}",
    "key-with-extra": "upstreams: {a: {base_url: http://x, api_keys: [{value: %s, wait: 1}]}}",
    "keys-not-a-list": "upstreams: {a: {base_url: http://x, api_keys: %s}}",
    "header-with-two-lines": 'upstreams: {a: {base_url: http://x, headers: {a: "%s\\n"}}}',
    "hash": "clients: [{name: a, key_hashes: [%s]}]",
    "clients": "clients: %s",
    "at-top": "%s",
    "unclosed": "upstreams: {a: {api_keys: [%s",
    "colon": "upstreams: a: %s",
    "quote": "upstreams: {a: {api_keys: ['%s}}}",
}  # fmt: skip


def load_text(text: str, tmp_path: Path, env: dict[str, str]) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return load_settings(file, env)


def test_B69_secrets_show_in_no_rendering_of_settings(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text(f"# keys\n{SECRET}-1\n\n{SECRET}-2  # the second\n")
    settings = load_text(GOOD, tmp_path, {"KEY": SECRET})
    upstream = settings.upstreams["a"]
    assert [key.secret.get_secret_value() for key in upstream.keys] == [
        *[SECRET] * 4,
        f"{SECRET}-1",
        f"{SECRET}-2",
    ]
    for rendering in (repr(settings), str(settings), repr(upstream.keys), f"{upstream}"):
        assert "hunter2" not in rendering
    assert "hunter2" not in json.dumps(
        settings.model_dump(mode="json", exclude={"upstreams": {"a": {"query"}}})
    )


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("by", ["file", "variable", "override"])
def test_B69_secrets_show_in_no_error(text: str, by: str, tmp_path: Path) -> None:
    env = {"KEY": SECRET}
    if by == "override":
        env["MAGIC_PROXY__SERVER__PORT"] = SECRET
    with pytest.raises(SettingsError) as caught:
        load_text(text % (SECRET if by == "file" else "${KEY}"), tmp_path, env)
    error: BaseException | None = caught.value
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value)
    while error is not None:  # what a traceback would print
        assert "hunter2" not in str(error) or error.__suppress_context__
        error = error.__cause__


def test_B69_secrets_show_in_no_error_of_the_models_themselves() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"server": {"port": SECRET}, "store": {"redis": {"url": SECRET}}})
    assert "hunter2" not in str(caught.value)


def test_a_variable_cannot_become_yaml(tmp_path: Path) -> None:
    text = (
        "upstreams:\n  a:\n    base_url: http://x\n    api_keys:\n      - ${KEY}\nclients: open\n"
    )
    hostile = "x]\n    verify_tls: false\n    # {a: b}"
    with pytest.raises(SettingsError, match="one line"):
        load_text(text, tmp_path, {"KEY": hostile})
    settings = load_text(text, tmp_path, {"KEY": "x], verify_tls: false #"})
    upstream = settings.upstreams["a"]
    assert upstream.verify_tls
    assert [key.secret.get_secret_value() for key in upstream.keys] == ["x], verify_tls: false #"]
