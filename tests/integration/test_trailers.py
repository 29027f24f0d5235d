"""Fields behind a body: which pass, to whom, and that nothing can hide in them."""

import orjson
import pytest

from tests.integration.contract import chat
from tests.integration.paths import Way, Ways
from tests.integration.raw_upstream import Seen, saying
from tests.integration.wire import Wire, unchunked

ANNOUNCED = b"Trailer: X-Late, X-Later\r\n"
LATE = b"X-Late: 1\r\n"
ABC = b"3\r\nabc\r\n"
NONE = ABC + b"0\r\n\r\n"
JSON = b"Content-Type: application/json\r\n"
PASS = b"Cache-Control: no-cache, no-store"
CHAT = b"POST /v1/chat/completions HTTP/1.1"


@pytest.fixture(params=["aiohttp-http", "aiohttp-https"])
def way(request: pytest.FixtureRequest, ways: Ways) -> Way:
    """The transport that gives trailers out, with TLS and without."""
    return ways(request.param)


@pytest.fixture
def plain(ways: Ways) -> Way:
    return ways("aiohttp-http")


def answer(
    section: bytes = LATE,
    *,
    status: bytes = b"200 OK",
    head: bytes = ANNOUNCED,
    body: bytes = ABC,
    last: bytes = b"0",
) -> bytes:
    framed = b"HTTP/1.1 %b\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (status, head)
    return b"%b%b%b\r\n%b\r\n" % (framed, body, last, section)


def told(
    way: Way, *lines: bytes, first: bytes = b"GET /v1/files HTTP/1.1", body: bytes = b""
) -> Wire:
    """All of the answer, on a connection that ends with it."""
    if body:
        lines = (*lines, b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    with Wire(way.proxy.url) as wire:
        wire.send(b"\r\n".join([first, b"Host: x", b"Connection: close", *lines, b"", body]))
        wire.read_all()
    return wire


@pytest.mark.parametrize("status", [b"200 OK", b"404 Not Found", b"429 Slow", b"503 Down"])
def test_B60_trailers_pass_whatever_the_status(status: bytes, way: Way) -> None:
    way.upstream.serve = saying(answer(LATE + b"x-LATER:\ta b \r\n" + LATE, status=status))
    with Wire(way.proxy.url) as wire:
        for _ in range(2):  # the connections on both sides are in order afterwards
            wire.received = b""
            wire.request("GET", "/v1/files")
            wire.read_until(b"x-later: a b\r\nx-late: 1\r\n\r\n")

            assert wire.status == int(status[:3])
            assert wire.head["trailer"] == ["x-late, x-later"]
            assert wire.rest == ABC + b"0\r\nx-late: 1\r\nx-later: a b\r\nx-late: 1\r\n\r\n"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("first", [b"POST /v1/chat/completions", b"POST /v1/embeddings"])
def test_B65_trailers_of_errors_pass_on_cached_endpoints(
    first: bytes, stream: bool, way: Way
) -> None:
    asked = {"model": "m", "messages": [], "input": ["a", "b"], "stream": stream}
    _passes_an_error(way, first, orjson.dumps(asked))


def test_B65_trailers_of_errors_pass_on_resources(way: Way) -> None:
    _passes_an_error(way, b"GET /v1/models", b"")


def _passes_an_error(way: Way, first: bytes, body: bytes) -> None:
    way.upstream.serve = saying(answer(status=b"400 Bad", head=ANNOUNCED + JSON))
    wire = told(way, first=first + b" HTTP/1.1", body=body)

    assert wire.status == 400
    assert wire.rest == ABC + b"0\r\nx-late: 1\r\n\r\n"
    assert wire.head["trailer"] == ["x-late, x-later"]
    assert "content-length" not in wire.head


EVENTS = b"data: [DONE]\n\n"
STREAM = b"%x\r\n%b\r\n" % (len(EVENTS), EVENTS)
SSE = b"Content-Type: text/event-stream\r\n"


def test_B60_trailers_of_a_stream_that_is_not_recorded_pass(way: Way) -> None:
    way.upstream.serve = saying(answer(head=ANNOUNCED + SSE, body=STREAM))
    asked = orjson.dumps(chat(stream=True))
    wire = told(way, PASS, first=CHAT, body=asked)

    assert wire.head["x-cache"] == ["BYPASS"]
    assert wire.rest == STREAM + b"0\r\nx-late: 1\r\n\r\n"


def test_B11_a_stored_answer_has_no_trailers(way: Way) -> None:
    good = orjson.dumps(CHOICE)
    way.upstream.serve = saying(
        answer(head=ANNOUNCED + JSON, body=b"%x\r\n%b\r\n" % (len(good), good))
    )
    miss, hit = (told(way, first=CHAT, body=orjson.dumps(chat())) for _ in range(2))

    assert (miss.head["x-cache"], hit.head["x-cache"]) == (["MISS"], ["HIT"])
    assert miss.rest.endswith(b"0\r\nx-late: 1\r\n\r\n")
    assert hit.rest == good
    assert "trailer" not in hit.head
    assert len(way.upstream.seen) == 1


CHOICE = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-mini",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
    ],
}


