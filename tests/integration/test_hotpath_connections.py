"""On the wire, a connection behaves the same with the hot path and without it."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from proxy.standin import RunningStandIn, Script, start_standin
from tests.integration.contract import chat
from tests.integration.hotpath import (
    CHAT,
    OFF,
    HotProxy,
    Line,
    Starter,
    chunked_request,
    heat,
    request,
)
from tests.integration.processes import ServedProxy

RAW = request()
STREAM = request(body=chat(stream=True))
HELD = request(body=chat("Wait for it."))
ENVELOPE = {"message", "type", "param", "code"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as standin:
        yield standin


@pytest.fixture(scope="module")
def both(
    upstream: RunningStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, HotProxy]]:
    with Starter(upstream.base_url, tmp_path_factory.mktemp("both")) as start:
        yield {"on": start(), "off": start(OFF)}


@pytest.fixture(params=["on", "off"])
def proxy(request: pytest.FixtureRequest, both: Mapping[str, HotProxy]) -> HotProxy:
    """Shared by the tests: `RAW` and `STREAM` are there to be answered, hot where that is on."""
    return warm(both[request.param])


@pytest.fixture
def hot(both: Mapping[str, HotProxy]) -> HotProxy:
    return warm(both["on"])


def warm(proxy: HotProxy) -> HotProxy:
    with Line(proxy) as line:
        for raw in (RAW, STREAM):
            heat(line, raw)
            _, parsed = proxy.parsed_by(lambda raw=raw: line.ask(raw))  # type: ignore[misc]
            assert parsed == parsed_for_a_hit(proxy)
    return proxy


@pytest.fixture
def start(upstream: RunningStandIn, tmp_path: Path) -> Iterator[Starter]:
    with Starter(upstream.base_url, tmp_path) as starter:
        yield starter


def parsed_for_a_hit(proxy: HotProxy) -> int:
    return int(proxy.app.direct is None)


# How a request ends its connection


@pytest.mark.parametrize(
    "raw",
    [
        request("connection: close"),
        request("Connection: Close"),
        request(version="1.0"),
        request("connection: close", version="1.0"),
        request("connection: keep-alive", version="1.0"),
    ],
    ids=["close", "Close", "1.0", "1.0-close", "1.0-keep-alive"],
)
def test_B10_a_connection_that_is_to_end_ends(raw: bytes, proxy: HotProxy) -> None:
    for _ in range(4):
        with Line(proxy) as line:
            reply, parsed = proxy.parsed_by(lambda line=line: line.ask(raw))  # type: ignore[misc]
            assert (reply.x_cache, parsed) == ("HIT", 1)
            assert line.read_end() == b""


def test_B10_a_request_that_expects_100_gets_it_each_time(proxy: HotProxy) -> None:
    raw = request("expect: 100-continue")

    with Line(proxy) as line:
        for _ in range(4):
            assert line.ask(raw).status == 100
            assert line.read().x_cache == "HIT"
        reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
        assert (reply.x_cache, parsed) == ("HIT", parsed_for_a_hit(proxy))


def test_B10_a_body_that_waits_for_100_is_read(proxy: HotProxy) -> None:
    head, _, body = request("expect: 100-continue").partition(b"\r\n\r\n")

    with Line(proxy) as line:
        for _ in range(3):
            assert line.ask(head + b"\r\n\r\n").status == 100
            assert line.ask(body).x_cache == "HIT"


@pytest.mark.parametrize(
    "headers",
    [
        ("upgrade: h2c", "connection: upgrade, http2-settings", "http2-settings: AAMAAABk"),
        ("upgrade: websocket", "connection: upgrade"),
        ("upgrade: h2c",),
    ],
    ids=["h2c", "websocket", "no-connection"],
)
def test_B10_an_upgrade_is_never_answered_unread(
    headers: tuple[str, ...], both: Mapping[str, HotProxy]
) -> None:
    raw = request(*headers)
    told: dict[str, list[tuple[int, int]]] = {"on": [], "off": []}

    for name, proxy in both.items():
        for _ in range(4):
            with Line(proxy) as line:
                reply, parsed = proxy.parsed_by(lambda line=line: line.ask(raw))  # type: ignore[misc]
                told[name].append((reply.status, parsed))

    assert told["on"] == told["off"]
    assert {parsed for _, parsed in told["on"]} == {1}


@pytest.mark.parametrize("raw", [RAW, HELD], ids=["hit", "miss"])
def test_B42_a_client_that_closes_its_side_is_let_go(raw: bytes, proxy: HotProxy) -> None:
    with Line(proxy) as line:
        lost = proxy.watch.lost
        line.send(raw)
        line.end()
        proxy.watch.wait(lambda: proxy.watch.lost > lost)
        received = line.read_end()

    # An answer that is under way may be dropped; a part of one would be worse.
    assert received == b"" or (
        received.startswith(b"HTTP/1.1 200 OK\r\n") and received.endswith(b"}")
    )
    if raw is RAW and proxy.app.direct is not None:
        assert received, "it was answered before the end was seen"


def test_B42_a_client_that_asked_and_closes_its_side_later_has_its_answer(
    proxy: HotProxy,
) -> None:
    with Line(proxy) as line:
        reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
        assert (reply.x_cache, parsed) == ("HIT", parsed_for_a_hit(proxy))
        line.end()
        assert line.read_end() == b""


# Requests that come in pieces, or several at once


def test_B10_a_request_cut_at_any_byte_is_answered_the_same(proxy: HotProxy) -> None:
    with Line(proxy) as line:
        expected = line.ask(RAW).body
        for at in range(1, len(RAW)):
            reply, parsed = proxy.parsed_by(lambda at=at: line.ask(RAW[:at], RAW[at:]))  # type: ignore[misc]
            # Once its head is there and known, it is waited for.
            seen = 1 if at < RAW.index(b"\r\n\r\n") + 4 else parsed_for_a_hit(proxy)
            assert (reply.x_cache, parsed, reply.body) == ("HIT", seen, expected), at
            if at % 16 == 0:
                reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
                assert (reply.body, parsed) == (expected, parsed_for_a_hit(proxy)), at


def test_B10_a_request_in_single_bytes_is_answered_the_same(proxy: HotProxy) -> None:
    with Line(proxy) as line:
        pieces = [RAW[at : at + 1] for at in range(len(RAW))]
        assert line.ask(*pieces).body == line.ask(RAW).body


def test_B10_two_requests_in_one_write_are_both_answered(proxy: HotProxy) -> None:
    with Line(proxy) as line:
        single, streamed = line.ask(RAW), line.ask(STREAM)
        for first, second in ((RAW, RAW), (RAW, STREAM), (STREAM, RAW)):
            for _ in range(3):
                line.send(first + second)
                for raw in (first, second):
                    assert line.read().body == (single if raw is RAW else streamed).body
        reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
        assert (reply.body, parsed) == (single.body, parsed_for_a_hit(proxy))


def test_B10_many_requests_in_one_write_are_answered_in_order(proxy: HotProxy) -> None:
    bodies = [request(body=chat(f"Number {number}.")) for number in range(8)]
    with Line(proxy) as line:
        expected = [line.ask(raw).body for raw in bodies]
        assert len(set(expected)) == 8
        line.send(b"".join(bodies))
        assert [line.read().body for _ in bodies] == expected
        line.send(b"".join(bodies))
        assert [line.read().body for _ in bodies] == expected


def test_B10_the_end_of_one_request_with_the_whole_of_the_next_one(proxy: HotProxy) -> None:
    with Line(proxy) as line:
        expected = line.ask(RAW).body, line.ask(STREAM).body
        for _ in range(3):
            line.send(RAW[:50], RAW[50:] + STREAM)
            assert (line.read().body, line.read().body) == expected
            line.send(RAW + STREAM[:50], STREAM[50:])
            assert (line.read().body, line.read().body) == expected
        line.send(RAW + STREAM[:50])
        assert line.read().body == expected[0]
        # The rest of the one, and what would be a hot request if it stood for itself.
        line.send(STREAM[50:], RAW)
        assert (line.read().body, line.read().body) == (expected[1], expected[0])


def test_B10_a_request_between_the_halves_of_another_is_its_body(proxy: HotProxy) -> None:
    """Bytes that were promised as a body are one, also where they look like a hot request."""
    head, _, _ = request(body=RAW).partition(b"\r\n\r\n")

    with Line(proxy) as line:
        refused = line.ask(head + b"\r\n\r\n", RAW)
        assert refused.status == 400, "it is no JSON"
        assert line.ask(STREAM)["content-type"].startswith("text/event-stream")


def test_B73_a_body_that_comes_after_its_refusal_is_not_answered(proxy: HotProxy) -> None:
    """The answer is complete before the request is: what follows is still the request's body."""
    body = RAW.rjust(len(RAW))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: proxy\r\ncontent-type: text/plain\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"

    with Line(proxy) as line:
        refused, parsed = proxy.parsed_by(lambda: line.ask(head.encode()))
        assert (refused.status, parsed) == (415, 1)
        line.send(body, STREAM)
        reply = line.read()

    assert reply["content-type"].startswith("text/event-stream")


