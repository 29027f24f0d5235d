"""What passes through, byte for byte: both transports, with TLS and without, over bare sockets."""

import hashlib
import re

import pytest

from tests.integration.paths import Way
from tests.integration.raw_upstream import Seen, saying
from tests.integration.wire import Wire, unchunked
from tests.waiting import eventually

OWN = ("host", "content-length", "transfer-encoding")


def passed(seen: Seen) -> list[bytes]:
    """The header lines that reached the upstream, but for its own host and the framing."""
    return [line for line in seen.lines[1:] if line.split(b":")[0].lower().decode() not in OWN]


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "DELETE", "PATCH", "PUT", "POST", "PROPFIND", "TRACE"]
)
def test_B60_any_method_arrives(method: str, way: Way) -> None:
    way.upstream.serve = saying(b"HTTP/1.1 204 No Content\r\n\r\n")
    with Wire(way.proxy.url) as wire:
        wire.request(method, "/v1/files")
        wire.read_until(b"\r\n\r\n")

    assert wire.status == 204
    assert way.upstream.wait().lines[0] == f"{method} /v1/files HTTP/1.1".encode()


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/v1/a%2Fb",
            "/v1//a//",
            "/v1/a%2fb/%E2%82%AC",
            "/v1/a;p=1,2/b:c@d",
            "/v1/$&'()*+,;=!~-._",
        ),
        *("/v1/a?", "/v1/a?x", "/v1/a?x=1&x=2&&y=&=z", "/v1/a?q=[1]&r={}&s=|^`", "/v1/a?p=+%20%2B"),
        *("/v1/a?x=%2e%2e/&y=/../", '/v1/a?x="<>', "/v1/a?x?y/z", "/v1/%zz%", "/v1/a?%zz", "/v1/"),
        "/v1/" + "a" * 8_000 + "?" + "b" * 8_000,
    ],
)
def test_B60_any_path_and_query_arrive_as_they_stand(target: str, way: Way) -> None:
    with Wire(way.proxy.url) as wire:
        wire.request("GET", target)
        wire.read_until(b"\r\n\r\n")

    assert wire.status == 200
    # An empty query is none (RFC 3986 tells them apart, no server does).
    assert way.upstream.wait().target == target.removesuffix("?").encode()


HEADERS = [
    ("X-Second", "2"),
    ("Authorization", "Bearer sk-own"),
    ("x-first", "1"),
    ("X-REPEATED", "a"),
    ("Accept", "*/*;q=0.1, audio/mpeg"),
    ("X-Repeated", "b, c"),
    ("OpenAI-Beta", "assistants=v2"),
    ("x-repeated", "a"),
    ("User-Agent", "Test/1 (x; y)"),
    ("Cookie", "a=b; c=d"),
    ("Accept-Encoding", "br;q=1, gzip;q=0.5, zstd"),
    ("Range", "bytes=0-99"),
    ("If-None-Match", 'W/"1", "2"'),
    ("Content-Type", 'multipart/form-data; boundary="=_x"'),
    ("X-Empty", ""),
    ("X_Under.Dot!", "#$%&'*+-.^_`|~ \t inner"),
    ("Date", "Tue, 15 Nov 1994 08:12:31 GMT"),
    ("Forwarded", "for=192.0.2.60;proto=http"),
    ("X-Forwarded-For", "192.0.2.60"),
    ("Content-Encoding", "gzip"),
    ("Content-MD5", "Q2hlY2sgSW50ZWdyaXR5IQ=="),
    ("X-Utf-8", "é€"),
]


@pytest.mark.parametrize("body", [None, b"x" * 10])
def test_B60_headers_arrive_in_order_and_as_they_are_spelled(
    body: bytes | None, way: Way, request: pytest.FixtureRequest
) -> None:
    lines = [f"{name}: {value}".rstrip().encode() for name, value in HEADERS]
    head = [b"POST /v1/files HTTP/1.1", b"Host: x", *lines]
    framing = [] if body is None else [b"Content-Length: 10"]

    with Wire(way.proxy.url) as wire:
        wire.send(b"\r\n".join([*head, *framing, b"", body or b""]))
        wire.read_until(b"\r\n\r\n")

    seen = way.upstream.wait()
    if "aiohttp" in request.node.name:  # which spells repeats like the first of them
        lines = [
            re.sub(rb"^x-repeated(?=:)", b"X-REPEATED", line, flags=re.IGNORECASE) for line in lines
        ]
    assert [line.rstrip() for line in passed(seen)] == lines, "nothing is added, or left out"
    assert seen.values("host") == [way.upstream.root.split("/")[2].encode()]
    # A POST without a body gets to say so (RFC 9110 section 8.6).
    assert seen.values("content-length") == [b"0" if body is None else b"10"]