def test_B60_clients_of_http_1_0_get_no_trailers(plain: Way) -> None:
    plain.upstream.serve = saying(answer())
    wire = told(plain, first=b"GET /v1/files HTTP/1.0")

    assert wire.status == 200
    assert b"late" not in wire.received


@pytest.mark.parametrize("method", [b"HEAD", b"GET"])
def test_B60_an_answer_without_a_body_announces_no_trailers(method: bytes, plain: Way) -> None:
    status = b"204 No Content" if method == b"GET" else b"200 OK"
    head, _, _ = answer(status=status).partition(b"3\r\n")
    plain.upstream.serve = saying(head)
    wire = told(plain, first=b"%b /v1/files HTTP/1.1" % method)

    assert wire.status == int(status[:3])
    assert b"late" not in wire.received
    assert wire.rest == b""


def test_B60_an_answer_with_a_length_has_no_trailers(plain: Way) -> None:
    plain.upstream.serve = saying(
        b"HTTP/1.1 200 OK\r\n" + ANNOUNCED + b"Content-Length: 5\r\n\r\n0\r\n\r\n"
    )
    wire = told(plain)

    assert wire.rest == b"0\r\n\r\n"
    assert "trailer" not in wire.head


FORBIDDEN = [
    *(b"Transfer-Encoding", b"Host", b"Connection", b"Trailer", b"Authorization", b"Set-Cookie"),
    *(b"Cache-Control", b"Content-Type", b"Content-Encoding", b"If-Match", b"Location", b"Vary"),
    *(b"Proxy-Authenticate", b"WWW-Authenticate", b"Retry-After", b"Sec-X", b"X-Hop", b"TE"),
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_B60_what_has_to_be_known_before_a_body_never_comes_behind_it(
    name: bytes, plain: Way
) -> None:
    head = b"Trailer: %b, X-Late\r\nConnection: X-Hop\r\n" % name
    value = b"chunked" if name == b"Transfer-Encoding" else b"7"
    plain.upstream.serve = saying(answer(b"%b: %b\r\n" % (name, value) + LATE, head=head))
    wire = told(plain)

    assert wire.head["trailer"] == ["x-late"]
    assert wire.rest == ABC + b"0\r\nx-late: 1\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"Trailer: X-Other\r\n", id="another"),
        pytest.param(b"Trailer:\r\n", id="empty"),
        pytest.param(b"Trailer: X Late, X-Late;q=1, \r\n", id="no-names"),
    ],
)
def test_B60_what_was_not_announced_is_left_out(head: bytes, plain: Way) -> None:
    plain.upstream.serve = saying(answer(head=head))
    wire = told(plain)

    assert wire.rest == NONE
    assert b"late" not in wire.received


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(b"X-Late: 1\nX-Later: 2\r\n", id="bare-lf"),
        pytest.param(b"X-Late: 1\r\n 2\r\n", id="folded"),
        pytest.param(b"X-Late: \x01\r\n", id="control"),
        pytest.param(b"X-Late: \x7f\r\n", id="del"),
        pytest.param(b"X-Late : 1\r\n", id="space-before-colon"),
        pytest.param(b"X-Late: 1\rX-Later: 2\r\n", id="bare-cr"),
        pytest.param(b"X-Late: 1\r\nX Y: 2\r\n", id="space-in-name"),
        pytest.param(b"X-Late: 1\r\n: 2\r\n", id="no-name"),
        pytest.param(b"X-Late: 1\r\nnothing\r\n", id="no-colon"),
        pytest.param(b"X-Late: 1\r\nContent-Length: 3\r\n", id="length"),
        pytest.param(b"X-Late: \x00\r\n", id="nul"),
        pytest.param(b"X-Late: 1\r\n0\r\n", id="another-last-chunk"),
        pytest.param(b"X-Late: 1\r\n3\r\nabc\r\n0\r\n", id="another-chunk"),
        pytest.param(b"X-Late: " + b"x" * 20_000 + b"\r\n", id="long"),
        pytest.param(LATE * 3_000, id="many"),
        pytest.param(b"X-Late: " + b"x" * 3_000_000 + b"\r\n", id="endless"),
    ],
)
def test_B60_a_section_that_can_be_read_in_two_ways_does_not_pass(section: bytes, way: Way) -> None:
    """Such an answer has no trailers, or is none at all: but never another one's beginning."""
    way.upstream.serve = saying(answer(section), b"")
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/files")
        wire.read_until(b"\r\n\r\n")
        if wire.status == 200:
            wire.read_until(b"0\r\n\r\n")
            assert wire.ended != (wire.rest == NONE), "whole, or cut off"
            assert NONE.startswith(wire.rest)
        else:
            assert wire.status == 502
    wire = told(way)
    assert wire.received.count(b"HTTP/1.1 ") == 1


