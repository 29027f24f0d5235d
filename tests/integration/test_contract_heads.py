"""Request heads that do not end, and bytes that are no HTTP."""

import contextlib

import orjson

from proxy.edge.http_protocol import LONGEST_HEAD_BYTES
from proxy.standin import Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import Site, chat
from tests.integration.wire import Wire

START = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-long: "


def test_B56_a_head_without_end_is_refused_before_it_fills_the_memory(ask: NewAsker) -> None:
    with Wire(ask().proxy.base_url) as wire:
        wire.send(START)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                wire.send(b"a" * LONGEST_HEAD_BYTES)
        wire.read_all()
        # What was sent after the refusal may have reset the connection, answer and all.
        assert wire.ended


def test_B73_a_head_that_is_too_long_is_said_so_in_the_envelope(ask: NewAsker) -> None:
    with Wire(ask().proxy.base_url) as wire:
        wire.send(START + b"a" * LONGEST_HEAD_BYTES)
        wire.read_all()
        assert wire.status == 431
        assert orjson.loads(wire.rest)["error"]["code"] == "headers_too_large"


def test_B73_a_long_head_that_ends_is_taken(ask: NewAsker) -> None:
    with Wire(ask().proxy.base_url) as wire:
        for _ in range(3):
            wire.received = b""
            wire.request("POST", "/v1/chat/completions", chat(), {"x-long": "a" * 60_000})
            wire.read_body()
            assert wire.status == 200


def test_B73_a_long_body_is_no_long_head(ask: NewAsker) -> None:
    with Wire(ask().proxy.base_url) as wire:
        wire.request("POST", "/v1/chat/completions", chat("long " * LONGEST_HEAD_BYTES))
        wire.read_body()
        assert wire.status == 200


def test_B21_nothing_is_written_into_an_answer_under_way(ask: NewAsker, site: Site) -> None:
    site.standin.app.script(Script(hold="held", hold_after=2))
    with Wire(ask().proxy.base_url) as wire:
        wire.request("POST", "/v1/chat/completions", chat("Go on and on.", stream=True))
        wire.read_until(b"data: ")
        wire.send(b"this is no HTTP\r\n\r\n")
        wire.read_all()
        assert wire.received.count(b"HTTP/1.1") == 1
        assert not wire.received.endswith(b"0\r\n\r\n")
    site.standin.app.gate("held").set()
