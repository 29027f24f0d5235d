"""Leaders that are killed, and a Redis that dies or freezes, while requests are shared (B41, B50)."""

import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import yaml

from proxy.standin import RunningStandIn, Script
from tests.integration.contract import chat, metric
from tests.integration.crowd import Client, Crowd, all_done, crowd_of_clients
from tests.integration.processes import PATIENT_LEASES, ServedProxy
from tests.integration.redis_server import RedisServer
from tests.integration.servers import ProxyFactory, RunningProxy
from tests.integration.test_coalescing_crowds import one_answer, over, upstream_calls, waiting
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(90)

DONE = b"data: [DONE]\n\n"
LEASE_SECONDS = 1.0
# Beyond the lease: for noticing that it ran out, and for a busy machine.
SLACK_SECONDS = 2.5

Serve = Callable[..., ServedProxy]


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with crowd_of_clients() as made:
        yield made


@pytest.fixture
def serve(standin: RunningStandIn, tmp_path: Path) -> Iterator[Serve]:
    """Starts proxies in processes of their own, with these settings beside the plain ones."""
    running: list[ServedProxy] = []

    def start(settings: dict[str, Any]) -> ServedProxy:
        plain = {
            "server": {"port": 0, "access_log": False},
            "upstreams": {"openai": {"base_url": standin.base_url}},
        }
        file = tmp_path / f"settings-{len(running)}.yaml"
        file.write_text(yaml.safe_dump({**plain, **settings}))
        running.append(ServedProxy(file, before=PATIENT_LEASES))
        return running[-1]

    yield start
    for each in running:
        each.__exit__(None, None, None)


def over_disk(path: Path, **cache: Any) -> dict[str, Any]:
    store = {"tiers": ["memory", "disk"], "disk": {"path": str(path)}}
    return {"store": store, "cache_settings": cache}


def kill(proxy: ServedProxy) -> None:
    proxy.process.send_signal(signal.SIGKILL)
    proxy.ended()


