"""Over bare sockets: clients that hold a connection and do not send."""

import time
from typing import Any

import pytest

from proxy.standin import Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import CHAT_PATH, Asker, Site, chat
from tests.integration.wire import Wire
from tests.waiting import eventually

SHORT: dict[str, Any] = {"server": {"request_head_seconds": 0.2, "request_gap_seconds": 0.2}}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture
def asker(ask: NewAsker) -> Asker:
    return ask(SHORT)


def trickle(wire: Wire, seconds: float = 5.0) -> None:
    """Send one byte after the other until the other side has closed."""
    until = time.monotonic() + seconds
    wire.pace(0.02)
    while not wire.ended:
        assert time.monotonic() < until
        wire.send_if_open(b"x")
        wire.look()


def test_a_head_that_does_not_end_is_answered_with_408_and_closed(asker: Asker) -> None:
    with Wire(asker.proxy.url) as wire:
        wire.send(HEAD)
        wire.read_all()
        assert wire.status == 408
        assert b'"request_timeout"' in wire.rest
        assert wire.head["connection"] == ["close"]


def test_a_head_has_to_come_in_time_as_a_whole_however_busy_its_client_seems(asker: Asker) -> None:
    with Wire(asker.proxy.url) as wire:
        wire.send(HEAD + b"x-long: ")
        trickle(wire)
        assert wire.status == 408


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word(asker: Asker) -> None:
    with Wire(asker.proxy.url) as wire:
        assert wire.read_all() == b""


def test_the_second_head_on_a_connection_has_its_time_too(asker: Asker, site: Site) -> None:
    with Wire(asker.proxy.url) as wire:
        key = {"authorization": f"Bearer {asker.key}"}
        wire.request("POST", "/v1" + CHAT_PATH, chat("second head"), key)
        wire.read_body()
        wire.send(HEAD)
        assert b"HTTP/1.1 408" in wire.read_all()


def test_a_body_that_stops_is_answered_with_408_and_nothing_goes_upstream(
    asker: Asker, site: Site
) -> None:
    with Wire(asker.proxy.url) as wire:
        wire.send(HEAD + b"content-length: 100\r\n\r\n{")
        wire.read_all()
        assert wire.status == 408
        assert wire.received.count(b"HTTP/1.1") == 1
    assert site.standin.app.count() == 0
    eventually(lambda: asker.counted('magic_proxy_incomplete_answers_total{endpoint="chat"}') == 1)


def test_a_body_that_comes_slowly_but_does_come_is_read(asker: Asker, site: Site) -> None:
    with Wire(asker.proxy.url) as wire:
        body = b'{"model": "m", "messages": [{"role": "user", "content": "slow"}]}'
        wire.send(HEAD + b"authorization: Bearer k\r\ncontent-length: %d\r\n\r\n" % len(body))
        wire.pace(0.02)
        for at in range(0, len(body), 3):
            wire.send_if_open(body[at : at + 3])
            wire.look()
        wire.pace(10.0)
        wire.read_body()
        assert wire.status == 200


def test_an_upload_that_stops_is_answered_with_408_and_let_go_upstream(
    asker: Asker, site: Site
) -> None:
    with Wire(asker.proxy.url) as wire:
        wire.send(b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
        upload = site.standin.app.wait_for_requests(1)[0]
        wire.read_all()
        assert wire.status == 408
        upload.disconnected.wait()


def test_who_waits_for_an_answer_may_take_his_time(asker: Asker, site: Site) -> None:
    site.standin.app.script(Script(hold="slow answer"))
    with Wire(asker.proxy.url) as wire, Wire(asker.proxy.url) as other:
        key = {"authorization": f"Bearer {asker.key}"}
        wire.request("POST", "/v1" + CHAT_PATH, chat("patient"), key)
        site.standin.app.wait_for_requests(1)
        wire.send(b"GET /v1/mod")  # pipelined: its time begins when it is its turn
        assert other.read_all() == b""  # so long is the time
        assert not wire.ended
        site.standin.app.gate("slow answer").set()
        wire.read_body()
        assert wire.status == 200
        assert b"HTTP/1.1 408" in wire.read_all()


def test_one_connection_too_many_is_told_so_and_closed(ask: NewAsker, site: Site) -> None:
    asker = ask({"server": {"max_connections": 2, "request_head_seconds": 60}})
    one, two = Wire(asker.proxy.url), Wire(asker.proxy.url)
    with one, two, Wire(asker.proxy.url) as three:
        three.read_all()
        assert three.status == 503
        assert b'"too_many_connections"' in three.rest
        one.close()

        def is_in() -> bool:
            with Wire(asker.proxy.url) as again:
                again.request("GET", "/healthz", headers={"connection": "close"})
                again.read_all()
                return again.status == 200

        eventually(is_in)