def test_B10_a_hot_request_after_a_chunked_one(proxy: HotProxy) -> None:
    raw = chunked_request()

    with Line(proxy) as line:
        for at in (None, 60, len(raw) - 3, None, None):
            pieces = (raw,) if at is None else (raw[:at], raw[at:])
            assert line.ask(*pieces).x_cache == "HIT"
            reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
            assert (reply.x_cache, parsed) == ("HIT", parsed_for_a_hit(proxy))


# A hot request beside a slow one


def test_B10_a_hot_request_does_not_overtake_a_slow_one(
    proxy: HotProxy, upstream: RunningStandIn
) -> None:
    upstream.app.reset()
    upstream.app.script(Script(hold="go"))
    slow = request(body=chat("One after the other."))

    with Line(proxy) as line:
        expected = line.ask(RAW)
        # Hot, then slow: each in a read of its own, with no answer awaited between them.
        parsed = proxy.watch.parsed
        line.send(RAW, slow)
        upstream.app.wait_for_requests(1)[0].holding.wait()
        assert proxy.watch.parsed == parsed + 1 + parsed_for_a_hit(proxy)
        assert line.read().body == expected.body
        # While that is under way, two more.
        received = proxy.watch.received
        line.send(RAW)
        proxy.watch.wait(lambda: proxy.watch.received == received + len(RAW))
        assert proxy.watch.parsed == parsed + 2 + parsed_for_a_hit(proxy), "it waits for its turn"
        upstream.app.gate("go").set()
        assert line.read().x_cache == "MISS"
        assert line.read().body == expected.body
        reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
        assert (reply.body, parsed) == (expected.body, parsed_for_a_hit(proxy))


