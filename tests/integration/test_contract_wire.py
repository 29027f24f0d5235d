"""Over bare sockets: streams as they arrive, streams that break, and what passes through unread."""

import gzip

import orjson
import pytest

from proxy.standin import Close, Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import Asker, Site, cache_status, chat, error_of
from tests.integration.wire import Wire, chunked, unchunked
from tests.waiting import eventually

CHAT = "/v1/chat/completions"


def key_of(asker: Asker, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {asker.key}", **more}


def test_B20_the_first_event_arrives_before_the_upstream_has_finished(
    ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(hold="rest", hold_after=2))

    with Wire(running.proxy.url) as wire:
        wire.request("POST", CHAT, chat(stream=True), key_of(running))
        site.standin.app.wait_for_requests(1)[0].holding.wait()
        wire.read_until(b"\r\n\r\n", b"data: {")
        early = unchunked(wire.rest)[0]
        assert not site.standin.app.requests[0].finished.is_set()
        assert wire.head["x-accel-buffering"] == ["no"]
        assert wire.head["transfer-encoding"] == ["chunked"]
        site.standin.app.gate("rest").set()
        wire.read_until(b"0\r\n\r\n")

    whole, ended = unchunked(wire.rest)
    assert ended
    assert whole.startswith(early)
    assert whole.endswith(b"data: [DONE]\n\n")
    assert running(chat(stream=True)).content == whole


@pytest.mark.parametrize("split", [1, 7, 64])
def test_B20_a_stream_passes_byte_for_byte_however_it_is_cut(
    split: int, ask: NewAsker, site: Site
) -> None:
    odd = (
        ': hello\r\n\r\ndata:{"id":"c", "choices":[{"index":0,"delta":{"role":"assistant",'
        '"content":"é€"},"finish_reason":null}]}\r\n\r\nevent: x\rdata: {"id":"c","choices":'
        '[{"index":0,"delta":{},"finish_reason":"stop"}]}\r\rdata: [DONE]\n\n'
    )
    running = ask()
    site.standin.app.script(Script(body=odd, content_type="text/event-stream", split_bytes=split))

    first, second = running(chat(stream=True)), running(chat(stream=True))

    assert first.content == odd.encode()
    assert second.headers["x-cache"] == "HIT"
    assert second.content == odd.encode()


@pytest.mark.parametrize("close", list(Close))
@pytest.mark.parametrize("after", [0, 1, 5])
def test_B21_a_stream_that_breaks_off_breaks_for_the_client_too(
    after: int, close: Close, ask: NewAsker, site: Site
) -> None:
    running = ask()
    # The answer is held until the client has its head, so that the break is one in the middle.
    site.standin.app.script(Script(close_after=after, close=close, hold="go", hold_after=after))

    with Wire(running.proxy.url) as wire:
        wire.request("POST", CHAT, chat(stream=True), key_of(running))
        site.standin.app.wait_for_requests(1)[0].holding.wait()
        wire.read_until(b"\r\n\r\n")
        site.standin.app.gate("go").set()
        wire.read_all()

    body, ended = unchunked(wire.rest)
    assert wire.ended, "the connection is closed"
    assert not ended, "there is no last chunk"
    assert b"[DONE]" not in body
    assert running.stored() == 0
    assert running.counted('magic_proxy_not_stored_total{reason="truncated"}') == 1
    assert running.counted('magic_proxy_incomplete_answers_total{endpoint="chat"}') == 1
    assert running(chat(stream=True)).headers["x-cache"] == "MISS"


def test_B21_a_stream_without_its_terminal_event_gets_none_invented(
    ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(done=False))

    answer = running(chat(stream=True))

    assert b"[DONE]" not in answer.content
    assert running.stored() == 0


def test_B21_an_error_event_reaches_the_client(ask: NewAsker, site: Site) -> None:
    running = ask()
    event = {"error": {"message": "The server is overloaded", "type": "server_error"}}
    site.standin.app.script(Script(error_event=event, error_after=1))

    answer = running(chat(stream=True))

    assert orjson.loads(answer.content.strip().rpartition(b"data: ")[2]) == event
    assert b"[DONE]" not in answer.content
    assert running.stored() == 0


@pytest.mark.parametrize("hold_after", [None, 1], ids=["before-the-answer", "in-the-stream"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B42_a_client_that_goes_away_closes_the_upstream_connection(
    stream: bool, hold_after: int | None, ask: NewAsker, site: Site
) -> None:
    running = ask()
    # No rule: with nothing to keep, the work is for this client alone.
    body = chat(stream=stream, temperature=2)
    site.standin.app.script(Script(hold="never", hold_after=hold_after, split_bytes=40))

    with Wire(running.proxy.url) as wire:
        wire.request("POST", CHAT, body, key_of(running))
        (seen,) = site.standin.app.wait_for_requests(1)
        seen.holding.wait()

    seen.disconnected.wait(3)
    assert not seen.finished.is_set()
    eventually(lambda: running.counted("magic_proxy_in_flight") == 0)


def test_B42_a_client_that_goes_away_from_a_pass_through_closes_it_too(
    ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never"))

    with Wire(running.proxy.url) as wire:
        wire.request("GET", "/v1/echo", headers=key_of(running))
        (seen,) = site.standin.app.wait_for_requests(1)
        seen.holding.wait()

    seen.disconnected.wait(3)


def test_B42_a_client_that_goes_away_in_its_upload_closes_it_too(ask: NewAsker, site: Site) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.send(
            b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 70_000
        )
        (seen,) = site.standin.app.wait_for_requests(1)

    seen.disconnected.wait(3)
    assert running().status_code == 200


@pytest.mark.parametrize(
    "target",
    [
        "/v1/../admin",
        "/v1/files/..",
        "/v1/a/%2e%2E/b",
        "/v1/a/./b",
        "/v1/a%2F..%2Fb",
        "/v1/a/..%5cb",
    ],
)
def test_B60_no_path_leaves_the_api_root_of_the_upstream(
    target: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.request("GET", target, None, key_of(running))
        head = wire.read_until(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert site.standin.app.requests == []


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/echo/models?limit=2&after=a%2Fb"),
        ("DELETE", "/v1/files/file-1"),
        ("PUT", "/v1/echo/a%20b//c/..d;p=1?x=1&x=2&y"),
        ("PATCH", "/v1/echo/%E2%82%AC"),
        ("OPTIONS", "/v1/echo"),
        ("PROPFIND", "/v1/echo"),
        ("GET", "/v1/chat/completions?limit=3"),
        ("DELETE", "/v1/embeddings"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat%2Fcompletions"),
        ("POST", "/v1/responses"),
    ],
)
def test_B60_any_method_path_and_query_pass_as_they_stand(
    method: str, target: str, ask: NewAsker, site: Site
) -> None:
    running = ask()
    body = None if method in {"GET", "OPTIONS"} else b"\x00\xff any bytes {"

    with Wire(running.proxy.url) as wire:
        wire.request(method, target, body, key_of(running, **{"x-own": "1"}))
        wire.read_until(b"\r\n\r\n")

    (seen,) = site.standin.app.requests
    path, _, query = target.partition("?")
    assert (seen.method, seen.raw_path, seen.query) == (method, path, query)
    assert seen.body == (body or b"")
    assert seen.header("x-own") == "1"
    assert seen.header("authorization") == f"Bearer {running.key}"
    assert "x-cache" not in wire.head


HOPS = [
    ("connection", "x-secret-hop, Keep-Alive"),
    ("keep-alive", "timeout=5"),
    ("te", "deflate"),
    ("trailer", "x-late"),
    ("proxy-authorization", "Basic abc"),
    ("proxy-connection", "keep-alive"),
    ("upgrade", "h2c"),
    ("x-secret-hop", "1"),
]
STAYS = [
    ("x-twice", "1"),
    ("x-twice", "2"),
    ("accept", "*/*"),
    ("user-agent", "t/1"),
    ("cookie", "a=b"),
]


@pytest.mark.parametrize("target", ["/v1/echo", CHAT])
def test_B60_hop_by_hop_headers_are_removed_on_the_way_there(
    target: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        hops = [pair for pair in HOPS if pair[0] != "upgrade"]
        wire.request("POST", target, chat(), [*hops, *STAYS, *key_of(running).items()])
        wire.read_until(b"\r\n\r\n")

    assert wire.status == 200
    (seen,) = site.standin.app.requests
    names = [name.decode() for name, _ in seen.headers]
    assert not {name for name, _ in hops} & set(names) - {"connection", "keep-alive"}
    assert "x-secret-hop" not in (seen.header("connection") or "")
    for name, value in STAYS:
        assert (name.encode(), value.encode()) in seen.headers


@pytest.mark.parametrize("target", ["/v1/echo", CHAT])
def test_B60_hop_by_hop_headers_are_removed_on_the_way_back(
    target: str, ask: NewAsker, site: Site
) -> None:
    running = ask()
    body = '{"choices":[]}'
    head = "\r\n".join(
        f"{name}: {value}" for name, value in [*HOPS, ("X-Stays", "1"), ("x-stays", "2")]
    )
    site.standin.app.script(
        Script(
            raw=f"HTTP/1.1 200 OK\r\n{head}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}"
        )
    )

    with Wire(running.proxy.url) as wire:
        wire.request("POST", target, chat(), key_of(running))
        wire.read_until(b"\r\n\r\n", body.encode())

    assert wire.status == 200
    assert not {name for name, _ in HOPS} & wire.head.keys()
    assert wire.head["x-stays"] == ["1", "2"]
    assert wire.rest == body.encode()


@pytest.mark.parametrize(
    ("method", "answer", "status", "length"),
    [
        pytest.param("HEAD", "200 OK\r\ncontent-length: 1234", 200, "1234", id="HEAD"),
        pytest.param("HEAD", "404 Not Found", 404, None, id="HEAD-without-length"),
        pytest.param("GET", "204 No Content", 204, None, id="204"),
        pytest.param("DELETE", "204 No Content", 204, None, id="DELETE-204"),
        pytest.param("GET", '304 Not Modified\r\netag: "1"', 304, None, id="304"),
        pytest.param(
            "GET", "304 Not Modified\r\ncontent-length: 99", 304, None, id="304-with-length"
        ),
        pytest.param("GET", "200 OK\r\ncontent-length: 0", 200, "0", id="empty"),
    ],
)
def test_B60_answers_without_a_body(
    method: str, answer: str, status: int, length: str | None, ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(raw=f"HTTP/1.1 {answer}\r\nx-mark: 1\r\n\r\n"))

    with Wire(running.proxy.url) as wire:
        wire.request(method, "/v1/echo", headers=key_of(running))
        wire.read_until(b"\r\n\r\n")
        assert wire.status == status
        assert wire.head["x-mark"] == ["1"]
        assert wire.head.get("content-length", [None]) == [length]
        assert "transfer-encoding" not in wire.head
        assert wire.rest == b""
        # The connection is in order: the next answer on it is the next answer.
        wire.received = b""
        wire.request("GET", "/v1/echo", headers=key_of(running))
        wire.read_until(b"\r\n\r\n", b'"path":"/v1/echo"')
        assert wire.status == 200


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_B60_a_cached_endpoint_without_a_body(status: str, ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(raw=f"HTTP/1.1 {status}\r\n\r\n"))

    answer = running()

    assert answer.status_code == int(status[:3])
    assert answer.content == b""
    assert "content-length" not in answer.headers
    assert cache_status(answer)["detail"] == "absent, not-stored:status"


def test_B60_a_coded_answer_is_not_decoded_on_its_way(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(encoding="gzip"))

    with Wire(running.proxy.url) as wire:
        wire.request("GET", "/v1/echo", headers=key_of(running, **{"accept-encoding": "gzip, br"}))
        wire.read_until(b"\r\n\r\n")
        wire.read_body()

    assert wire.head["content-encoding"] == ["gzip"]
    assert b"/v1/echo" in gzip.decompress(wire.rest)
    assert site.standin.app.requests[0].header("accept-encoding") == "gzip, br"


def test_B60_an_upload_in_chunks_goes_on_in_chunks(ask: NewAsker, site: Site) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.send(
            b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            + chunked([b"one ", b"two ", b"three"])
        )
        wire.read_until(b"\r\n\r\n")

    (seen,) = site.standin.app.requests
    assert seen.body == b"one two three"
    assert seen.header("transfer-encoding") == "chunked"
    assert seen.header("content-length") is None


def test_B60_an_announced_length_goes_on(ask: NewAsker, site: Site) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.request("POST", "/v1/files", b"x" * 300_000, key_of(running))
        wire.read_until(b"\r\n\r\n")

    (seen,) = site.standin.app.requests
    assert seen.header("content-length") == "300000"
    assert seen.header("transfer-encoding") is None
    assert seen.size == 300_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-4o-mini","messages":[]}',
        b' {\n"messages" : [ ] ,"model":"gpt-4o-mini", "seed":1.0E0, "x":"\\u00e9\\/"} \r\n',
        b'{"messages":[],"model":"gpt-4o-mini","stream":false,"seed":12345678901234567890123}',
    ],
)
def test_B61_a_body_that_needs_no_rewriting_is_forwarded_byte_for_byte(
    body: bytes, ask: NewAsker, site: Site
) -> None:
    running = ask({"models": {"gpt-4o-mini": {}}})

    running(body, headers={"content-type": "application/json; charset=utf-8"})

    (seen,) = site.standin.app.requests
    assert seen.body == body
    assert seen.header("content-type") == "application/json; charset=utf-8"


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_B65_an_upstreams_error_is_passed_on_with_all_that_sdks_read(
    path: str, ask: NewAsker, site: Site
) -> None:
    running = ask()
    told = {
        "retry-after": "3",
        "retry-after-ms": "2750",
        "x-should-retry": "true",
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-reset-tokens": "1m2s",
        "x-request-id": "req_theirs",
        "openai-processing-ms": "5",
    }
    body = '{"error" : {"message":"slow down","extra":[1.0]}}'
    site.standin.app.script(Script(status=429, headers=tuple(told.items()), body=body), path=path)

    answer = running(path=path)

    assert answer.status_code == 429
    assert answer.content == body.encode()
    assert {name: answer.headers[name] for name in told} == told
    assert running.stored() == 0


QUICK = {"first_byte_seconds": 0.2, "connect_seconds": 1}


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_B68_no_first_byte_in_time_is_a_504(path: str, ask: NewAsker, site: Site) -> None:
    running = ask({"upstreams": {"openai": {"base_url": site.standin.base_url, "timeouts": QUICK}}})
    site.standin.app.script(Script(hold="never"))

    answer = running(path=path)

    assert answer.status_code == 504
    assert error_of(answer)["code"] == "upstream_timeout"
    assert error_of(answer)["type"] == "upstream_error"
    assert answer.headers["x-cache"] == "ERROR"
    site.standin.app.requests[0].disconnected.wait(3)


def test_B68_silence_in_the_middle_breaks_the_stream(ask: NewAsker, site: Site) -> None:
    timeouts = {**QUICK, "first_byte_seconds": 5, "between_bytes_seconds": 0.2}
    running = ask(
        {"upstreams": {"openai": {"base_url": site.standin.base_url, "timeouts": timeouts}}}
    )
    site.standin.app.script(Script(hold="never", hold_after=2))

    with Wire(running.proxy.url) as wire:
        wire.request("POST", CHAT, chat(stream=True), key_of(running))
        wire.read_all()

    body, ended = unchunked(wire.rest)
    assert b"data: {" in body
    assert not ended
    assert running.stored() == 0


@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
def test_B68_a_refused_connection_is_a_502(path: str, ask: NewAsker) -> None:
    # Port 1 is nobody's: the system itself refuses.
    running = ask({"upstreams": {"openai": {"base_url": "http://127.0.0.1:1/v1"}}})

    answer = running(path=path)

    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_unreachable"
    assert answer.headers["x-cache"] == "ERROR"
    assert cache_status(answer)["detail"] == "upstream_unreachable"


def test_B68_what_is_not_http_is_a_502(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(raw="SSH-2.0-OpenSSH_9.2\r\n\r\n"))

    answer = running()

    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_protocol_error"


def test_B68_a_stale_pooled_connection_is_not_an_error(ask: NewAsker, site: Site) -> None:
    running = ask()
    running(chat("one"))
    site.standin.drop_connections()

    assert running(chat("two")).headers["x-cache"] == "MISS"
