"""Clients of HTTP/1.0: they know no chunks, and whatever has no length ends with the connection."""

import orjson
import pytest

from tests.integration.contract import chat
from tests.integration.paths import Way, Ways
from tests.integration.raw_upstream import Seen, saying
from tests.integration.wire import Wire, chunked

PIECES = (b"abc", b"\r\n0\r\n\r\n", b"transfer-encoding: chunked\r\n", b"x" * 100_000)
BODY = b"".join(PIECES)
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"
)


@pytest.fixture
def way(ways: Ways) -> Way:
    return ways("aiohttp-http")


def told(way: Way, *lines: bytes, first: bytes = b"GET /v1/files", body: bytes = b"") -> Wire:
    """The answer, on a connection that ends with it."""
    with Wire(way.proxy.url) as wire:
        wire.send(b"\r\n".join([first + b" HTTP/1.0", *lines, b"", body]))
        wire.read_all()
    assert wire.head["connection"] == ["close"]
    assert "transfer-encoding" not in wire.head
    return wire


def test_B60_an_answer_in_chunks_is_made_plain(way: Way) -> None:
    way.upstream.serve = saying(CHUNKED, chunked(PIECES))
    assert told(way).rest == BODY


def test_B20_a_stream_is_made_plain_and_passed_on_as_it_comes(way: Way) -> None:
    event = b"data: [DONE]\n\n"

    async def begins(seen: Seen) -> bool:
        await seen.take_framed()
        head = CHUNKED.removesuffix(b"\r\n") + b"Connection: close\r\n\r\n"
        await seen.peer.say(head, b"%x\r\n%b\r\n" % (len(event), event))
        await seen.take_all()
        return False

    way.upstream.serve = begins
    asked = orjson.dumps(chat(stream=True))
    with Wire(way.proxy.url) as wire:
        wire.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Cache-Control: no-cache, no-store\r\nContent-Length: %d\r\n\r\n%b"
            % (len(asked), asked)
        )
        assert wire.read_until(event).endswith(b"\r\n\r\n" + event)
        way.upstream.wait().say(b"0\r\n\r\n")
        wire.read_all()

    assert wire.rest == event
    assert "transfer-encoding" not in wire.head


@pytest.mark.parametrize("body", [BODY, b"0\r\n\r\n", b""])
def test_B60_an_answer_with_a_length_passes_as_it_is(body: bytes, way: Way) -> None:
    way.upstream.serve = saying(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)
    wire = told(way)

    assert wire.head["content-length"] == [str(len(body))]
    assert wire.rest == body


@pytest.mark.parametrize("framing", [b"Content-Length: 3", b"Transfer-Encoding: chunked"])
def test_B60_a_header_whose_name_ends_likewise_passes(framing: bytes, way: Way) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Transfer-Encoding: chunked\r\n%b\r\n\r\n" % framing
    body = b"abc" if framing.startswith(b"Content") else chunked([b"abc"])
    way.upstream.serve = saying(head, body)
    wire = told(way)

    assert wire.head["x-transfer-encoding"] == ["chunked"]
    assert wire.rest == b"abc"


def test_B21_an_answer_that_breaks_off_has_no_end_in_order(way: Way) -> None:
    async def cuts(seen: Seen) -> bool:
        await seen.peer.say(CHUNKED, b"3\r\nabc\r\n")
        await seen.peer.reader.read(1)  # until the client has it
        return False

    way.upstream.serve = cuts
    with Wire(way.proxy.url) as wire:
        wire.send(b"GET /v1/files HTTP/1.0\r\n\r\n")
        wire.read_until(b"abc")
        way.upstream.wait().close()
        wire.read_all()

    assert wire.rest == b"abc"
    assert wire.was_reset


def test_B60_who_knows_no_interim_answers_gets_none(way: Way) -> None:
    expects = (b"Expect: 100-continue", b"Content-Length: 3")
    wire = told(way, *expects, first=b"POST /v1/files", body=b"abc")

    assert wire.received.count(b"HTTP/1.1 ") == 1
    assert wire.status == 200
    assert bytes(way.upstream.wait().body) == b"abc"