def test_B20_a_hot_request_waits_for_the_end_of_a_stream(
    proxy: HotProxy, upstream: RunningStandIn
) -> None:
    upstream.app.reset()
    upstream.app.script(Script(hold="rest", hold_after=2))
    slow = request(body=chat("Slowly.", stream=True))

    with Line(proxy) as line:
        expected = line.ask(RAW)
        line.send(slow)
        line.read_until(b"data: {")
        received = proxy.watch.received
        line.send(RAW)
        proxy.watch.wait(lambda: proxy.watch.received == received + len(RAW))
        upstream.app.gate("rest").set()
        stream = line.read()
        assert stream["content-type"].startswith("text/event-stream")
        assert stream.raw.count(b"HTTP/1.1") == 1
        assert stream.raw.count(b"data: [DONE]") == 1
        assert line.read().body == expected.body


def test_B10_connections_do_not_disturb_each_other(hot: HotProxy) -> None:
    requests = [request(body=chat(f"Line {number}.")) for number in range(4)]
    wrong = []
    with Line(hot) as line:
        expected = [heat(line, raw).body for raw in requests]

    def work(number: int) -> None:
        with Line(hot) as own:
            for _ in range(200):
                own.send(requests[number])
                if own.read().body != expected[number]:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    parsed = hot.watch.parsed
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong
    assert hot.watch.parsed == parsed


# Limits of time and memory