def test_B60_a_body_that_looks_like_trailers_is_none(way: Way) -> None:
    hidden = b"\r\n0\r\nX-Late: evil\r\n\r\n0\r\nX-Later: evil\r\n"
    body = b"%x\r\n%b\r\n" % (len(hidden), hidden)
    for section, wanted in ((b"", b""), (LATE, b"x-late: 1\r\n")):
        way.upstream.serve = saying(answer(section, body=body))
        wire = told(way)

        assert wire.rest == body + b"0\r\n" + wanted + b"\r\n"


def test_B60_trailers_pass_in_whatever_pieces_they_come(way: Way) -> None:
    whole = answer(LATE, last=b"000;a=b")
    cuts = [len(whole) - back for back in range(1, 40)]

    async def serve(seen: Seen) -> bool:
        for before, after in zip([0, *reversed(cuts)], [*reversed(cuts), None], strict=True):
            await seen.peer.say(whole[before:after])
        return True

    way.upstream.serve = serve
    wire = told(way)

    body, _, trailers = wire.rest.partition(b"0\r\n")
    assert trailers == b"x-late: 1\r\n\r\n"
    assert unchunked(body + b"0\r\n\r\n") == (b"abc", True)


def test_B60_trailers_follow_a_long_body(way: Way) -> None:
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    way.upstream.serve = saying(answer(body=piece * 20))
    wire = told(way)

    body, _, trailers = wire.rest.rpartition(b"\r\n0\r\n")
    assert trailers == LATE.lower() + b"\r\n"
    assert body.count(b"x") == 20 * 65_536


def test_B21_an_answer_that_breaks_off_in_its_trailers_has_no_end(way: Way) -> None:
    async def serve(seen: Seen) -> bool:
        await seen.peer.say(answer(LATE).removesuffix(b"\r\n"))
        return False

    way.upstream.serve = serve
    wire = told(way)

    assert wire.rest in {b"", ABC} or wire.status == 502
    assert b"late: 1" not in wire.received


@pytest.mark.parametrize("first", [b"GET /v1/files HTTP/1.1", CHAT])
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], []),
        ([b"TE: trailers"], [b"trailers"]),
        ([b"Te: gzip;q=0.5,  Trailers", b"Connection: te"], [b"trailers"]),
        ([b"TE: gzip"], []),
        ([b"TE: trailersx, x"], []),
    ],
)
def test_B60_an_upstream_is_told_who_takes_trailers(
    first: bytes, lines: list[bytes], said: list[bytes], plain: Way
) -> None:
    body = orjson.dumps(chat()) if first == CHAT else b""
    told(plain, *lines, PASS, first=first, body=body)

    seen = plain.upstream.wait()
    assert seen.values("te") == said
    assert seen.values("connection") == [b"TE"] * len(said), "it is said to this hop alone"


@pytest.mark.parametrize("name", ["httpx-http", "httpx-https"])
def test_B60_over_httpx_there_are_none_and_nobody_is_asked_for_them(name: str, ways: Ways) -> None:
    way = ways(name)
    way.upstream.serve = saying(answer())
    with Wire(way.proxy.url) as wire:
        for _ in range(2):
            wire.received = b""
            wire.request("GET", "/v1/files", headers={"te": "trailers"})
            wire.read_until(b"0\r\n\r\n")
            assert wire.rest == NONE
            assert "trailer" not in wire.head

    assert way.upstream.wait(2).values("te") == []


def test_B60_trailers_of_a_request_are_dropped(way: Way) -> None:
    with Wire(way.proxy.url) as wire:
        wire.send(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nTrailer: X-Late\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + ABC + b"0\r\nX-Late: 1\r\n\r\n"
        )
        wire.read_body()

    seen = way.upstream.wait()
    assert bytes(seen.body) == b"abc"
    assert seen.values("trailer") == []
