"""The limits of slow clients beside the hot path: who is answered there alone, and who is held."""

from collections.abc import Iterator

import pytest

from proxy.standin import RunningStandIn, start_standin
from tests.integration.hotpath import HotProxy, Line, Starter, heat, request

RAW = request()
SHORT = {"server": {"request_head_seconds": 0.2, "request_gap_seconds": 0.2}}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as standin:
        yield standin


@pytest.fixture(scope="module")
def proxy(upstream: RunningStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HotProxy]:
    with Starter(upstream.base_url, tmp_path_factory.mktemp("slow-hot")) as start:
        running = start(SHORT, keep_alive_seconds=1)
        with Line(running) as line:
            heat(line, RAW)
        yield running


def test_a_connection_that_is_answered_hot_alone_stays(proxy: HotProxy) -> None:
    with Line(proxy) as line:
        loop = line.protocol.loop
        until = loop.time() + 0.6

        def ask_on() -> None:
            while loop.time() < until:
                assert line.ask(RAW).x_cache == "HIT"

        _, parsed = proxy.parsed_by(ask_on)
        assert parsed == 0


def test_a_body_that_stops_is_answered_with_408_although_its_head_is_known(
    proxy: HotProxy, upstream: RunningStandIn
) -> None:
    asked = upstream.app.count()
    with Line(proxy) as line:
        line.send(RAW[:-10])
        reply = line.read()
        assert (reply.status, reply.json["error"]["code"]) == (408, "request_timeout")
        assert line.read_end() == b""
    assert upstream.app.count() == asked


@pytest.mark.parametrize("hits", [1, 0])
def test_a_connection_on_which_no_request_comes_after_a_line_end_is_closed(
    hits: int, proxy: HotProxy
) -> None:
    """Whatever comes ends the time that idle connections have; none began another."""
    with Line(proxy) as line:
        for _ in range(hits):
            assert line.ask(RAW).x_cache == "HIT"
        if not hits:  # answered on the ordinary path
            assert line.ask(request("connection: keep-alive, x")).status == 200
        line.send(b"\r\n")
        assert line.read_end() == b""


def test_a_connection_with_a_refused_body_that_stops_is_closed(
    proxy: HotProxy,
) -> None:
    raw = request("x-coding: 1", body=b" " * 5_000).replace(
        b"content-type: application/json", b"content-type: text/plain"
    )
    with Line(proxy) as line:
        line.send(raw[:600])
        assert line.read().status == 415
        line.send(raw[600:610])
        assert line.read_end() == b""
