"""The OpenAI SDK through the proxy: hits from a store that outlives or is shared by proxies."""

from typing import Any

from proxy.standin import RunningStandIn
from tests.integration.conftest import NewClient
from tests.integration.sdk import ask, ask_streamed, embed
from tests.integration.servers import ProxyFactory


def test_B12_the_disk_store_hits_across_a_restart(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    running = proxy()
    sdk = client(running)
    chat, stream = ask(sdk), ask_streamed(sdk, n=2)
    vectors = embed(sdk)

    running.restart()

    after = client(running)
    assert ask(after).x_cache == "HIT"
    assert ask(after).value == chat.value
    assert ask_streamed(after, n=2).value == stream.value
    assert embed(after).x_cache == "HIT"
    assert embed(after).value == vectors.value
    assert standin.app.count() == 3


def test_B3_proxies_with_different_prefixes_share_a_file_but_no_entry(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    first = proxy()
    shared: dict[str, Any] = {"store": first.settings["store"]}
    other = proxy({**shared, "cache_settings": {"key_prefix": "other:"}})

    assert ask(client(first)).x_cache == "MISS"
    assert ask(client(other)).x_cache == "MISS"
    assert ask(client(other)).x_cache == "HIT"
