"""Long requests come in several reads, long answers go out as they are read: the same bytes."""

import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from proxy.edge.outlet import AT_ONCE
from proxy.standin import RunningStandIn, Script, start_standin
from tests.integration.contract import chat
from tests.integration.hotpath import OFF, HotProxy, Line, Starter, heat, request
from tests.integration.servers import merged
from tests.integration.wire import Wire
from tests.waiting import eventually

LONG: Mapping[str, Any] = {"server": {"hot_path_request_bytes": 300_000}}
BIG = "x" * 1_000_000
RAW = request(body=chat("A long answer."))
STREAM = request(body=chat("A long answer.", stream=True))
SHORT = request(body=chat("A short answer."))
ASKED = request(body=chat("y" * 200_000))


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as standin:
        standin.app.script(
            Script(content=BIG), when=lambda seen: b"long answer" in seen.body, times=None
        )
        yield standin


@pytest.fixture(scope="module")
def both(
    upstream: RunningStandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, HotProxy]]:
    over = merged(LONG, {"store": {"memory": {"max_bytes": "256 MiB"}}})
    with Starter(upstream.base_url, tmp_path_factory.mktemp("both")) as start:
        # So long that no test waits for an idle connection to be closed.
        on, off = (start(each, keep_alive_seconds=60) for each in (over, merged(over, OFF)))
        proxies = {"on": on, "off": off}
        for proxy in proxies.values():
            with Line(proxy) as line:
                for raw in (RAW, STREAM, SHORT, ASKED):
                    heat(line, raw)
                    proxy.entries_written()
                    for _ in range(2):
                        line.ask(raw)
        yield proxies


@pytest.fixture(params=["on", "off"])
def proxy(request: pytest.FixtureRequest, both: Mapping[str, HotProxy]) -> HotProxy:
    return both[request.param]


@pytest.fixture
def hot(both: Mapping[str, HotProxy]) -> HotProxy:
    return both["on"]


@pytest.fixture
def start(upstream: RunningStandIn, tmp_path: Path) -> Iterator[Starter]:
    with Starter(upstream.base_url, tmp_path) as starter:
        yield starter


def slow(proxy: HotProxy) -> Line:
    """A connection on which the kernel, on both sides, holds next to nothing."""
    line = Line(proxy, receive_buffer=16_384)
    own: socket.socket = line.protocol.transport.get_extra_info("socket")
    own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    return line


def is_closed(proxy: HotProxy) -> bool:
    """Whether the server has begun to stop: by then it has told all its connections."""
    try:
        Wire(proxy.url).close()
    except ConnectionError:
        return True
    return False


# Long answers


@pytest.mark.parametrize("raw", [RAW, STREAM], ids=["json", "stream"])
def test_B22_a_long_answer_is_given_whole_and_the_next_one_after_it(
    raw: bytes, proxy: HotProxy
) -> None:
    with Line(proxy) as line:
        expected = line.ask(raw)
        assert len(expected.body) > len(BIG)
        for _ in range(2):
            for each in (raw, raw, SHORT):
                line.send(each)
            assert line.read().body == line.read().body == expected.body
            assert line.read().x_cache == "HIT"
        assert proxy.parsed_by(lambda: line.ask(raw))[1] == (proxy.app.direct is None)


@pytest.mark.parametrize("raw", [RAW, STREAM], ids=["json", "stream"])
def test_B43_of_a_long_answer_no_more_is_buffered_than_the_client_takes(
    raw: bytes, hot: HotProxy
) -> None:
    with slow(hot) as line:
        expected = line.ask(raw)
        hot.watch.unsent = 0
        line.send(raw)
        line.read_some()
        protocol = line.protocol
        assert hot.on_loop(lambda: protocol._outlet is not None), "the kernel did not take it all"
        assert not hot.on_loop(protocol.transport.is_reading), "what it sends has to wait"
        assert hot.on_loop(protocol.transport.get_write_buffer_size) <= 3 * AT_ONCE
        assert hot.watch.unsent <= 3 * AT_ONCE
        assert line.read().body == expected.body
        assert hot.on_loop(protocol.transport.is_reading)
        assert line.ask(SHORT).x_cache == "HIT"


def test_B56_all_clients_get_the_same_object(hot: HotProxy) -> None:
    direct = hot.app.direct
    assert direct is not None
    with Line(hot):
        first, second = (hot.on_loop(lambda: direct.hot.answer(RAW)) for _ in range(2))

    assert first is not None
    assert second is not None
    assert first[1] is second[1]


def test_B10_what_comes_behind_a_long_answer_waits_for_it(proxy: HotProxy) -> None:
    with slow(proxy) as line:
        expected = line.ask(RAW).body
        line.send(RAW + SHORT)
        line.send(SHORT[:50])
        line.send(SHORT[50:] + RAW)
        assert line.read().body == expected
        assert line.read().x_cache == line.read().x_cache == "HIT"
        assert line.read().body == expected


def test_B42_a_client_that_sends_no_more_gets_the_rest_of_a_long_answer(proxy: HotProxy) -> None:
    with slow(proxy) as line:
        expected = line.ask(RAW)
        line.send(RAW)
        line.read_some()
        line.end()
        assert line.read().body == expected.body
        assert line.read_end() == b""


