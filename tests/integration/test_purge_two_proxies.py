"""Two proxies on one store: who serves a purged entry, and for how long (B54)."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import orjson
import pytest

from proxy.standin import RunningStandIn, Script, start_standin
from tests.integration.contract import CHAT_PATH, chat, error_of, post
from tests.integration.purges import PROJECT, RULE, Operator, settings
from tests.integration.redis_server import RedisServer, redis_server
from tests.integration.servers import ProxyFactory, RunningProxy
from tests.waiting import LONGEST_SECONDS, PAUSE_SECONDS, eventually

NEVER_SECONDS = 3600.0
POLL_SECONDS = 1.0
# The promise is a second; what a machine that is busy with other things may add.
WITHIN_SECONDS = 1.0 + 1.5

Pair = tuple[Operator, Operator]
StartPair = Callable[..., Pair]


def redis_store(redis: RedisServer) -> dict[str, Any]:
    return {"tiers": ["memory", "redis"], "redis": {"url": redis.url, "timeout_seconds": 1.0}}


class Place:
    """Two proxies with the same settings on the same store."""

    def __init__(
        self, proxies: ProxyFactory, store: dict[str, Any], *, poll: float = NEVER_SECONDS
    ) -> None:
        events = {"project_closed": ["tag:project:{project}"]}
        given = settings(
            cache_settings={"purge_poll_seconds": poll}, store=store, invalidation=events
        )
        self.pair = Operator(proxies(given)), Operator(proxies(given))

    def emptied(self) -> Pair:
        """The proxies, both of which know that all that was stored before is purged."""
        first, second = self.pair
        second.ask("canary")
        first.purge(all=True)
        only = {"cache-control": "only-if-cached"}
        eventually(lambda: post(second.proxy, chat("canary"), headers=only).status_code == 504)
        return self.pair

    def close(self) -> None:
        for operator in self.pair:
            operator.close()


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as running:
        yield running


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(scope="module")
def places(
    upstream: RunningStandIn, lasting_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Place]]:
    """For all tests of this module."""
    directory = tmp_path_factory.mktemp("places")
    factory = ProxyFactory(upstream.base_url, directory)
    path = str(directory / "shared.sqlite3")
    stores = {
        "redis": redis_store(lasting_redis),
        "disk": {"tiers": ["memory", "disk"], "disk": {"path": path}},
    }
    started = {name: Place(factory, store) for name, store in stores.items()}
    yield started
    for place in started.values():
        place.close()
    factory.stop()


@pytest.fixture(params=["redis", "disk"])
def pair(request: pytest.FixtureRequest, places: dict[str, Place]) -> Pair:
    return places[request.param].emptied()


@pytest.fixture
def redis_pair(places: dict[str, Place]) -> Pair:
    return places["redis"].emptied()


@pytest.fixture
def start(proxy: ProxyFactory) -> Iterator[StartPair]:
    """Starts two proxies for one test."""
    started: list[Place] = []

    def new(store: dict[str, Any], *, poll: float = NEVER_SECONDS) -> Pair:
        started.append(Place(proxy, store, poll=poll))
        return started[-1].pair

    yield new
    for place in started:
        place.close()


def answer(proxy: RunningProxy, text: str, **headers: str) -> str:
    """The id of the answer: each answer of the upstream has its own."""
    response = post(proxy, chat(text), headers=headers)
    assert response.status_code == 200, response.text
    return str(orjson.loads(response.content)["id"])


def shared_answer(pair: Pair, text: str, **headers: str) -> str:
    """Have one answer stored that both serve, from their own memories."""
    first, second = pair
    old = answer(first.proxy, text, **headers)
    eventually(lambda: answer(second.proxy, text, **headers) == old)
    assert second.ask(text, headers) == first.ask(text, headers) == "HIT"
    return old


def seconds_until_other(proxy: RunningProxy, text: str, old: str) -> float:
    """How long the proxy goes on to serve the old answer."""
    began = time.monotonic()
    while answer(proxy, text) == old:
        assert time.monotonic() - began < LONGEST_SECONDS
        time.sleep(PAUSE_SECONDS)
    return time.monotonic() - began


@pytest.mark.parametrize("members", [{"tag": "project:p"}, {"older_than_seconds": 0}], ids=str)
def test_B54_a_purge_is_in_force_here_at_once_and_there_within_a_second(
    pair: Pair, members: dict[str, Any]
) -> None:
    first, second = pair
    old = shared_answer(pair, "a", **{"x-project": "p"})
    first.purge(**members)
    new = answer(first.proxy, "a")
    assert new != old
    assert seconds_until_other(second.proxy, "a", old) < WITHIN_SECONDS
    assert answer(first.proxy, "a") == new


def test_B54_what_is_repeated_byte_for_byte_is_not_served_either(pair: Pair) -> None:
    first, second = pair
    headers = {"authorization": "Bearer sk-test"}
    with httpx.Client(
        verify=False, trust_env=False, headers=headers, base_url=second.proxy.base_url
    ) as client:

        def repeated() -> str:
            return str(client.post(CHAT_PATH, json=chat("a")).json()["id"])

        old = repeated()
        assert [repeated() for _ in range(5)] == [old] * 5
        first.purge(model="gpt-4o-mini")
        eventually(lambda: repeated() != old, timeout=WITHIN_SECONDS)


def test_B54_what_is_not_selected_stays_everywhere(pair: Pair) -> None:
    first, second = pair
    old = shared_answer(pair, "a", **{"x-project": "p"})
    other = shared_answer(pair, "b", **{"x-project": "q"})
    first.purge(tag="project:p")
    second.purge(tag="project:none")
    seconds_until_other(second.proxy, "a", old)
    assert answer(first.proxy, "b") == answer(second.proxy, "b") == other


def test_B54_a_soft_purge_is_stale_for_both(pair: Pair, upstream: RunningStandIn) -> None:
    first, second = pair
    for operator in pair:
        operator.ask("a", model="slow-1")
    eventually(lambda: second.ask("a", model="slow-1") == "HIT")
    first.purge(model="slow-1", soft=True)
    upstream.app.script(Script(status=503), times=None)
    assert first.ask("a", model="slow-1") == "STALE"
    eventually(lambda: second.ask("a", model="slow-1") == "STALE", timeout=WITHIN_SECONDS)
    upstream.app.reset()


def test_B54_a_dry_run_counts_what_either_stored(pair: Pair) -> None:
    first, second = pair
    for number in range(20):
        (first, second)[number % 2].ask(f"q{number}", {"x-project": f"p{number % 4}"})
    for operator in pair:
        operator.count(all=True)
    assert first.count(all=True) == second.count(all=True) == 20
    assert first.count(tag="project:p1") == second.count(tag="project:p1") == 5
    first.purge(tag="project:p1")
    assert first.count(all=True) == 15


def test_B54_an_event_at_one_is_a_purge_at_both(pair: Pair) -> None:
    old = shared_answer(pair, "a", **{"x-project": "p"})
    told = pair[0].send("POST", "/admin/events/project_closed", json={"project": "p"})
    assert told.status_code == 200
    assert answer(pair[0].proxy, "a") != old
    assert seconds_until_other(pair[1].proxy, "a", old) < WITHIN_SECONDS


def test_B54_a_proxy_that_starts_later_knows_of_the_purge(pair: Pair) -> None:
    first, second = pair
    old = shared_answer(pair, "a")
    second.proxy.stop()
    first.purge(all=True)
    second.proxy.start()
    assert answer(second.proxy, "a") != old


def test_B54_without_its_message_a_purge_is_found_by_looking(start: StartPair) -> None:
    """Redis publishes nothing here, so that only the polls of the list are left."""
    with redis_server(options=("--rename-command", "PUBLISH", "")) as mute:
        pair = start(redis_store(mute), poll=POLL_SECONDS)
        old = shared_answer(pair, "a")
        pair[0].purge(all=True)
        assert answer(pair[0].proxy, "a") != old
        assert seconds_until_other(pair[1].proxy, "a", old) < POLL_SECONDS + WITHIN_SECONDS


def test_B54_when_redis_does_not_take_a_purge_the_answer_says_what_took_effect(
    start: StartPair, redis: RedisServer
) -> None:
    pair = first, second = start(redis_store(redis), poll=POLL_SECONDS)
    old = shared_answer(pair, "a")
    redis.stop()
    response = first.send("POST", "/admin/purge", json={"all": True})
    assert response.status_code == 503
    error = error_of(response)
    assert error["code"] == "purge_incomplete"
    assert "in force in this process" in error["message"]
    assert answer(first.proxy, "a") != old
    assert answer(second.proxy, "a") == old
    redis.start()
    eventually(lambda: answer(second.proxy, "a") != old)


def test_B54_a_dry_run_without_redis_says_that_nothing_was_purged(
    start: StartPair, redis: RedisServer
) -> None:
    pair = start(redis_store(redis))
    old = shared_answer(pair, "a")
    redis.stop()
    response = pair[0].send("POST", "/admin/purge", json={"all": True, "dry_run": True})
    assert response.status_code == 503
    assert error_of(response)["code"] == "store_unavailable"
    assert answer(pair[0].proxy, "a") == old


def entries_in(redis: RedisServer) -> int:
    """Entries alone: leases and the list of purges have keys too."""
    return len(re.findall(rb":v1:chat:", redis.command("SCAN", "0", "COUNT", "1000")))


def test_B54_redis_gets_its_space_back_and_is_never_asked_for_all_keys_at_once(
    redis_pair: Pair, lasting_redis: RedisServer
) -> None:
    redis = lasting_redis
    first, _ = redis_pair
    for number in range(30):
        first.ask(f"q{number}", {"x-project": f"p{number % 2}"})
    first.count(all=True)
    redis.command("CONFIG", "RESETSTAT")
    first.purge(tag="project:p1")
    first.send("POST", "/admin/purge", json={"tag": "project:p0", "dry_run": True})
    assert entries_in(redis) >= 30
    eventually(lambda: entries_in(redis) == 15)
    stats = redis.command("INFO", "commandstats").decode()
    asked = set(re.findall(r"cmdstat_([a-z|]+):", stats))
    assert "getrange" in asked
    assert asked & {"keys", "flushall", "flushdb", "get", "mget"} == set()
    assert first.count(all=True) == 15


def test_B54_a_key_is_deleted_in_every_tier_at_once(
    redis_pair: Pair, lasting_redis: RedisServer
) -> None:
    redis = lasting_redis
    first, second = redis_pair
    old = shared_answer(redis_pair, "a")
    explained = first.send(
        "POST", "/admin/explain", json=chat("a"), headers={"authorization": "Bearer sk-test"}
    )
    key = explained.json()["store_key"]
    assert redis.command("EXISTS", key) == b":1\r\n"
    assert first.purge(key=key)["matched"] == 1
    assert redis.command("EXISTS", key) == b":0\r\n"
    assert answer(first.proxy, "a") != old
    assert seconds_until_other(second.proxy, "a", old) < WITHIN_SECONDS


def test_B54_another_prefix_on_the_same_redis_is_not_touched(
    proxy: ProxyFactory, redis: RedisServer
) -> None:
    rules = [{**RULE, "tags": [PROJECT]}]
    mine, theirs = (
        Operator(
            proxy(
                settings(
                    store=redis_store(redis),
                    cache_settings={"key_prefix": prefix, "rules": rules},
                )
            )
        )
        for prefix in ("mine:", "theirs:")
    )
    for operator in (mine, theirs):
        operator.fill("a", {"x-project": "p"})
    assert mine.count(all=True) == theirs.count(all=True) == 1
    mine.purge(all=True)
    assert mine.ask("a") == "MISS"
    assert theirs.ask("a") == "HIT"
    mine.close()
    theirs.close()
