"""The commands: what they print, where, and with which exit code."""

from hashlib import sha256
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from proxy import __version__
from proxy.cli.main import app

BODY = b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"temperature":0}'
KEY_HASH = "sha256:" + sha256(b"mp-ann").hexdigest()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(f"store: {{tiers: disk, disk: {{path: {tmp_path / 'cache.sqlite3'}}}}}\n")
    return file


def run(*arguments: str | Path, stdin: bytes = b"", **env: str | None) -> Result:
    plain = {"OPENAI_API_KEY": None, "MAGIC_PROXY_CONFIG": None, "COLUMNS": "200", **env}
    return CliRunner(env=plain).invoke(app, [str(each) for each in arguments], input=stdin)


def test_version() -> None:
    assert run("version").stdout == f"{__version__}\n"
    assert orjson.loads(run("version", "--json").stdout) == {"version": __version__}


@pytest.mark.parametrize("spell", [["hash-key", "mp-ann"], ["hash-key"]], ids=["argument", "pipe"])
def test_B71_hash_key_prints_what_the_settings_take(spell: list[str]) -> None:
    stdin = b"mp-ann\n" if len(spell) == 1 else b""

    assert run(*spell, stdin=stdin).stdout == f"{KEY_HASH}\n"
    assert orjson.loads(run(*spell, "--json", stdin=stdin).stdout) == {"key_hash": KEY_HASH}


def test_hash_key_refuses_an_empty_key() -> None:
    result = run("hash-key", stdin=b"\n")

    assert (result.exit_code, result.stdout) == (2, "")


def test_check_of_good_settings(config: Path) -> None:
    result = run("check", config)

    assert result.exit_code == 0
    assert str(config) in result.stdout
    assert orjson.loads(run("check", config, "--json").stdout) == {"ok": True, "findings": []}


def test_B74_check_tells_every_mistake_with_its_place(config: Path) -> None:
    config.write_text("server:\n  prot: 1\n  port: high\n")

    result, told = run("check", config), run("check", config, "--json")

    assert (result.exit_code, told.exit_code) == (2, 2)
    assert f"{config}:2:3: server.prot" in result.stderr
    assert f"{config}:3:9: server.port" in result.stderr
    mistakes = orjson.loads(told.stdout)["mistakes"]
    assert [(each["line"], each["column"], each["path"]) for each in mistakes] == [
        (2, 3, "server.prot"),
        (3, 9, "server.port"),
    ]


def test_check_exits_with_1_for_a_warning(config: Path) -> None:
    config.write_text(
        "cache_settings:\n  rules:\n"
        "    - {model_names: ['*'], include_in_key: ['*'], ttl_seconds: 0}\n"
    )

    result = run("check", config, "--json")

    assert result.exit_code == 1
    (finding, *_) = orjson.loads(result.stdout)["findings"]
    assert finding["severity"] == "warning"
    assert finding["line"] == 3


def test_check_names_a_certificate_file_that_cannot_be_used(config: Path) -> None:
    config.write_text("upstreams: {a: {base_url: https://a.example/v1, ca_file: nowhere.pem}}\n")

    result = run("check", config)

    assert result.exit_code == 2
    assert "upstreams.a.ca_file" in result.stderr
    assert "No such file" in result.stderr


@pytest.mark.parametrize("command", ["key", "explain", "check", "serve"])
def test_B74_each_command_refuses_settings_with_a_mistake(command: str, config: Path) -> None:
    config.write_text("server:\n\tport: 1\n")
    where = [config] if command == "check" else ["--config", config]

    result = run(command, *where, stdin=BODY)

    assert result.exit_code == 2
    assert f"{config}:2:1: " in result.stderr
    assert "Traceback" not in result.output


def test_B8_key_is_the_hash_of_the_canonical_bytes_that_it_prints(config: Path) -> None:
    result = run("key", "--config", config, stdin=BODY)
    told = orjson.loads(run("key", "--config", config, "--json", stdin=BODY).stdout)

    store_key, canonical = result.stdout.splitlines()
    assert result.exit_code == 0
    assert store_key.endswith(sha256(canonical.encode()).hexdigest())
    assert (told["store_key"], told["canonical"]) == (store_key, canonical)


