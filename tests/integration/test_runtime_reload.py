"""Settings read again: before the first ones are in force, and with work under way."""

import gc
from pathlib import Path

import orjson
import pytest

from proxy.engine.base import Answer
from proxy.engine.plan import Plan
from proxy.runtime import Runtime, Settings
from proxy.runtime.fixed import fixed_changes
from proxy.settings.load import load_settings
from proxy.standin import RunningStandIn, Script
from tests.unit.engine.kit import call
from tests.unit.engine.upstreams import body_of, turns
from tests.waiting import until

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


async def test_B74_the_prefix_of_keys_is_that_of_the_start_and_a_change_is_told(
    tmp_path: Path,
) -> None:
    first = _settings(tmp_path, "first", expose_key=False)
    second = _settings(tmp_path, "second", expose_key=True)
    runtime = Runtime(first)
    await runtime.start()
    try:
        runtime.reload(second)
        assert runtime.snapshot.service._policy.key_prefix == "first:"
        assert runtime.snapshot.key_prefix == "first:", "purges find what is stored"
        assert runtime.snapshot.service._policy.expose_key
        assert fixed_changes(first, second) == [
            "the change of 'cache_settings.key_prefix' takes effect at the next start"
        ]
    finally:
        await runtime.stop()


async def _ask(runtime: Runtime) -> Answer:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    service = runtime.snapshot.service
    begun = await service.begin(call(orjson.dumps(body)))
    return await service.finish(begun) if isinstance(begun, Plan) else begun


async def test_B41_B74_a_flight_outlives_the_settings_that_it_began_under_and_its_leader(
    tmp_path: Path, standin: RunningStandIn
) -> None:
    def settings(ttl: int) -> Settings:
        file = tmp_path / "proxy_config.yaml"
        file.write_text(
            "server: {access_log: false}\nstore: memory\n"
            f"upstreams: {{openai: {{base_url: '{standin.base_url}'}}}}\n"
            "cache_settings: {rules: [{model_names: ['*'], include_in_key: ['*'], "
            f"ttl_seconds: {ttl}}}]}}\n"
        )
        return load_settings(file, env={})

    standin.app.script(Script(hold="rest", hold_after=2))
    runtime = Runtime(settings(60))
    await runtime.start()
    try:
        leading = await _ask(runtime)
        runtime.reload(settings(61))
        following = await _ask(runtime)
        assert not isinstance(leading.body, bytes)
        await leading.body.aclose()
        del leading
        gc.collect()
        await turns()  # whatever is closed for good now is closed
        closings = runtime._background
        await until(lambda: closings.count("close-upstreams") == 0)
        standin.app.gate("rest").set()

        assert (await body_of(following)).endswith(b"data: [DONE]\n\n")
        assert len(standin.app.requests) == 1
        del following
        # What is left is open for the settings in force alone.
        await until(lambda: gc.collect() >= 0 and len(runtime._transports) == 1)
    finally:
        await runtime.stop()


def test_B74_what_a_reload_does_not_change_is_told_and_what_it_does_is_not(
    tmp_path: Path,
) -> None:
    def settings(text: str) -> Settings:
        file = tmp_path / "proxy_config.yaml"
        file.write_text(f"server: {text}\n")
        return load_settings(file, env={})

    first = settings("{port: 8080}")
    assert fixed_changes(first, settings("{port: 8080, max_body_bytes: 1MiB}")) == []
    assert fixed_changes(first, settings("{port: 8081, max_body_bytes: 1MiB}")) == [
        "the changes under 'server' take effect at the next start"
    ]