def test_B60_what_connection_names_goes_no_further(way: Way) -> None:
    hops = [
        "Connection: close, X-Hop",
        "Connection: x-other",
        "X-Hop: 1",
        "x-other: 2",
        "Keep-Alive: timeout=5",
        "TE: deflate",
        "Trailer: X-Late",
        "Proxy-Authorization: Basic abc",
        "Proxy-Connection: keep-alive",
        "Upgrade: h2c",
        "X-Admin-Key: k",
    ]
    with Wire(way.proxy.url) as wire:
        lines = ["GET /v1/files HTTP/1.1", "Host: x", *hops, "X-Stays: 1", "", ""]
        wire.send("\r\n".join(lines).encode())
        wire.read_all()

    assert passed(way.upstream.wait()) == [b"X-Stays: 1"]


ANSWER_HEADERS = [
    ("Content-Type", "audio/mpeg"),
    ("X-Repeated", "a"),
    ("Set-Cookie", "a=1; Path=/"),
    ("x-repeated", "b"),
    ("Set-Cookie", "b=2"),
    ("OpenAI-Processing-Ms", "5"),
    ("X-Request-ID", "req_1"),
    ("Retry-After", "3"),
    ("Server", "theirs"),
    ("Date", "Tue, 15 Nov 1994 08:12:31 GMT"),
    ("Cache-Control", "no-store"),
    ("ETag", 'W/"1"'),
    ("X-Empty", ""),
    ("Strict-Transport-Security", "max-age=1"),
]


@pytest.mark.parametrize(
    "status", [200, 201, 206, 226, 301, 400, 402, 404, 418, 429, 451, 500, 529, 599]
)
def test_B65_an_answer_passes_with_status_headers_and_body(status: int, way: Way) -> None:
    body = bytes(range(256)) * 40
    told = "".join(f"{name}: {value}\r\n" for name, value in ANSWER_HEADERS)
    way.upstream.serve = saying(
        f"HTTP/1.1 {status} Odd Reason\r\n{told}Content-Length: {len(body)}\r\n\r\n".encode(), body
    )
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/files/file-1/content")
        assert wire.read_body() == body

    assert wire.status == status
    lines = wire.received.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    wanted = [f"{name.lower()}: {value}".encode() for name, value in ANSWER_HEADERS]
    assert [line for line in lines if not line.startswith(b"content-length")] == wanted


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "gzip, br", "x-own"])
@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_B60_a_coded_body_passes_untouched(coding: str, framing: str, way: Way) -> None:
    body = hashlib.sha512(coding.encode()).digest() * 50  # no coding at all: nobody may look
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {coding}\r\n"
    whole = {
        "length": f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body,
        "chunks": f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n".encode()
        + body
        + b"\r\n0\r\n\r\n",
        "close": f"{head}Connection: close\r\n\r\n".encode() + body,
    }[framing]

    async def serve(seen: Seen) -> bool:
        await seen.peer.say(whole)
        return framing != "close"

    way.upstream.serve = serve
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/files", headers={"connection": "close"})
        wire.read_all()

    assert wire.head["content-encoding"] == [coding]
    got = wire.rest if framing == "length" else unchunked(wire.rest)[0]
    assert got == body
    assert framing == "length" or unchunked(wire.rest)[1], "it has come to its end"


def test_B60_a_range_passes(way: Way) -> None:
    way.upstream.serve = saying(
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-9/100\r\n"
        b"Accept-Ranges: bytes\r\nContent-Length: 5\r\n\r\n56789"
    )
    with Wire(way.proxy.url) as wire:
        wire.request(
            "GET", "/v1/files/f/content", headers={"range": "bytes=5-9", "if-range": '"1"'}
        )
        assert wire.read_body() == b"56789"

    assert wire.status == 206
    assert wire.head["content-range"] == ["bytes 5-9/100"]
    seen = way.upstream.wait()
    assert seen.values("range") == [b"bytes=5-9"]
    assert seen.values("if-range") == [b'"1"']