def listens(proxy: ServedProxy) -> bool:
    parts = urlsplit(proxy.url)
    try:
        socket.create_connection((parts.hostname, parts.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def text_of(stream: bytes) -> str:
    """What a stream says; all its events have one and the same id, and it ends as streams do."""
    assert stream.endswith(DONE)
    chunks = [orjson.loads(line[6:]) for line in stream.split(b"\n\n") if b"{" in line]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert stream.count(DONE) == 1
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def killed_in_mid_stream(
    crowd: Crowd, one: ServedProxy, other: ServedProxy, standin: RunningStandIn, *, stream: bool
) -> tuple[list[Client], float]:
    """Followers of the other proxy, and when the one that led was killed."""
    standin.app.script(Script(hold="first", hold_after=3), times=1)
    crowd.ask(one.base_url, chat(stream=True))
    standin.app.wait_for_requests(1)[0].holding.wait()
    followers = crowd.ask(other.base_url, chat(stream=stream), 5)
    if stream:
        eventually(lambda: all(client.body.count(b"\n\n") == 3 for client in followers))
    else:
        eventually(lambda: metric(other.url, "magic_proxy_in_flight") == 5)
    kill(one)
    return followers, time.monotonic()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_B41_a_leader_that_is_killed_in_mid_stream_is_taken_over_within_its_lease(
    stream: bool, standin: RunningStandIn, serve: Serve, crowd: Crowd, redis: RedisServer
) -> None:
    settings = over(redis, lease_seconds=LEASE_SECONDS)
    one, other = serve(settings), serve(settings)
    followers, killed_at = killed_in_mid_stream(crowd, one, other, standin, stream=stream)

    all_done(followers)

    assert time.monotonic() - killed_at < LEASE_SECONDS + SLACK_SECONDS
    assert upstream_calls(standin) == 2
    body = one_answer(followers)
    whole = crowd.ask(other.base_url, chat())
    (hit,) = all_done(whole)
    assert hit.headers["x-cache"] == "HIT"
    said = orjson.loads(hit.body)["choices"][0]["message"]["content"]
    assert (
        text_of(body) if stream else orjson.loads(body)["choices"][0]["message"]["content"]
    ) == said


def test_B41_another_answer_after_a_kill_breaks_off_and_is_never_spliced(
    standin: RunningStandIn, serve: Serve, crowd: Crowd, redis: RedisServer
) -> None:
    settings = over(redis, lease_seconds=LEASE_SECONDS)
    one, other = serve(settings), serve(settings)
    standin.app.script(
        Script(content="It is one thing, or so.", hold="first", hold_after=3), times=1
    )
    standin.app.script(Script(content="It is quite another."), times=1)
    crowd.ask(one.base_url, chat(stream=True))
    standin.app.wait_for_requests(1)[0].holding.wait()
    (follower,) = crowd.ask(other.base_url, chat(stream=True))
    eventually(lambda: follower.body.count(b"\n\n") == 3)
    kill(one)

    eventually(follower.done.is_set)

    assert follower.error is not None
    assert b"another" not in follower.body
    assert DONE not in follower.body
    assert metric(other.url, "magic_proxy_flights") == 0


def test_B41_a_worker_on_the_same_disk_takes_over(
    standin: RunningStandIn, serve: Serve, crowd: Crowd, tmp_path: Path
) -> None:
    settings = over_disk(tmp_path / "one.sqlite3", lease_seconds=LEASE_SECONDS)
    one, other = serve(settings), serve(settings)
    standin.app.script(Script(hold="first"), times=1)
    crowd.ask(one.base_url, chat())
    standin.app.wait_for_requests(1)[0].holding.wait()
    followers = crowd.ask(other.base_url, chat(), 5)
    eventually(lambda: metric(other.url, "magic_proxy_in_flight") == 5)
    kill(one)
    killed_at = time.monotonic()
    one_answer(all_done(followers))
    assert time.monotonic() - killed_at < LEASE_SECONDS + SLACK_SECONDS
    assert upstream_calls(standin) == 2


def test_B44_a_leader_that_is_stopped_finishes_for_those_who_follow_it(
    standin: RunningStandIn, serve: Serve, crowd: Crowd, redis: RedisServer
) -> None:
    settings = over(redis, lease_seconds=LEASE_SECONDS)
    one, other = serve(settings), serve(settings)
    standin.app.script(Script(hold="rest", hold_after=3), times=1)
    leaders = crowd.ask(one.base_url, chat(stream=True))
    standin.app.wait_for_requests(1)[0].holding.wait()
    followers = crowd.ask(other.base_url, chat(stream=True), 3)
    eventually(lambda: all(client.size for client in followers))
    one.terminate()
    eventually(lambda: not listens(one))
    standin.app.gate("rest").set()
    one_answer(all_done([*leaders, *followers]))
    assert one.ended() == 0
    assert upstream_calls(standin) == 1


# ---- Redis ----


def shared_work(
    standin: RunningStandIn, crowd: Crowd, replicas: Sequence[RunningProxy], *, stream: bool
) -> tuple[list[Client], list[Client]]:
    """Those who wait at the first replica, and at the second; held upstream until `go`."""
    standin.app.script(Script(hold="go", hold_after=3 if stream else None), times=1)
    leaders = crowd.ask(replicas[0].base_url, chat(stream=stream), 3)
    standin.app.wait_for_requests(1)[0].holding.wait()
    followers = crowd.ask(replicas[1].base_url, chat(stream=stream), 3)
    eventually(lambda: waiting(*replicas) == 6)
    if stream:
        eventually(lambda: all(client.size for client in followers))
    return leaders, followers


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_B50_a_redis_that_is_killed_in_mid_flight_fails_nobody(
    stream: bool, standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    leaders, followers = shared_work(standin, crowd, replicas, stream=stream)
    redis.kill()
    all_done(followers)
    standin.app.gate("go").set()
    for clients in (leaders, followers):
        body = one_answer(all_done(clients))
        if stream:
            text_of(body)
    assert upstream_calls(standin) == 2

    # It comes back, and all are together again.
    redis.start()
    standin.app.script(Script(hold="again"), times=None)

    def together() -> bool:
        standin.app.reset()
        standin.app.script(Script(hold="again"), times=None)
        text = f"asked again at {time.monotonic()}"
        asked = [c for each in replicas for c in crowd.ask(each.base_url, chat(text), 2)]
        eventually(lambda: waiting(*replicas) == 4)
        standin.app.gate("again").set()
        all_done(asked)
        return upstream_calls(standin) == 1

    eventually(together)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "json"])
def test_B50_a_redis_that_freezes_in_mid_flight_holds_nobody_up_for_long(
    stream: bool, standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    leaders, followers = shared_work(standin, crowd, replicas, stream=stream)
    redis.pause()
    frozen_at = time.monotonic()
    try:
        all_done(followers)
        assert time.monotonic() - frozen_at < 4.5, "nobody waits until it thaws"
        standin.app.gate("go").set()
        all_done(leaders)
    finally:
        redis.resume()
    for clients in (leaders, followers):
        one_answer(clients)
    assert upstream_calls(standin) == 2


def test_B50_a_redis_that_is_frozen_already_costs_each_request_its_time_limit_alone(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    """As one that answers after 5 s: with limits as they are by default."""
    settings = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    replicas = [proxy(settings) for _ in range(2)]
    for each in replicas:
        all_done(crowd.ask(each.base_url, chat("to warm up")))
    redis.pause()
    try:
        for text in ("one", "two", "three", "four", "five"):
            began = time.monotonic()
            asked = [c for each in replicas for c in crowd.ask(each.base_url, chat(text), 10)]
            all_done(asked)
            assert time.monotonic() - began < 2.0
            assert {client.status for client in asked} == {200}
    finally:
        redis.resume()
    assert 2 * 5 <= upstream_calls(standin) - 1 <= 2 * 5 + 2