def test_B43_what_is_unsent_to_a_client_that_does_not_read_is_bounded(
    start: Starter, upstream: RunningStandIn
) -> None:
    upstream.app.reset()
    upstream.app.script(Script(content="x" * 30_000))
    proxy = start()
    sent = 0
    with Line(proxy, receive_buffer=16_384) as line:
        expected = heat(line, RAW)
        assert len(expected.body) > 30_000
        proxy.watch.unsent = 0
        # What the kernel holds is no more than some megabytes; all of these would be 30 MB.
        while sent < 1000:
            received = proxy.watch.received
            line.send(RAW)
            sent += 1
            with proxy.watch.changed:
                if not proxy.watch.changed.wait_for(
                    lambda received=received: proxy.watch.received > received,  # type: ignore[misc]
                    timeout=0.5,
                ):
                    break

        assert sent < 1000, "the server reads no more of a client that does not read"
        assert 0 < proxy.watch.unsent < 64 * 1024 + 2 * len(expected.raw)
        assert {line.read().body for _ in range(sent)} == {expected.body}
        reply, parsed = proxy.parsed_by(lambda: line.ask(RAW))
        assert (reply.body, parsed) == (expected.body, 0)


def test_B68_an_idle_connection_is_closed_in_time_also_after_hot_answers_alone(
    start: Starter, upstream: RunningStandIn
) -> None:
    upstream.app.reset()
    upstream.app.script(Script(hold="go"), when=lambda seen: b"Wait" in seen.body)
    proxy = start(keep_alive_seconds=1)
    with Line(proxy) as idle, Line(proxy) as busy, Line(proxy) as half, Line(proxy) as slow:
        heat(idle, RAW)
        loop = idle.protocol.loop
        _, parsed = proxy.parsed_by(lambda: [each.ask(RAW) for each in (busy, half, slow)])
        assert parsed == 0
        # One is in the middle of a request, and one waits for its answer.
        half.send(RAW[:40])
        slow.send(HELD)
        begun = loop.time()
        while loop.time() < begun + 1.3:
            busy.ask(RAW)
        last = loop.time()

        assert idle.read_end() == b""
        assert busy.read_end() == b""
        assert 0.9 < loop.time() - last < 3

        # Whoever has a request under way is not idle.
        assert half.ask(RAW[40:]).x_cache == "HIT"
        upstream.app.gate("go").set()
        assert slow.read().x_cache == "MISS"
        assert half.ask(RAW).x_cache == slow.ask(RAW).x_cache == "HIT"


def test_B44_idle_hot_connections_do_not_keep_a_server_up(start: Starter) -> None:
    proxy = start()
    with Line(proxy) as first, Line(proxy) as second:
        heat(first, RAW)
        assert proxy.parsed_by(lambda: second.ask(RAW))[1] == 0
        proxy.stop()
        assert first.read_end() == second.read_end() == b""


def test_B44_a_process_with_idle_hot_connections_ends_on_sigterm(
    upstream: RunningStandIn, tmp_path: Path
) -> None:
    upstream.app.reset()
    settings = {
        "server": {"port": 0, "access_log": False, "shutdown_grace_seconds": 60},
        "upstreams": {"openai": {"base_url": upstream.base_url}},
        "store": {"tiers": ["memory"]},
    }
    file = tmp_path / "proxy_config.yaml"
    file.write_text(yaml.safe_dump(settings))
    with ServedProxy(file) as served:
        lines = [Line(served) for _ in range(3)]
        for line in lines:
            heat(line, RAW)
            assert line.ask(RAW).x_cache == "HIT"
        served.terminate()
        assert served.ended(timeout=10) == 0
        for line in lines:
            assert line.read_end() == b""
            line.close()


# What is no HTTP


@pytest.mark.parametrize(
    "raw",
    [
        b"NONSENSE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/chat/completions HTTP/1.1\r\nno colon here\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        RAW.replace(b"content-length: ", b"transfer-encoding: chunked\r\ncontent-length: "),
    ],
    ids=["no-request-line", "tls", "no-colon", "bad-length", "two-framings"],
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_B73_what_is_no_http_is_a_400_in_the_envelope(
    used: bool, raw: bytes, proxy: HotProxy
) -> None:
    for _ in range(2):
        with Line(proxy) as line:
            if used:
                line.ask(RAW)
            reply = line.ask(raw)
            assert reply.status == 400
            assert reply["content-type"] == "application/json"
            assert reply["connection"] == "close"
            assert reply.json["error"].keys() == ENVELOPE
            assert reply.json["error"]["type"] == "invalid_request_error"
            assert line.read_end() == b""