@pytest.mark.parametrize(
    ("method", "answer", "length"),
    [
        ("HEAD", "200 OK\r\nContent-Length: 1234", "1234"),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked", None),
        ("HEAD", "404 Not Found\r\nContent-Length: 9", "9"),
        ("GET", "204 No Content", None),
        ("OPTIONS", "204 No Content\r\nAllow: GET", None),
        ("DELETE", "200 OK\r\nContent-Length: 0", "0"),
        ("GET", '304 Not Modified\r\nETag: "1"', None),
        ("POST", "205 Reset Content\r\nContent-Length: 0", "0"),
    ],
)
def test_B60_an_answer_without_a_body_has_none(
    method: str, answer: str, length: str | None, way: Way
) -> None:
    way.upstream.serve = saying(f"HTTP/1.1 {answer}\r\nX-Mark: 1\r\n\r\n".encode())
    with Wire(way.proxy.url) as wire:
        for _ in range(2):  # the connections on both sides are in order afterwards
            wire.received = b""
            wire.request(method, "/v1/files")
            wire.read_until(b"\r\n\r\n")
            assert wire.status == int(answer[:3])
            assert wire.head["x-mark"] == ["1"]
            assert wire.head.get("content-length", [None]) == [length]
            assert wire.rest == b""

    assert len(way.upstream.seen) == 2


@pytest.mark.parametrize(
    "interim", [b"103 Early Hints\r\nLink: </x>", b"100 Continue", b"102 Wait", b"199 Odd"]
)
def test_B60_interim_answers_are_passed_over(interim: bytes, way: Way) -> None:
    way.upstream.serve = saying(
        b"HTTP/1.1 " + interim + b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    )
    with Wire(way.proxy.url) as wire:
        wire.request("POST", "/v1/files", b"x")
        assert wire.read_body() == b"ok"

    assert wire.status == 200
    assert "link" not in wire.head


def test_B60_a_client_that_waits_is_told_to_go_on(way: Way) -> None:
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    with Wire(way.proxy.url) as wire:
        wire.send(head)
        assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.received = b""
        wire.send(b"abc")
        wire.read_body()

    assert wire.status == 200
    seen = way.upstream.wait()
    assert bytes(seen.body) == b"abc"
    assert seen.values("expect") == []


def test_B20_a_piece_is_passed_on_before_the_next_is_there(way: Way) -> None:
    async def begins(seen: Seen) -> bool:
        await seen.peer.say(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await seen.take_all()
        return False

    way.upstream.serve = begins
    with Wire(way.proxy.url) as wire:
        wire.request("POST", "/v1/audio/speech")
        wire.read_until(b"\r\n\r\n")  # the head, though there is no byte of the body
        seen = way.upstream.wait()
        for piece in (b"one", b"two", b"three"):
            seen.say(b"%x\r\n%b\r\n" % (len(piece), piece))
            wire.read_until(b"%x\r\n%b\r\n" % (len(piece), piece))
        seen.say(b"0\r\n\r\n")
        wire.read_until(b"\r\n0\r\n\r\n")

    assert unchunked(wire.rest) == (b"onetwothree", True)


def test_B60_an_upload_is_passed_on_piece_by_piece(way: Way) -> None:
    async def reads(seen: Seen) -> bool:
        await seen.take(3)
        await seen.take(5)
        await seen.peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    way.upstream.serve = reads
    with Wire(way.proxy.url) as wire:
        wire.send(b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\n")
        wire.send(b"\0\xff\n")
        seen = way.upstream.wait()
        eventually(lambda: bytes(seen.body) == b"\0\xff\n")
        wire.send(b"--=_x")
        wire.read_until(b"\r\n\r\n")

    assert bytes(seen.body) == b"\0\xff\n--=_x"


@pytest.mark.parametrize("begun", [False, True], ids=["before-the-answer", "in-the-answer"])
def test_B42_a_client_that_goes_away_closes_the_upstream_within_a_second(
    begun: bool, way: Way
) -> None:
    async def stalls(seen: Seen) -> bool:
        if begun:
            await seen.peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        await seen.take_all()
        return False

    way.upstream.serve = stalls
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/files")
        if begun:
            wire.read_until(b"abc")
        seen = way.upstream.wait()

    seen.gone.wait(1)


@pytest.mark.parametrize("status", ["099 Low", "600 High", "999 Higher"])
def test_B68_a_status_that_is_none_is_an_error_of_the_upstream(status: str, way: Way) -> None:
    way.upstream.serve = saying(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    with Wire(way.proxy.url) as wire:
        wire.request("GET", "/v1/files")
        wire.read_body()

    assert wire.status == 502
    assert b'"upstream_protocol_error"' in wire.rest


def test_B60_a_header_that_is_no_utf_8_passes_as_far_as_the_client_of_the_upstream_can(
    way: Way, request: pytest.FixtureRequest
) -> None:
    with Wire(way.proxy.url) as wire:
        wire.send(b"GET /v1/files HTTP/1.1\r\nHost: x\r\nX-Latin: caf\xe9\r\n\r\n")
        wire.read_until(b"\r\n\r\n")

    wanted = "café".encode() if "aiohttp" in request.node.name else b"caf\xe9"
    assert way.upstream.wait().values("x-latin") == [wanted]
