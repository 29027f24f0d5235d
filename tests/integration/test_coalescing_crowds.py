"""Many equal requests at once, of real clients to real proxies: one upstream request (B40, B41)."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from proxy.coalesce import redis_following
from proxy.standin import RunningStandIn, Script
from tests.integration.contract import CHAT_PATH, chat, metric
from tests.integration.crowd import Client, Crowd, all_done, crowd_of_clients
from tests.integration.processes import PATIENT_LEASES, ServedProxy
from tests.integration.redis_server import RedisServer
from tests.integration.servers import ProxyFactory, RunningProxy
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(90)

HELD = Script(hold="go")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things may hold up a reply of Redis for a second."""
    monkeypatch.setattr(redis_following, "_REPLY_SECONDS", 5.0)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with crowd_of_clients() as made:
        yield made


def over(redis: RedisServer, **cache: Any) -> dict[str, Any]:
    """Settings of a replica on this Redis, which a busy machine may keep waiting for a while."""
    return {
        "store": {
            "tiers": ["memory", "redis"],
            "redis": {"url": redis.url, "timeout_seconds": 2.0, "connect_timeout_seconds": 5.0},
        },
        "cache_settings": cache,
    }


def rule(**members: Any) -> dict[str, Any]:
    plain = {"name": "r", "model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 600}
    return {"rules": [{**plain, **members}]}


def waiting(*proxies: RunningProxy) -> float:
    """How many requests are under way in these proxies."""
    return sum(metric(proxy, "magic_proxy_in_flight") for proxy in proxies)


def upstream_calls(standin: RunningStandIn) -> int:
    return standin.app.count(CHAT_PATH)


def led(clients: list[Client]) -> list[Client]:
    """Those for whom the upstream was asked: the others share an answer, or found the entry."""
    return [
        client for client in clients if not client.collapsed and client.headers["x-cache"] != "HIT"
    ]


def one_answer(clients: list[Client]) -> bytes:
    """What all of them got."""
    assert {client.status for client in clients} == {200}
    (body,) = {client.body for client in clients}
    return body


@pytest.mark.parametrize(("stream", "count"), [(False, 1000), (True, 200)], ids=["json", "stream"])
def test_B40_a_thousand_equal_requests_are_one_upstream_request(
    stream: bool, count: int, standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd
) -> None:
    running = proxy()
    standin.app.script(HELD, times=None)
    clients = crowd.ask(running.base_url, chat(stream=stream), count)
    eventually(lambda: waiting(running) == count)
    standin.app.gate("go").set()

    body = one_answer(all_done(clients))

    assert upstream_calls(standin) == 1
    assert body.endswith(b"data: [DONE]\n\n") is stream
    assert len(led(clients)) == 1
    shared = [client for client in clients if client.collapsed]
    assert shared
    assert all("fwd=miss; fwd-status=200" in client.cache_status for client in shared)
    assert {client.headers["x-cache"] for client in shared} == {"MISS"}
    assert len({client.headers["x-request-id"] for client in clients}) == count


@pytest.mark.parametrize(("stream", "count"), [(False, 200), (True, 1000)], ids=["json", "stream"])
def test_B40_a_thousand_equal_requests_over_two_replicas_are_one_upstream_request(
    stream: bool,
    count: int,
    standin: RunningStandIn,
    proxy: ProxyFactory,
    crowd: Crowd,
    redis: RedisServer,
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    standin.app.script(HELD, times=None)
    clients = [
        client
        for replica in replicas
        for client in crowd.ask(replica.base_url, chat(stream=stream), count // 2)
    ]
    eventually(lambda: waiting(*replicas) == count)
    standin.app.gate("go").set()

    body = one_answer(all_done(clients))

    assert upstream_calls(standin) == 1
    assert body.endswith(b"data: [DONE]\n\n") is stream
    assert len(led(clients)) == 1
    for replica in replicas:
        assert crowd_hit(crowd, replica.base_url, chat(stream=not stream))


def crowd_hit(crowd: Crowd, base_url: str, body: dict[str, Any]) -> bool:
    (client,) = all_done(crowd.ask(base_url, body))
    return client.headers["x-cache"] == "HIT"


def test_B40_workers_on_one_disk_file_ask_once(
    standin: RunningStandIn, crowd: Crowd, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    settings = {
        "server": {"port": 0, "access_log": False},
        "upstreams": {"openai": {"base_url": standin.base_url}},
        "store": {"tiers": ["memory", "disk"], "disk": {"path": str(tmp_path / "one.sqlite3")}},
    }
    file.write_text(yaml.safe_dump(settings))
    standin.app.script(HELD, times=None)
    with (
        ServedProxy(file, before=PATIENT_LEASES) as one,
        ServedProxy(file, before=PATIENT_LEASES) as other,
    ):
        clients: dict[bool, list[Client]] = {False: [], True: []}
        for worker in (one, other):
            for stream, asked in clients.items():
                asked.extend(crowd.ask(worker.base_url, chat(f"{stream}", stream=stream), 100))
        eventually(
            lambda: sum(metric(each.url, "magic_proxy_in_flight") for each in (one, other)) == 400
        )
        standin.app.gate("go").set()
        for stream, asked in clients.items():
            body = one_answer(all_done(asked))
            assert body.endswith(b"data: [DONE]\n\n") is stream
            assert len(led(asked)) == 1
        for worker in (one, other):
            assert crowd_hit(crowd, worker.base_url, chat("True"))
    assert upstream_calls(standin) == 2


def test_B40_B23_a_mixed_crowd_over_two_replicas_is_one_upstream_request(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    standin.app.script(HELD, times=None)
    clients: dict[str, list[Client]] = {}
    for stream in (True, False):
        for number, replica in enumerate(replicas):
            body = chat(stream=stream)
            clients[f"{stream}{number}"] = crowd.ask(replica.base_url, body, 20)
            # So that one asks first: who leads decides in which form the upstream is asked.
            eventually(lambda: waiting(*replicas) == 20 * len(clients))
    standin.app.gate("go").set()
    streamed = one_answer(all_done(clients["True0"] + clients["True1"]))
    whole = orjson.loads(one_answer(all_done(clients["False0"] + clients["False1"])))
    assert upstream_calls(standin) == 1
    deltas = [
        orjson.loads(line[6:])["choices"][0]["delta"].get("content", "")
        for line in streamed.split(b"\n\n")
        if line.startswith(b"data: {")
    ]
    assert "".join(deltas) == whole["choices"][0]["message"]["content"]


def test_B40_requests_for_a_new_answer_do_not_join(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    standin.app.script(HELD, times=None)
    joined = crowd.ask(replicas[0].base_url, chat())
    standin.app.wait_for_requests(1)
    renewed = [
        client
        for replica in replicas
        for client in crowd.ask(replica.base_url, chat(), 3, headers={"cache-control": "no-cache"})
    ]
    standin.app.wait_for_requests(7)
    standin.app.gate("go").set()
    all_done([*joined, *renewed])
    assert upstream_calls(standin) == 7
    assert not any(client.collapsed for client in renewed)


def test_B40_B70_credentials_and_tenants_never_share(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    standin.app.script(HELD, times=None)
    clients = {
        key: [
            client
            for replica in replicas
            for client in crowd.ask(replica.base_url, chat(), 5, key=key)
        ]
        for key in ("sk-one", "sk-two")
    }
    eventually(lambda: waiting(*replicas) == 20)
    standin.app.gate("go").set()
    bodies = {key: one_answer(all_done(asked)) for key, asked in clients.items()}
    assert bodies["sk-one"] != bodies["sk-two"]
    assert Counter(request.credential for request in standin.app.requests) == {
        "sk-one": 1,
        "sk-two": 1,
    }


def test_B41_uncacheable_answers_take_two_upstream_times_and_not_twenty(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    upstream_seconds = 0.5
    replicas = [proxy(over(redis)) for _ in range(2)]
    cut = Script(finish_reason="length", first_seconds=upstream_seconds)
    standin.app.script(cut, times=None)
    began = time.monotonic()
    clients = crowd.ask(replicas[0].base_url, chat(), 10)
    clients += crowd.ask(replicas[1].base_url, chat(), 10)
    all_done(clients)
    took = time.monotonic() - began
    assert took < 3.5 * upstream_seconds, "two, and time for a busy machine"
    assert upstream_calls(standin) == 20
    assert all("not-stored:finish-reason" in client.cache_status for client in clients)


@pytest.mark.parametrize("status", [429, 500])
def test_B41_an_error_is_asked_for_once_per_replica(
    status: int, standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    replicas = [proxy(over(redis)) for _ in range(2)]
    standin.app.script(Script(status=status, body={"error": {}}, hold="go"), times=None)
    clients = crowd.ask(replicas[0].base_url, chat(), 20)
    standin.app.wait_for_requests(1)
    clients += crowd.ask(replicas[1].base_url, chat(), 20)
    eventually(lambda: waiting(*replicas) == 40)
    standin.app.gate("go").set()
    all_done(clients)
    assert {client.status for client in clients} == {status}
    assert upstream_calls(standin) == 2


@pytest.mark.parametrize(("coalesce", "calls"), [("shared", 1), ("local", 2), ("off", 6)])
def test_B40_the_rule_says_with_whom_requests_are_shared(
    coalesce: str,
    calls: int,
    standin: RunningStandIn,
    proxy: ProxyFactory,
    crowd: Crowd,
    redis: RedisServer,
) -> None:
    replicas = [proxy(over(redis, **rule(coalesce=coalesce))) for _ in range(2)]
    standin.app.script(HELD, times=None)
    clients = [client for replica in replicas for client in crowd.ask(replica.base_url, chat(), 3)]
    eventually(lambda: waiting(*replicas) == 6)
    standin.app.wait_for_requests(calls)
    standin.app.gate("go").set()
    all_done(clients)
    assert upstream_calls(standin) == calls