def test_B42_a_client_that_leaves_a_long_answer_is_let_go(proxy: HotProxy) -> None:
    lost = proxy.watch.lost
    with slow(proxy) as line:
        line.ask(RAW)
        line.send(RAW)
        line.read_some()
    proxy.watch.wait(lambda: proxy.watch.lost > lost)
    with Line(proxy) as line:
        assert line.ask(RAW).x_cache == "HIT"


@pytest.mark.parametrize("over", [{}, OFF], ids=["on", "off"])
def test_B44_a_stop_waits_for_a_long_answer_that_is_being_read(
    over: Mapping[str, Any], start: Starter
) -> None:
    proxy = start(over, keep_alive_seconds=60)
    with slow(proxy) as line:
        heat(line, RAW)
        proxy.entries_written()
        line.ask(RAW)
        expected = line.ask(RAW).body
        line.send(RAW)
        line.read_some()
        stopping = threading.Thread(target=proxy.stop)
        stopping.start()
        eventually(lambda: is_closed(proxy))
        assert line.read().body == expected
        assert line.read_end() == b""
        stopping.join(10)


# Long requests


def test_B10_a_long_request_is_answered_unread_in_however_many_reads(proxy: HotProxy) -> None:
    head = ASKED.index(b"\r\n\r\n") + 4
    with Line(proxy) as line:
        expected = line.ask(ASKED).body
        for cuts in ([], [head], [head + 1], [1000, 2000, 150_000], [len(ASKED) - 1]):
            pieces = [
                ASKED[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(ASKED)], strict=True)
            ]
            reply, parsed = proxy.parsed_by(lambda pieces=pieces: line.ask(*pieces))  # type: ignore[misc]
            assert (reply.x_cache, reply.body) == ("HIT", expected)
            assert parsed == (proxy.app.direct is None), cuts


def test_B10_a_long_request_in_other_bytes_is_answered_by_its_head(hot: HotProxy) -> None:
    with Line(hot) as line:
        expected = line.ask(ASKED).body
        before = hot.watch.by_head
        other = request(body=chat("y" * 200_000, stream=False))
        line.ask(other)
        again = request(body=ASKED[ASKED.index(b"{") :] + b"  ")
        assert line.ask(again[:1000], again[1000:]).body == expected
        assert hot.watch.by_head == before + 2


def test_B10_a_long_request_with_the_next_one_behind_it(proxy: HotProxy) -> None:
    with Line(proxy) as line:
        expected = line.ask(ASKED).body
        line.send(ASKED[:100_000], ASKED[100_000:] + SHORT)
        assert line.read().body == expected
        assert line.read().x_cache == "HIT"
        line.send(ASKED[:100_000], ASKED[100_000:] + SHORT[:20], SHORT[20:])
        assert line.read().body == expected
        assert line.read().x_cache == "HIT"


def test_B44_a_request_that_has_begun_to_come_is_answered_before_the_stop(start: Starter) -> None:
    for over in (LONG, merged(LONG, OFF)):
        proxy = start(over)
        with Line(proxy) as line:
            heat(line, ASKED)
            line.ask(ASKED)
            whole = proxy.watch.received + 100_000
            line.send(ASKED[:50_000], ASKED[50_000:100_000])
            proxy.watch.wait(lambda proxy=proxy, whole=whole: proxy.watch.received == whole)  # type: ignore[misc]
            stopping = threading.Thread(target=proxy.stop)
            stopping.start()
            server = line.protocol
            eventually(lambda server=server: server.cycle and not server.cycle.keep_alive)  # type: ignore[misc]
            reply = line.ask(ASKED[100_000:])
            assert reply.x_cache == "HIT"
            assert line.read_end() == b""
            stopping.join(10)


def test_B42_a_client_that_goes_in_the_middle_of_a_request_is_told_of(proxy: HotProxy) -> None:
    def gone() -> float:
        kind = 'magic_proxy_requests_total{endpoint="chat",outcome="error"}'
        return proxy.metrics().get(kind, 0.0)

    before = gone()
    with Line(proxy) as line:
        line.ask(ASKED)
        whole = proxy.watch.received + 150_000
        line.send(ASKED[:50_000], ASKED[50_000:150_000])
        proxy.watch.wait(lambda: proxy.watch.received == whole)
    eventually(lambda: gone() == before + 1)


def test_B68_a_request_that_is_not_whole_is_not_idle(start: Starter) -> None:
    proxy = start(LONG, keep_alive_seconds=1)
    with Line(proxy) as line, Line(proxy) as idle:
        heat(line, ASKED)
        line.ask(ASKED)
        line.send(ASKED[:50_000])
        idle.ask(SHORT)
        assert idle.read_end() == b""
        assert line.ask(ASKED[50_000:]).x_cache == "HIT"


def test_B56_a_request_that_is_longer_than_may_be_is_read(start: Starter) -> None:
    proxy = start({"server": {"hot_path_request_bytes": 10_000}})
    fits = request(body=chat("z" * 9_000))
    long = request(body=chat("z" * 10_000))
    with Line(proxy) as line:
        for raw in (fits, long):
            heat(line, raw)
            line.ask(raw)
        assert proxy.parsed_by(lambda: line.ask(fits))[1] == 0
        for pieces in ([long], [long[:500], long[500:]]):
            _, parsed = proxy.parsed_by(lambda pieces=pieces: line.ask(*pieces))  # type: ignore[misc]
            assert parsed == 1
    assert proxy.watch.by_head == 1, "that of the one that fits"
