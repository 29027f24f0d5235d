"""Requests that two parsers may read differently, over bare sockets: refused, or made plain.

Each request of the tables is one that a proxy and the server behind it are known to disagree on.
What the upstream has of it is compared to the byte, so that nothing can hide in a body or a header.
"""

import threading

import httpx
import pytest

from tests.integration.conftest import NewAsker
from tests.integration.contract import Site, chat, error_of
from tests.integration.paths import NAMES, Way, Ways
from tests.integration.raw_upstream import Seen, saying
from tests.integration.wire import Wire
from tests.waiting import eventually

POST = b"POST /v1/files HTTP/1.1\r\nHost: x\r\n"
HIDDEN = b"GET /v1/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"0\r\n\r\n"
ABC = b"Content-Length: 3\r\n\r\nabc"


@pytest.fixture
def plain(ways: Ways) -> Way:
    return ways(NAMES[0])


def lines(*, but: bytes) -> bytes:
    """A POST with one line more, and a body of three bytes."""
    return POST + but + b"\r\n" + ABC


REFUSED = {
    # Content-Length and Transfer-Encoding against each other.
    "cl-te": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n" + LAST + b"X",
    "te-cl": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n27\r\n"
    + HIDDEN
    + LAST,
    # Codings that one parser takes for chunks and another for nothing.
    "te-unknown": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + LAST + HIDDEN,
    "te-space-before-colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + LAST + HIDDEN,
    "te-twice": POST
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n"
    + LAST
    + HIDDEN,
    "te-twice-chunked": POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + LAST,
    "te-chunked-not-last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + LAST + HIDDEN,
    "te-identity-first": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n" + LAST + HIDDEN,
    "te-gzip": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + LAST + HIDDEN,
    "te-vertical-tab": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + LAST + HIDDEN,
    "te-quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + LAST + HIDDEN,
    "te-folded": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + LAST + HIDDEN,
    "te-in-http-1.0": POST.replace(b"1.1", b"1.0")
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + LAST
    + HIDDEN,
    # Lengths.
    "cl-twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "cl-twice-unlike": POST + b"Content-Length: 3\r\nContent-Length: 42\r\n\r\nabc" + HIDDEN,
    "cl-list": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "cl-plus": POST + b"Content-Length: +3\r\n\r\nabc",
    "cl-negative": POST + b"Content-Length: -1\r\n\r\nabc",
    "cl-hexadecimal": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "cl-two-numbers": POST + b"Content-Length: 3 4\r\n\r\nabc",
    "cl-octal": POST + b"Content-Length: 010\r\n\r\nabcdefgh",
    "cl-empty": POST + b"Content-Length:\r\n\r\nabc",
    "cl-endless": POST + b"Content-Length: 99999999999999999999999\r\n\r\nabc",
    # Line ends.
    "bare-lf": b"POST /v1/files HTTP/1.1\nHost: x\nContent-Length: 3\n\nabc",
    "bare-lf-once": lines(but=b"X-A: 1\nX-B: 2"),
    "bare-cr": lines(but=b"X-A: 1\rX-B: 2"),
    "folded": lines(but=b"X-A: 1\r\n folded"),
    "space-before-first": POST.replace(b"Host", b" Host") + ABC,
    # Names and values.
    "space-before-colon": lines(but=b"X-A : 1"),
    "space-in-name": lines(but=b"X A: 1"),
    "no-colon": lines(but=b"X-A"),
    "no-name": lines(but=b": 1"),
    "nul-in-value": lines(but=b"X-A: 1\x002"),
    "nul-in-name": lines(but=b"X-\x00A: 1"),
    "control-in-value": lines(but=b"X-A: 1\x012"),
    "del-in-value": lines(but=b"X-A: 1\x7f2"),
    # Chunks.
    "chunk-bare-lf": POST + b"Transfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n",
    "chunk-extension-bare-lf": POST + b"Transfer-Encoding: chunked\r\n\r\n3;a\nabc\r\n" + LAST,
    "chunk-negative": POST + b"Transfer-Encoding: chunked\r\n\r\n-3\r\nabc\r\n" + LAST,
    "chunk-0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n" + LAST,
    "chunk-endless-size": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n",
    "chunk-longer": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n" + LAST,
    "chunk-space-after-size": POST + b"Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n" + LAST,
    "length-in-trailer": POST
    + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nContent-Length: 9\r\n\r\n",
    # Hosts.
    "no-host": b"GET /v1/files HTTP/1.1\r\n\r\n",
    "two-hosts": b"GET /v1/files HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    "list-of-hosts": b"GET /v1/files HTTP/1.1\r\nHost: x, y\r\n\r\n",
    "host-with-user": b"GET /v1/files HTTP/1.1\r\nHost: x@evil.example\r\n\r\n",
    "host-with-path": b"GET /v1/files HTTP/1.1\r\nHost: x/../y\r\n\r\n",
    # Targets and versions.
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "space-in-target": b"GET /v1/a b HTTP/1.1\r\nHost: x\r\n\r\n",
    "nul-in-target": b"GET /v1/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
    "utf-8-in-target": b"GET /v1/\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "http-1.2": b"GET /v1/files HTTP/1.2\r\nHost: x\r\n\r\n",
    "http-2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "unknown-method": b"GE/T /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
    "method-in-lower-case": b"get /v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("raw", [pytest.param(raw, id=name) for name, raw in REFUSED.items()])
def test_B73_what_can_be_read_in_two_ways_is_refused_and_the_connection_closed(
    raw: bytes, plain: Way
) -> None:
    with Wire(plain.proxy.url) as wire:
        wire.send(raw)
        wire.read_all()

    assert wire.received.count(b"HTTP/1.1 ") == 1, "one answer, whatever may follow"
    assert wire.status == 400
    assert b'"invalid_http"' in wire.rest
    assert wire.head["connection"] == ["close"]
    assert plain.upstream.seen == []


GET = b"GET /v1/files HTTP/1.1"
CHUNKED = [b"POST /v1/files HTTP/1.1", b"Transfer-Encoding: chunked"]
SIZED = [b"POST /v1/files HTTP/1.1", b"Content-Length: 3"]
MADE_PLAIN = {
    "two-requests-are-two": (
        POST + ABC + HIDDEN,
        [
            ([b"POST /v1/files HTTP/1.1", b"content-length: 3"], b"abc"),
            ([b"GET /v1/hidden HTTP/1.1"], b""),
        ],
    ),
    "nothing-after-a-close": (
        b"GET /v1/files HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + HIDDEN,
        [([GET], b"")],
    ),
    "a-body-of-a-get": (
        b"GET /v1/files HTTP/1.1\r\nHost: x\r\n" + ABC,
        [([GET, b"content-length: 3"], b"abc")],
    ),
    "chunk-extensions": (
        POST + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n" + LAST,
        [(CHUNKED, b"abc")],
    ),
    "trailers-are-no-headers": (
        POST
        + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Late: 1\r\nAuthorization: b\r\n\r\n",
        [(CHUNKED, b"abc")],
    ),
    "connection-names-the-length": (
        POST + b"Connection: content-length\r\n" + ABC,
        [(SIZED, b"abc")],
    ),
    "connection-names-the-coding": (
        POST
        + b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
        + LAST,
        [(CHUNKED, b"abc")],
    ),
    "absolute-form": (
        b"GET http://evil.example/v1/files?x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        [([b"GET /v1/files?x=1 HTTP/1.1"], b"")],
    ),
    "absolute-form-with-a-user": (
        b"GET http://a:b@evil.example:99/v1/files HTTP/1.1\r\nHost: x\r\n\r\n",
        [([GET], b"")],
    ),
    "absolute-form-out-of-the-api": (b"GET http://evil.example/x HTTP/1.1\r\nHost: x\r\n\r\n", []),
    "two-slashes": (b"GET //evil.example/v1/files HTTP/1.1\r\nHost: x\r\n\r\n", []),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", []),
    "two-slashes-within": (
        b"GET /v1//evil.example/x HTTP/1.1\r\nHost: x\r\n\r\n",
        [([b"GET /v1//evil.example/x HTTP/1.1"], b"")],
    ),
    "no-user-and-host": (b"GET /v1@evil.example/x HTTP/1.1\r\nHost: x\r\n\r\n", []),
    "no-user-and-host-within": (
        b"GET /v1/@evil.example:80/x HTTP/1.1\r\nHost: x\r\n\r\n",
        [([b"GET /v1/@evil.example:80/x HTTP/1.1"], b"")],
    ),
    "a-fragment-goes-no-further": (
        b"GET /v1/files#x HTTP/1.1\r\nHost: x\r\n\r\n",
        [([GET], b"")],
    ),
    "line-ends-in-a-path-stay-coded": (
        b"GET /v1/a%0d%0aX-Evil:%201?b=%0d%0a HTTP/1.1\r\nHost: x\r\n\r\n",
        [([b"GET /v1/a%0d%0aX-Evil:%201?b=%0d%0a HTTP/1.1"], b"")],
    ),
    "dots-in-a-query-are-no-path": (
        b"GET /v1/x?../../y HTTP/1.1\r\nHost: x\r\n\r\n",
        [([b"GET /v1/x?../../y HTTP/1.1"], b"")],
    ),
    "another-host-goes-nowhere": (
        b"GET /v1/files HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        [([GET], b"")],
    ),
    "http-1.0-needs-no-host": (b"GET /v1/files HTTP/1.0\r\n\r\n", [([GET], b"")]),
}


@pytest.mark.parametrize("name", ["aiohttp-http", "httpx-http"])
@pytest.mark.parametrize(
    ("raw", "arrives"), [pytest.param(*row, id=name) for name, row in MADE_PLAIN.items()]
)
def test_B60_what_passes_reaches_the_upstream_in_one_reading(
    raw: bytes, arrives: list[tuple[list[bytes], bytes]], name: str, ways: Ways
) -> None:
    way = ways(name)

    with Wire(way.proxy.url) as wire:
        wire.send(raw)
        wire.read_until(*[b"{}"] * bool(arrives), b"\r\n\r\n")
        eventually(lambda: len(way.upstream.seen) == len(arrives))
        # Whatever could still be hidden in the connection would be before this.
        if b"close" not in raw and b"1.0" not in raw:
            wire.send(b"GET /v1/marker HTTP/1.1\r\nHost: x\r\n\r\n")
            last = way.upstream.wait(len(arrives) + 1)
            assert last.target == b"/v1/marker"
            way.upstream.seen.remove(last)

    for seen, (wanted, body) in zip(way.upstream.seen, arrives, strict=True):
        told = [line for line in seen.lines if not line.lower().startswith(b"host:")]
        assert [line.lower() for line in told] == [line.lower() for line in wanted]
        assert bytes(seen.body) == body
        assert seen.values("host") == [way.upstream.root.split("/")[2].encode()]


@pytest.mark.parametrize(
    "path",
    [
        *("..", ".", "%2e%2e", "%2E.", ".%2e", "a/../..", "a/..", "..%2f", "%2f..", "a%2F..%2Fb"),
        *("..%5c", "..%5C..", "a%5c..%5cb", "%5c..", "..%00", "..%00.json", "..;", "..;a=b/x"),
        *("%2e%2e;x", "%252e%252e", "%252e.", "..%252fx", "%25252e%25252e/x", "%c0%ae%c0%ae"),
        *("%c0%ae./x", "%e0%80%ae%e0%80%ae", "..%c0%afx", "..%c1%9cx", "%ef%bc%8e%ef%bc%8e"),
        *("%u002e%u002e/x", "%uff0e%uff0e", "..%09", "%0a..", "%20../x"),
        "%" + "25" * 12 + "2e",
    ],
)
def test_B60_no_spelling_of_a_path_leaves_the_root_of_the_upstream(path: str, plain: Way) -> None:
    for target in (f"/v1/{path}", f"/v1/{path}/keys", f"/v1/files/{path}/{path}/keys?x=1"):
        with Wire(plain.proxy.url) as wire:
            wire.request("GET", target)
            wire.read_body()
        assert wire.status == 400
        assert b'"invalid_path"' in wire.rest

    assert plain.upstream.seen == []


@pytest.mark.parametrize("what", ["trailers", "extension"])
def test_B56_what_stands_beside_a_body_is_bounded(what: str, plain: Way) -> None:
    async def reads(seen: Seen) -> bool:
        await seen.take_all()
        return False

    plain.upstream.serve = reads
    begun = {"trailers": b"3\r\nabc\r\n0\r\nX-Late: ", "extension": b"3;"}[what]

    with Wire(plain.proxy.url) as wire:
        sender = threading.Thread(
            target=_send_quietly,
            args=(wire, POST + b"Transfer-Encoding: chunked\r\n\r\n" + begun + b"x" * 3_000_000),
        )
        sender.start()
        wire.read_all()
        sender.join()

    assert wire.received == b"" or wire.status == 431
    for seen in plain.upstream.seen:
        seen.gone.wait(3)
        assert not seen.body.endswith(LAST), "it was no whole request"


def _send_quietly(wire: Wire, raw: bytes) -> None:
    try:
        wire.send(raw)
    except ConnectionError:
        return  # it was closed, as it should be


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_B60_a_body_that_ends_early_is_never_a_whole_one_upstream(framing: str, way: Way) -> None:
    async def reads(seen: Seen) -> bool:
        await seen.take_all()
        return False

    way.upstream.serve = reads
    head = {
        "length": b"Content-Length: 100\r\n\r\n",
        "chunks": b"Transfer-Encoding: chunked\r\n\r\n",
    }
    body = {"length": b"x" * 50, "chunks": b"32\r\n" + b"x" * 50 + b"\r\n"}
    with Wire(way.proxy.url) as wire:
        wire.send(POST + head[framing] + body[framing])
        seen = way.upstream.wait()
        eventually(lambda: seen.body.count(b"x") == 50)

    seen.gone.wait(3)
    assert b"0\r\n\r\n" not in seen.body
    assert seen.body.count(b"x") == 50


def test_B73_a_body_that_ends_early_asks_nothing_of_a_cached_endpoint(plain: Way) -> None:
    with Wire(plain.proxy.url) as wire:
        wire.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"model":"m","messages":[]}'
        )
    answer = httpx.get(f"{plain.proxy.base_url}/files", verify=False, trust_env=False)

    assert answer.status_code == 200
    assert [seen.target for seen in plain.upstream.seen] == [b"/v1/files"]


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/", "/metrics/", "/admin/explain/"])
def test_B73_no_redirect_leads_to_a_host_that_the_client_names(path: str, plain: Way) -> None:
    with Wire(plain.proxy.url) as wire:
        wire.send(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        wire.read_body()

    assert wire.status == 404
    assert "location" not in wire.head


@pytest.mark.parametrize("location", ["http://169.254.169.254/latest/", "//evil.example/", "/x"])
def test_B60_an_upstreams_redirect_is_passed_on_and_not_followed(location: str, way: Way) -> None:
    way.upstream.serve = saying(
        b"HTTP/1.1 307 Away\r\nLocation: " + location.encode() + b"\r\nContent-Length: 0\r\n\r\n"
    )
    for path, body in (("/v1/files", b"x"), ("/v1/chat/completions", chat())):
        with Wire(way.proxy.url) as wire:
            wire.request("POST", path, body)
            wire.read_until(b"\r\n\r\n")
        assert wire.status == 307
        assert wire.head["location"] == [location]

    assert len(way.upstream.seen) == 2


EVIL = "a\r\nX-Evil: 1\r\n\r\n<b>é\u2028\0"


def test_B73_no_text_of_a_client_becomes_a_header(ask: NewAsker, site: Site) -> None:
    running = ask(
        {
            "cache_settings": {
                "rules": [
                    {
                        "model_names": ["*"],
                        "include_in_key": ["messages"],
                        "ttl_seconds": 60,
                        "unlisted_fields": "bypass",
                        "tags": ["m:{model}"],
                    }
                ]
            }
        }
    )
    answers = [
        running(chat(model=EVIL)),
        running(chat(**{EVIL: 1})),
        running(chat(user=EVIL, metadata={EVIL: EVIL})),
        running(chat(), headers={"x-cache-tags": "a%0d%0aX-Evil: 1"}),
        running({"model": EVIL, "messages": EVIL}),
        running({"model": "m", "messages": [], "stream": EVIL}),
    ]

    for answer in answers:
        assert "x-evil" not in answer.headers
        assert answer.status_code in {200, 400}
        for name, value in answer.headers.raw:
            assert name.isascii()
            assert not {0, 10, 13} & set(value)


def test_B73_an_alias_or_a_tenant_is_no_way_to_a_header(site: Site, ask: NewAsker) -> None:
    running = ask(
        {"models": {EVIL: {"model": "gpt-4o-mini"}}, "aliases": {"plain\r\nX-Evil: 2": EVIL}}
    )

    for name in (EVIL, "plain\r\nX-Evil: 2"):
        answer = running(chat(name, model=name))
        assert answer.status_code == 200
        assert "x-evil" not in answer.headers
    assert [seen.header("x-evil") for seen in site.standin.app.requests] == [None, None]


def test_B73_a_refusal_names_the_value_and_stays_in_the_envelope(ask: NewAsker) -> None:
    running = ask({"unlisted_models": "refuse", "models": {"m": {}}})

    answer = running(chat(model=EVIL))

    assert answer.status_code == 404
    assert "X-Evil" in error_of(answer)["message"]
    assert "x-evil" not in answer.headers