def test_B8_a_file_and_standard_input_have_one_key(config: Path, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_bytes(BODY)

    from_file = run("key", tmp_path / "request.json", "--config", config)

    assert from_file.stdout == run("key", "-", "--config", config, stdin=BODY).stdout


def test_B8_a_read_has_a_key_and_is_explained(config: Path) -> None:
    target = "/v1/models?limit=2"
    result = run("key", "--get", target, "--config", config)
    told = run("explain", "--get", target, "--config", config, "--json")

    store_key, canonical = result.stdout.splitlines()
    assert store_key.endswith(sha256(canonical.encode()).hexdigest())
    explained = orjson.loads(told.stdout)
    assert (told.exit_code, explained["would_be"], explained["rule"]) == (1, "MISS", "models")
    assert explained["store_key"] == store_key
    assert "models" in run("explain", "--get", target, "--config", config).stdout
    other = run("explain", "--get", "/v1/threads/t", "--config", config)
    assert (other.exit_code, "no-rule" in other.stdout) == (3, True)


def test_key_exits_with_1_where_there_is_none(config: Path) -> None:
    result = run("key", "--config", config, stdin=BODY.replace(b":0}", b":2}"))

    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no-rule" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (["-"], b"{"),
        (["-"], b"[]"),
        (["-"], b'{"messages":5}'),
        (["nowhere.json"], b""),
        (["--get", "/models"], b""),
        (["-", "--header", "no colon"], BODY),
        (["-", "--client", "ann"], BODY),
    ],
)
@pytest.mark.parametrize("command", ["key", "explain"])
def test_bad_input_exits_with_2(
    command: str, arguments: list[str], stdin: bytes, config: Path
) -> None:
    result = run(command, *arguments, "--config", config, stdin=stdin)

    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.output


def test_explain_tells_a_miss_and_a_bypass_by_its_exit_code(config: Path) -> None:
    miss = run("explain", "--config", config, "--json", stdin=BODY)
    bypass = run("explain", "--config", config, "--json", stdin=BODY.replace(b":0}", b":2}"))

    assert (miss.exit_code, bypass.exit_code) == (1, 3)
    assert orjson.loads(miss.stdout)["would_be"] == "MISS"
    assert orjson.loads(miss.stdout)["rule"] == "chat"
    assert orjson.loads(bypass.stdout)["reason"] == "no-rule"
    shown = run("explain", "--config", config, stdin=BODY).stdout
    assert "MISS" in shown
    assert "temperature" in shown


def test_B69_a_credential_changes_the_key_and_is_not_shown(config: Path) -> None:
    results = [
        run("explain", "--config", config, "-H", f"Authorization: Bearer {key}", stdin=BODY)
        for key in ("sk-secret-1", "sk-secret-2")
    ]

    assert results[0].stdout != results[1].stdout
    assert not any("sk-secret" in result.output for result in results)


def test_B8_a_client_is_spoken_for_by_name(config: Path) -> None:
    with config.open("a") as file:
        file.write(f"clients: [{{name: ann, key_hashes: ['{KEY_HASH}']}}]\n")
        file.write("upstreams: {u: {base_url: 'http://127.0.0.1:1/v1', api_keys: [sk-u]}}\n")

    by_name = run("key", "--config", config, "--client", "ann", stdin=BODY)
    by_key = run("key", "--config", config, "-H", "Authorization: Bearer mp-ann", stdin=BODY)
    unknown = run("key", "--config", config, stdin=BODY)

    assert by_name.exit_code == 0
    assert by_name.stdout == by_key.stdout
    assert unknown.exit_code == 2
    assert "--client NAME" in unknown.stderr


def test_check_reads_the_file_that_the_variable_names(config: Path) -> None:
    config.write_text("server: {prot: 1}\n")

    result = run("check", MAGIC_PROXY_CONFIG=str(config))

    assert result.exit_code == 2
    assert "server.prot" in result.stderr


def test_check_says_once_how_bad_a_finding_is(config: Path) -> None:
    config.write_text(
        "cache_settings:\n  rules:\n"
        "    - {model_names: ['*'], include_in_key: ['*'], ttl_seconds: 0}\n"
    )

    result = run("check", config)
    (finding, *_) = orjson.loads(run("check", config, "--json").stdout)["findings"]

    assert result.stderr.startswith(f"warning: {config}:3:{finding['column']}: cache_settings")


def test_explain_keeps_each_value_on_one_line(config: Path) -> None:
    told = orjson.loads(run("explain", "--config", config, "--json", stdin=BODY).stdout)

    lines = run("explain", "--config", config, stdin=BODY, COLUMNS="40").stdout.splitlines()

    assert told["store_key"] in [line.split()[-1] for line in lines]
    assert any(line.endswith(told["canonical"]) for line in lines)


def test_explain_says_where_to_ask_about_a_store_in_memory(config: Path) -> None:
    on_disk = run("explain", "--config", config, stdin=BODY)
    config.write_text("store: memory\n")
    in_memory = run("explain", "--config", config, "--json", stdin=BODY)

    assert "/admin/explain" not in on_disk.output
    assert "/admin/explain" in in_memory.stderr
    assert orjson.loads(in_memory.stdout)["would_be"] == "MISS"
