"""How many workers, as files, variables and options say it."""

from pathlib import Path

import pytest

from proxy.errors import SettingsError
from proxy.settings.load import load_settings


@pytest.mark.parametrize(
    ("given", "workers"),
    [("4", 4), ('"4"', 4), ("256", 256), ("auto", "auto"), ("null", 1), ("", 1)],
)
def test_workers_are_a_number_or_auto(given: str, workers: object, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"server:\n  workers: {given}\n")

    assert load_settings(file, {}).server.workers == workers


def test_the_environment_and_the_command_line_say_it_too() -> None:
    env = {"MAGIC_PROXY__SERVER__WORKERS": "3"}

    assert load_settings(None, env).server.workers == 3
    assert load_settings(None, env, {"server.workers": "auto"}).server.workers == "auto"


@pytest.mark.parametrize("given", ["0", "257", "-1", "1.5", "many", "true", "[2]"])
def test_B74_anything_else_is_one_mistake_that_says_what_may_stand_there(
    given: str, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"server:\n  workers: {given}\n")

    with pytest.raises(SettingsError) as raised:
        load_settings(file, {})

    (mistake,) = raised.value.mistakes
    assert (mistake.line, mistake.column, mistake.path) == (2, 12, "server.workers")
    assert mistake.message == "must be a whole number from 1 to 256, or `auto`"
