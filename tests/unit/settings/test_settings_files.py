"""The files that people start from, the schema and the documentation are those of the models."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from proxy.settings.lint import Code, lint
from proxy.settings.load import load, load_settings
from proxy.settings.reference import reference, setting_paths, with_reference
from proxy.settings.schema import schema_text

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = ROOT / "config" / "magic-proxy.schema.json"
PAGE = ROOT / "docs" / "configuration.md"
HASHES = {
    name: "sha256:" + digit * 64
    for name, digit in (("SEARCH", "1"), ("SUPPORT", "2"), ("ADMIN", "3"))
}
ENV = {
    "OPENAI_API_KEY": "sk-1",
    "OPENAI_API_KEY_1": "sk-1",
    "OPENAI_API_KEY_2": "sk-2",
    "AZURE_OPENAI_ENDPOINT": "https://example.openai.azure.com",
    "AZURE_OPENAI_API_KEY": "k",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
    **{f"{name}_KEY_HASH": key_hash for name, key_hash in HASHES.items()},
}
FILES = [ROOT / "proxy_config.yaml", *sorted((ROOT / "config").glob("*.yaml"))]


def test_there_is_a_file_for_each_occasion() -> None:
    names = {file.stem for file in FILES}
    assert names == {"proxy_config", "openai", "azure", "vllm", "ci-replay", "shared-team"}
    page = PAGE.read_text()
    assert all(f"../{file.relative_to(ROOT)}" in page for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_load_and_lint_clean(file: Path) -> None:
    loaded = load(file, ENV)
    assert [str(finding) for finding in lint(loaded.settings, loaded.place_of)] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_point_editors_to_the_schema_and_keep_to_it(file: Path) -> None:
    text = file.read_text()
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (file.parent / first.partition("=")[2]).resolve() == SCHEMA
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(yaml.safe_load(text))


def test_the_file_at_the_top_says_what_holds_without_a_file() -> None:
    assert load_settings(ROOT / "proxy_config.yaml", {}) == load_settings(None, {})
    url = {"REDIS_URL": "redis://x"}
    assert load_settings(ROOT / "proxy_config.yaml", url).store.resolved_tiers == (
        "memory",
        "redis",
    )


def test_the_schema_is_up_to_date() -> None:
    assert SCHEMA.read_text() == schema_text(), "run: python -m proxy.settings.schema > config/…"
    jsonschema.Draft202012Validator.check_schema(json.loads(schema_text()))


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("store: memory", True),
        ("store: [memory, redis]", True),
        ("store: floppy", False),
        ("store: {tiers: [auto, disk]}", False),
        ("store: {memory: {max_bytes: 8MiB}}", True),
        ("store: {memory: {max_bytes: much}}", False),
        ("store:", True),
        ("server: {port: '${PORT}'}", True),
        ("server: {port: eighty}", False),
        ("server: {port: 70000}", False),
        ("server: {prot: 1}", False),
        ("server: {log_level: '${LEVEL:-info}'}", True),
        ("upstreams: {a: {base_url: http://x, api_keys: ['${K}', {file: k, weight: 2}]}}", True),
        ("upstreams: {a: {base_url: http://x, api_keys: [{path: k}]}}", False),
        ("upstreams: {a: {}}", False),
        ("upstreams: {a b: {base_url: http://x}}", False),
        ("upstreams: {a: {base_url: http://x, timeouts: {total_seconds: null}}}", True),
        ("clients: open", True),
        ("clients: shut", False),
        ("clients: [{name: a, key_hashes: ['${HASH}']}]", True),
        ("cache_settings: {rules: [{model_names: [a], include_in_key: [b]}]}", False),
        ("models: {a: {params: {b: {c: [1, null]}}}}", True),
    ],
)
def test_the_schema_takes_what_the_loader_takes(text: str, valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    assert validator.is_valid(yaml.safe_load(text)) is valid


def test_every_setting_is_documented() -> None:
    documented = set()
    section = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.fullmatch(r"### (?:Top level|`(.+)`)", line):
            section = f"{heading[1]}." if heading[1] else ""
        elif row := re.match(r"\| `([a-z_]+)` \| .+ \| .* \| .+ \|$", line):
            documented.add(section + row[1])
    assert documented == set(setting_paths())


def test_the_reference_is_up_to_date() -> None:
    text = PAGE.read_text()
    assert text == with_reference(text), (
        "run: python -m proxy.settings.reference docs/configuration.md"
    )
    assert reference() in text


def test_the_documentation_names_every_code_of_lint() -> None:
    rows = re.findall(
        r"^\| `([a-z-]+)` \| ", PAGE.read_text().partition("## What `check` finds")[2], re.MULTILINE
    )
    assert set(rows) == set(Code)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_examples_in_the_documentation_are_valid(block: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    (tmp_path / "more-keys.txt").write_text("k\n")
    env = ENV | {
        "REDIS_PASSWORD": "p",
        "SECOND_KEY": "s",
        "AZURE_KEY": "a",
        "ALICE_KEY_HASH": "sha256:" + "4" * 64,
    }
    if "api_keys" in block and "clients" not in block:
        env["MAGIC_PROXY__CLIENTS"] = "open"
    file.write_text(block)
    load_settings(file, env)
