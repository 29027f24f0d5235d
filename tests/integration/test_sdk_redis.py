"""The OpenAI SDK through the proxy: entries in a real Redis, shared, and lost for a while."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proxy.standin import RunningStandIn
from tests.integration.conftest import NewClient
from tests.integration.redis_server import RedisServer
from tests.integration.sdk import ask, ask_streamed, embed, said
from tests.integration.servers import ProxyFactory
from tests.waiting import eventually


def _on_redis(redis: RedisServer, *tiers: str, **members: Any) -> dict[str, Any]:
    return {"store": {"tiers": list(tiers), "redis": {"url": redis.url, **members}}}


def _holds(redis: RedisServer, entries: int) -> bool:
    """So many entries; what workers share beside them does not count."""
    return redis.command("KEYS", "magic_proxy:cache:v1:*").startswith(b"*%d\r\n" % entries)


def test_B12_two_proxies_share_entries_through_redis(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn, redis: RedisServer
) -> None:
    settings = _on_redis(redis, "memory", "redis")
    one, other = client(proxy(settings)), client(proxy(settings))

    first, stream, vectors = ask(one), ask_streamed(one, n=2), embed(one)
    eventually(lambda: _holds(redis, 4))  # each of the two inputs by itself

    assert [first.x_cache, stream.x_cache, vectors.x_cache] == ["MISS", "MISS", "MISS"]
    shared, whole, again = ask(other), ask(other, n=2), embed(other)
    assert [shared.x_cache, whole.x_cache, again.x_cache] == ["HIT", "HIT", "HIT"]
    assert shared.value == first.value
    assert len(said(whole.value)["choices"]) == 2
    assert again.value == vectors.value
    assert standin.app.count() == 3


def test_B55_store_auto_takes_redis_when_a_url_is_set(
    proxy: ProxyFactory, client: NewClient, redis: RedisServer
) -> None:
    running = proxy(_on_redis(redis, "auto"))
    sdk = client(running)
    first = ask(sdk)
    eventually(lambda: _holds(redis, 1))

    running.restart()

    after = ask(client(running))
    assert after.x_cache == "HIT"
    assert after.value == first.value


def test_B50_a_redis_that_dies_under_load_costs_misses_and_heals(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn, redis: RedisServer
) -> None:
    sdk = client(proxy(_on_redis(redis, "redis", retry_seconds=0.2)))

    def timed(_: int) -> tuple[str, float]:
        begun = time.monotonic()
        return ask(sdk).x_cache, time.monotonic() - begun

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(timed, range(8)))
        eventually(lambda: _holds(redis, 1))
        assert ask(sdk).x_cache == "HIT"
        under_load = callers.map(timed, range(80))
        redis.kill()
        during = list(under_load)
        later = list(callers.map(timed, range(40)))

    assert len(during) == 80, "each one was answered"
    assert {told for told, _ in later} <= {"MISS", "HIT"}
    assert "MISS" in {told for told, _ in during + later}
    assert sorted(seconds for _, seconds in later)[len(later) // 2] < 0.1
    redis.start()
    eventually(lambda: ask(sdk).x_cache == "HIT" and _holds(redis, 1))


def test_B50_a_redis_that_is_down_at_the_start_costs_misses_and_heals(
    proxy: ProxyFactory, client: NewClient, redis: RedisServer
) -> None:
    redis.kill()
    sdk = client(proxy(_on_redis(redis, "redis", retry_seconds=0.2)))

    assert ask(sdk).value.choices
    redis.start()

    eventually(lambda: ask(sdk).x_cache == "HIT" and _holds(redis, 1))
