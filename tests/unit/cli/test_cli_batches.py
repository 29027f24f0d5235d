"""`key` and `explain` for batches of embeddings: a key and a state for each input."""

from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner, Result

from proxy.cli.main import app

BATCH = b'{"model":"m","input":["amber","birch","amber"]}'
ALONE = b'{"model":"m","input":"birch"}'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(f"store: {{tiers: disk, disk: {{path: {tmp_path / 'cache.sqlite3'}}}}}\n")
    return file


def run(config: Path, *arguments: str, stdin: bytes) -> Result:
    env = {"OPENAI_API_KEY": None, "MAGIC_PROXY_CONFIG": None, "COLUMNS": "200"}
    return CliRunner(env=env).invoke(app, [*arguments, "--config", str(config)], input=stdin)


def test_B30_key_prints_a_key_for_each_input(config: Path) -> None:
    result = run(config, "key", stdin=BATCH)
    first, second, third = result.stdout.splitlines()
    assert result.exit_code == 0
    assert first == third != second
    alone = run(config, "key", stdin=ALONE).stdout.splitlines()[0]
    assert alone == second
    assert run(config, "key", stdin=ALONE.replace(b'"birch"', b'["birch"]')).stdout == (
        run(config, "key", stdin=ALONE).stdout
    )


def test_B30_key_as_json_has_no_key_for_the_whole(config: Path) -> None:
    told = orjson.loads(run(config, "key", "--json", stdin=BATCH).stdout)
    assert told["store_key"] is None
    assert [item["state"] for item in told["items"]] == ["absent"] * 3


def test_B30_explain_shows_each_input_on_a_line(config: Path) -> None:
    result = run(config, "explain", stdin=BATCH)
    assert result.exit_code == 1
    lines = [line for line in result.stdout.splitlines() if line.startswith("input")]
    assert len(lines) == 3
    assert all("absent" in line and "magic_proxy:cache:v1:embeddings:" in line for line in lines)
