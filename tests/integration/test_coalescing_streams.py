"""Streams that many follow at once: live, bounded, and never shorter than they are (B40, B42, B43)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from proxy.coalesce import redis_following
from proxy.standin import RunningStandIn, Script
from tests.contract.raw_server import Peer, Server
from tests.integration.contract import CHAT_PATH, chat, metric
from tests.integration.crowd import Crowd, all_done, crowd_of_clients
from tests.integration.processes import ServedProxy
from tests.integration.redis_server import RedisServer
from tests.integration.servers import ProxyFactory
from tests.integration.test_coalescing_crowds import (
    led,
    one_answer,
    over,
    rule,
    upstream_calls,
    waiting,
)
from tests.integration.wire import Wire
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(90)

CHAT = f"/v1{CHAT_PATH}"
MIB = 1024 * 1024
DONE = b"data: [DONE]\n\n"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things may hold up a reply of Redis for a second."""
    monkeypatch.setattr(redis_following, "_REPLY_SECONDS", 5.0)


@pytest.fixture
def crowd() -> Iterator[Crowd]:
    with crowd_of_clients() as made:
        yield made


@pytest.mark.parametrize("replicas", [1, 2])
def test_B40_fifty_followers_have_the_first_event_while_the_upstream_holds_the_rest_back(
    replicas: int, standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    proxies = [proxy(over(redis)) for _ in range(replicas)]
    standin.app.script(Script(hold="rest", hold_after=2), times=None)
    body = chat(stream=True)
    early = [client for each in proxies for client in crowd.ask(each.base_url, body, 13)]
    first = standin.app.wait_for_requests(1)[0]
    first.holding.wait()
    late = [client for each in proxies for client in crowd.ask(each.base_url, body, 12)]
    clients = [*early, *late]

    eventually(lambda: all(client.body.count(b"\n\n") == 2 for client in clients))

    assert not first.finished.is_set()
    assert not any(client.done.is_set() for client in clients)
    standin.app.gate("rest").set()
    assert one_answer(all_done(clients)).endswith(DONE)
    assert upstream_calls(standin) == 1
    assert len(led(clients)) == 1


def test_B41_followers_elsewhere_finish_when_the_leaders_client_has_gone(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    one, other = proxy(over(redis)), proxy(over(redis, **rule(on_disconnect="cancel")))
    standin.app.script(Script(hold="rest", hold_after=2), times=None)
    (leader,) = crowd.ask(one.base_url, chat(stream=True))
    standin.app.wait_for_requests(1)[0].holding.wait()
    followers = crowd.ask(other.base_url, chat(stream=True), 5)
    eventually(lambda: all(client.size for client in followers))
    crowd.leave(leader)
    standin.app.gate("rest").set()
    assert one_answer(all_done(followers)).endswith(DONE)
    assert upstream_calls(standin) == 1


# ---- slow readers ----


class Serving:
    """One proxy in a process of its own, so that its memory can be told from the test's."""

    def __init__(self, standin: RunningStandIn, directory: Path) -> None:
        self._standin = standin
        self._directory = directory

    def __call__(self, base_url: str | None = None, /, **members: Any) -> ServedProxy:
        file = self._directory / "settings.yaml"
        settings = {
            "server": {"port": 0, "access_log": False},
            "upstreams": {"openai": {"base_url": base_url or self._standin.base_url}},
            "store": {"tiers": ["memory"], "memory": {"max_bytes": MIB}},
            "cache_settings": rule(**members),
        }
        file.write_text(yaml.safe_dump(settings))
        return ServedProxy(file)


@pytest.fixture
def serve(standin: RunningStandIn, tmp_path: Path) -> Serving:
    return Serving(standin, tmp_path)


def stalled(url: str, body: dict[str, Any]) -> Wire:
    """A client that has asked, and reads nothing."""
    wire = Wire(url, receive_buffer=4096)
    wire.request("POST", CHAT, body, [("authorization", "Bearer sk-test")])
    return wire


def long_stream(size: int) -> Script:
    """A good answer of about `size` bytes, in events of 16 KiB."""
    events = [event("x" * (16 * 1024)) for _ in range(size // (16 * 1024))]
    body = "".join([*events, event("", finish="stop"), "data: [DONE]\n\n"])
    return Script(
        body=body, content_type="text/event-stream", chunked=True, split_bytes=16 * 1024, hold="go"
    )


def event(text: str, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {orjson.dumps({**chunk, 'choices': [choice]}).decode()}\n\n"


def test_B43_a_follower_that_never_reads_holds_up_none_of_49_and_is_cut_off(
    standin: RunningStandIn, serve: Serving, crowd: Crowd
) -> None:
    # More than may be kept, and than the kernel takes for a client that does not read (4 MiB).
    standin.app.script(long_stream(14 * MIB), times=None)
    body = chat(stream=True)
    with serve(max_entry_bytes=8 * MIB) as proxy:
        clients = crowd.ask(proxy.base_url, body, 49)
        standin.app.wait_for_requests(1)
        with stalled(proxy.url, body) as wire:
            eventually(lambda: metric(proxy.url, "magic_proxy_in_flight") == 50)
            before = proxy.resident_bytes()
            standin.app.gate("go").set()
            answer = one_answer(all_done(clients))
            assert len(answer) > 14 * MIB
            assert answer.endswith(DONE)
            assert proxy.resident_bytes("VmHWM") - before < 48 * MIB
            received = wire.read_all()
        assert b"200 OK" in received
        assert not received.endswith(b"0\r\n\r\n"), "it breaks off, and does not end"
        assert DONE not in received
        eventually(lambda: metric(proxy.url, "magic_proxy_in_flight") == 0)
    assert upstream_calls(standin) == 1


def test_B43_a_leader_that_never_reads_holds_up_nobody_who_waits_for_the_entry(
    standin: RunningStandIn, serve: Serving, crowd: Crowd
) -> None:
    standin.app.script(long_stream(7 * MIB), times=None)
    with serve() as proxy, stalled(proxy.url, chat(stream=True)) as _:
        standin.app.wait_for_requests(1)
        clients = crowd.ask(proxy.base_url, chat(), 5)
        eventually(lambda: metric(proxy.url, "magic_proxy_in_flight") == 6)
        standin.app.gate("go").set()
        assert len(one_answer(all_done(clients))) > 6 * MIB
    assert upstream_calls(standin) == 1


# ---- upstreams that are slow, long, or endless ----


def test_B20_a_byte_a_second_reaches_all_as_it_comes(
    standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd, redis: RedisServer
) -> None:
    """A byte now and then: nothing is held back until an event, or a buffer, is full."""
    replicas = [proxy(over(redis)) for _ in range(2)]
    standin.app.script(Script(split_bytes=4, piece_seconds=0.005, content="hi"), times=None)
    near = crowd.ask(replicas[0].base_url, chat(stream=True), 3)
    standin.app.wait_for_requests(1)
    far = crowd.ask(replicas[1].base_url, chat(stream=True), 3)
    eventually(lambda: all(client.size for client in (*near, *far)))
    assert not standin.app.requests[0].finished.is_set()
    assert one_answer(all_done([*near, *far])).endswith(DONE)
    assert upstream_calls(standin) == 1


@pytest.mark.parametrize(
    ("count", "together"), [(100_000, 64 * 1024), (15_000, None)], ids=["many", "one by one"]
)
def test_B43_a_hundred_thousand_events_reach_all_followers(
    count: int,
    together: int | None,
    standin: RunningStandIn,
    proxy: ProxyFactory,
    crowd: Crowd,
    redis: RedisServer,
) -> None:
    replicas = [proxy(over(redis, **rule(max_entry_bytes=64 * MIB))) for _ in range(2)]
    standin.app.script(Script(tokens=count, split_bytes=together, hold="go"), times=None)
    clients = crowd.ask(replicas[0].base_url, chat(stream=True), 2)
    standin.app.wait_for_requests(1)
    clients += crowd.ask(replicas[1].base_url, chat(stream=True), 2)
    eventually(lambda: waiting(*replicas) == 4)
    standin.app.gate("go").set()
    answer = one_answer(all_done(clients, timeout=60.0))
    assert answer.count(b"\n\n") > count
    assert answer.endswith(DONE)
    assert upstream_calls(standin) == 1


async def endless(peer: Peer) -> None:
    """A stream of good events that goes on until nobody takes it."""
    await peer.request()
    piece = event("x" * (16 * 1024)).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    await peer.say(head, b"Transfer-Encoding: chunked\r\n\r\n")
    try:
        while True:
            await peer.say(b"%x\r\n%s\r\n" % (len(piece), piece))
    finally:
        peer.gone.set()


@pytest.mark.parametrize("policy", ["finish", "cancel"])
def test_B42_an_endless_stream_is_let_go_of_when_nobody_wants_it(
    policy: str, serve: Serving, crowd: Crowd
) -> None:
    """Also where answers are finished: beyond what may be stored there is nothing to finish for."""
    upstream = crowd.do(Server(endless).__aenter__())
    with serve(upstream.root, max_entry_bytes=2 * MIB, on_disconnect=policy) as proxy:
        before = proxy.resident_bytes()
        clients = crowd.ask(proxy.base_url, chat(stream=True), 2)
        eventually(lambda: all(client.size > 16 * MIB for client in clients))
        (peer,) = upstream.peers
        for client in clients:
            assert not peer.gone.is_set()
            crowd.leave(client)
        eventually(peer.gone.is_set, timeout=2.0)
        assert proxy.resident_bytes("VmHWM") - before < 48 * MIB
        eventually(lambda: metric(proxy.url, "magic_proxy_flights") == 0)
    crowd.do(upstream.__aexit__())


def test_B43_who_waits_for_an_entry_does_not_wait_for_an_endless_stream(
    serve: Serving, crowd: Crowd
) -> None:
    upstream = crowd.do(Server(endless).__aenter__())
    with serve(upstream.root, max_entry_bytes=2 * MIB) as proxy:
        (reads,) = crowd.ask(proxy.base_url, chat(stream=True))
        eventually(lambda: reads.size > 0)
        crowd.ask(proxy.base_url, chat())
        eventually(lambda: len(upstream.peers) == 2, timeout=5.0)
        assert not reads.done.is_set()
    crowd.do(upstream.__aexit__())


@pytest.mark.parametrize(("policy", "stored"), [("finish", True), ("cancel", False)])
def test_B42_a_stream_that_nobody_waits_for_is_finished_or_cancelled(
    policy: str, stored: bool, standin: RunningStandIn, proxy: ProxyFactory, crowd: Crowd
) -> None:
    running = proxy({"cache_settings": rule(on_disconnect=policy)})
    standin.app.script(Script(hold="rest", hold_after=2), times=1)
    clients = crowd.ask(running.base_url, chat(stream=True), 3)
    upstream = standin.app.wait_for_requests(1)[0]
    upstream.holding.wait()
    eventually(lambda: all(client.size for client in clients))
    for client in clients:
        crowd.leave(client)
    if stored:
        eventually(lambda: metric(running, "magic_proxy_in_flight") == 0)
        assert not upstream.disconnected.is_set()
        standin.app.gate("rest").set()
    else:
        eventually(upstream.disconnected.is_set, timeout=1.0)
    eventually(lambda: metric(running, "magic_proxy_flights") == 0)
    (again,) = all_done(crowd.ask(running.base_url, chat(stream=True)))
    assert (again.headers["x-cache"] == "HIT") is stored
