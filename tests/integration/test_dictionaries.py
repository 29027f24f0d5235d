"""Entries compressed with dictionaries, over HTTP: after a restart, and by another proxy."""

import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing

import httpx

from proxy.core.training import FEWEST_SAMPLES
from proxy.standin import RunningStandIn
from tests.integration.contract import chat, metric
from tests.integration.purges import Operator, settings
from tests.integration.redis_server import RedisServer
from tests.integration.servers import ProxyFactory, RunningProxy
from tests.waiting import eventually

PREFIX = "magic_proxy:cache:"
POINTER = f"{PREFIX}dict:chat:current"
SAMPLES = range(FEWEST_SAMPLES)
LATER = range(1_000, 1_020)
Answers = dict[int, tuple[str, bytes]]
Held = Mapping[str, bytes]


def ask_all(proxy: RunningProxy, numbers: Iterable[int]) -> Answers:
    """What the cache did, and the body, of each question; every second one is streamed."""
    answers = {}
    headers = {"authorization": "Bearer sk-test"}
    with httpx.Client(headers=headers, verify=False, trust_env=False) as client:
        for number in numbers:
            body = chat(f"What is number {number} about?", stream=number % 2 == 1)
            response = client.post(f"{proxy.base_url}/chat/completions", json=body)
            answers[number] = response.headers["x-cache"], response.content
    return answers


def bodies(answers: Answers) -> list[bytes]:
    return [body for _, body in answers.values()]


def told(answers: Answers) -> set[str]:
    return {x_cache for x_cache, _ in answers.values()}


def on_disk(proxy: RunningProxy) -> Held:
    """What the store's file holds."""
    path = proxy.settings["store"]["disk"]["path"]
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return dict(connection.execute("SELECT key, value FROM entries"))


def in_redis(redis: RedisServer) -> Held:
    """What Redis holds of the cache; the beginnings of values."""
    keys = re.findall(rf"{PREFIX}(?:v1|dict):[^\r]+", redis.command("KEYS", "*").decode())
    values = {key: redis.command("GET", key).partition(b"\r\n")[2] for key in keys}
    return {key: value for key, value in values.items() if value}


def with_dictionary(held: Held) -> int:
    """How many entries were written with one, by their flags."""
    return sum(f"{PREFIX}v1:chat:" in key and bool(held[key][5] & 0x02) for key in held)


def dictionaries(held: Held) -> list[str]:
    """The store keys of dictionaries."""
    return [key for key in held if re.fullmatch(rf"{PREFIX}dict:chat:\d+", key)]


def train(proxy: RunningProxy, held: Callable[[], Held]) -> None:
    """Ask until the proxy has a dictionary, and writes with it."""
    ask_all(proxy, SAMPLES)
    eventually(lambda: POINTER in held())
    number = 10_000
    while not with_dictionary(held()):
        number += 1
        ask_all(proxy, [number])
        eventually(lambda: metric(proxy, "magic_proxy_write_queue_entries") == 0)


def test_B51_what_was_written_with_a_dictionary_hits_after_a_restart(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy()
    train(running, lambda: on_disk(running))
    asked = ask_all(running, LATER)
    running.stop()
    assert with_dictionary(on_disk(running)) > len(LATER)
    upstream_calls = standin.app.count()

    running.start()
    again = ask_all(running, LATER)

    assert told(again) == {"HIT"}
    assert bodies(again) == bodies(asked)
    assert told(ask_all(running, SAMPLES)) == {"HIT"}, "what was written before it still hits"
    assert standin.app.count() == upstream_calls
    assert told(ask_all(running, range(2_000, 2_000 + 2 * FEWEST_SAMPLES))) == {"MISS"}
    running.stop()
    held = on_disk(running)
    assert len(dictionaries(held)) == 1, "it goes on with the one that it found"
    assert with_dictionary(held) > len(LATER) + FEWEST_SAMPLES


def test_B51_two_proxies_on_one_redis_share_what_one_of_them_trained(
    proxy: ProxyFactory, standin: RunningStandIn, redis: RedisServer
) -> None:
    store = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    one, other = proxy(store), proxy(store)
    train(one, lambda: in_redis(redis))
    asked = ask_all(one, LATER)
    eventually(lambda: with_dictionary(in_redis(redis)) > len(LATER))
    upstream_calls = standin.app.count()

    read = ask_all(other, LATER)
    assert told(read) == {"HIT"}
    assert bodies(read) == bodies(asked)
    assert standin.app.count() == upstream_calls

    written = with_dictionary(in_redis(redis))
    ask_all(other, [3_000])  # on the first of its own, it looks for what others have trained

    def writes_with_it() -> bool:
        ask_all(other, [3_000 + len(in_redis(redis))])
        return with_dictionary(in_redis(redis)) > written

    eventually(writes_with_it)
    assert len(dictionaries(in_redis(redis))) == 1


def test_B50_a_dictionary_that_the_store_has_lost_costs_misses(
    proxy: ProxyFactory, redis: RedisServer
) -> None:
    store = {"store": {"tiers": ["redis"], "redis": {"url": redis.url}}}
    one, other = proxy(store), proxy(store)
    train(one, lambda: in_redis(redis))
    asked = ask_all(one, LATER)
    eventually(lambda: with_dictionary(in_redis(redis)) > len(LATER))
    (lost,) = dictionaries(in_redis(redis))
    redis.command("DEL", lost)

    assert told(ask_all(one, LATER)) == {"HIT"}, "who has it at hand does not notice"
    again = ask_all(other, LATER)
    assert told(again) == {"MISS"}
    assert metric(other, "magic_proxy_entries_unreadable_total") == len(LATER)
    eventually(lambda: told(ask_all(other, LATER)) == {"HIT"})
    assert [len(body) for body in bodies(again)] == [len(body) for body in bodies(asked)]


def test_switched_off_no_dictionary_is_made_and_those_that_are_there_are_read(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy()
    train(running, lambda: on_disk(running))
    asked = ask_all(running, LATER)
    running.settings["store"]["dictionaries"] = False
    running.restart()

    read = ask_all(running, LATER)
    assert (told(read), bodies(read)) == ({"HIT"}, bodies(asked))
    written = with_dictionary(on_disk(running))
    ask_all(running, range(4_000, 4_000 + 2 * FEWEST_SAMPLES))
    running.stop()
    assert with_dictionary(on_disk(running)) == written


def test_B54_entries_with_a_dictionary_are_counted_and_swept_like_others(
    proxy: ProxyFactory,
) -> None:
    running = proxy(settings())
    train(running, lambda: on_disk(running))
    ask_all(running, LATER)
    running.restart()
    operator = Operator(running)
    held = on_disk(running)
    entries = sum(f"{PREFIX}v1:chat:" in key for key in held)
    assert with_dictionary(held) > len(LATER)

    assert operator.count(model="gpt-4o-mini") == entries
    operator.purge(model="gpt-4o-mini")
    assert told(ask_all(running, LATER[:3])) == {"MISS"}

    eventually(lambda: sum(f"{PREFIX}v1:chat:" in key for key in on_disk(running)) == 3)
    operator.close()
