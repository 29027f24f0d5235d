"""Settings read again before the first ones are in force."""

from pathlib import Path

import pytest

from proxy.runtime import Runtime, Settings
from proxy.settings.load import load_settings

pytestmark = pytest.mark.anyio


def _settings(directory: Path, prefix: str, *, expose_key: bool) -> Settings:
    file = directory / "proxy_config.yaml"
    file.write_text(
        "server: {access_log: false}\nstore: memory\n"
        f"cache_settings: {{key_prefix: '{prefix}:', expose_key: {str(expose_key).lower()}}}\n"
    )
    return load_settings(file, env={})


async def test_B74_settings_read_again_during_the_start_are_in_force_after_it(
    tmp_path: Path,
) -> None:
    runtime = Runtime(_settings(tmp_path, "first", expose_key=False))
    runtime.reload(_settings(tmp_path, "first", expose_key=True))
    await runtime.start()
    try:
        assert runtime.snapshot.service._policy.expose_key
    finally:
        await runtime.stop()


async def test_B74_the_prefix_of_keys_is_that_of_the_start_and_a_change_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(_settings(tmp_path, "first", expose_key=False))
    await runtime.start()
    try:
        runtime.reload(_settings(tmp_path, "second", expose_key=True))
        assert runtime.snapshot.service._policy.key_prefix == "first:"
        assert runtime.snapshot.service._policy.expose_key
        assert "'cache_settings.key_prefix' takes effect at the next start" in caplog.text
    finally:
        await runtime.stop()
