"""Settings read again before the first ones are in force."""

from pathlib import Path

import pytest

from proxy.runtime import Runtime, Settings
from proxy.settings.load import load_settings

pytestmark = pytest.mark.anyio


def _settings(directory: Path, prefix: str) -> Settings:
    file = directory / "proxy_config.yaml"
    file.write_text(
        "server: {access_log: false}\nstore: memory\n"
        f"cache_settings: {{key_prefix: '{prefix}:', expose_key: true}}\n"
    )
    return load_settings(file, env={})


async def test_B74_settings_read_again_during_the_start_are_in_force_after_it(
    tmp_path: Path,
) -> None:
    runtime = Runtime(_settings(tmp_path, "first"))
    runtime.reload(_settings(tmp_path, "second"))
    await runtime.start()
    try:
        assert runtime.snapshot.service._policy.key_prefix == "second:"
    finally:
        await runtime.stop()
