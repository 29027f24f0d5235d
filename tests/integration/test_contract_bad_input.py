"""Over HTTP: bad input of every kind, and who may ask at all."""

import gzip
import hashlib
import threading
from typing import Any

import httpx
import pytest

from proxy.standin import Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import CHAT_PATH, EMBEDDINGS_PATH, Asker, Site, chat, error_of
from tests.integration.wire import Wire, chunked

GOOD = b'"messages":[{"role":"user","content":"hi"}]'


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return b'{"model":"m",' + GOOD + b',"x":' + opening * levels + b"1" + closing * levels + b"}"


def hash_of(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def still_works(running: Asker, site: Site) -> None:
    """Nothing was asked or stored so far, and a good request is a miss and then a hit."""
    assert site.standin.app.requests == []
    assert running.stored() == 0
    assert [running().headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]


MALFORMED = [
    pytest.param(b"", id="empty"),
    pytest.param(b" \r\n\t", id="white-space"),
    pytest.param(b"{", id="cut"),
    pytest.param(b'{"model":"m",' + GOOD, id="cut-late"),
    pytest.param(b'{"model":"m",' + GOOD + b"}}", id="more-after-it"),
    pytest.param(b'{"model":"m",' + GOOD + b"}\0", id="nul-after-it"),
    pytest.param(b"{'model':'m'}", id="single-quotes"),
    pytest.param(b'{"model":"m",}', id="comma"),
    pytest.param(b'{"model":"m" /* no */}', id="comment"),
    pytest.param(b'{"model":"m","temperature":NaN,' + GOOD + b"}", id="NaN"),
    pytest.param(b'{"model":"m","temperature":Infinity,' + GOOD + b"}", id="Infinity"),
    pytest.param(b'{"model":"m","temperature":-Infinity,' + GOOD + b"}", id="-Infinity"),
    pytest.param(b'{"model":"m","x":1e9,"y":NaN}', id="NaN-in-the-slow-reading"),
    pytest.param(b'{"model":"m","seed":01}', id="leading-zero"),
    pytest.param(b'{"model":"m","x":"\x01"}', id="control-character"),
    pytest.param(b'{"model":"m","x":"\\x41"}', id="bad-escape"),
    pytest.param(b"\xef\xbb\xbf" + b'{"model":"m"}', id="byte-order-mark"),
    pytest.param('{"model":"m"}'.encode("utf-16"), id="utf-16"),
    pytest.param(b'{"model":"m","x":"\xff"}', id="no-utf-8"),
    pytest.param(b'{"model":"m","x":"\xed\xa0\x80"}', id="surrogate-in-utf-8"),
    pytest.param(b"model=m&messages=hi", id="form"),
    pytest.param(b"[]", id="array"),
    pytest.param(b'"text"', id="string"),
    pytest.param(b"12", id="number"),
    pytest.param(b"9" * 5_000, id="long-number"),
    pytest.param(b"null", id="null"),
    pytest.param(b"true", id="true"),
    pytest.param(nested(1_000), id="1000-deep-arrays"),
    pytest.param(nested(1_000, b'{"a":', b"}"), id="1000-deep-objects"),
    pytest.param(nested(1_000).replace(b"hi", b"\\ud800"), id="1000-deep-and-half-a-character"),
    pytest.param(nested(100_000), id="100000-deep-arrays"),
    pytest.param(nested(100_000, b'{"a":', b"}"), id="100000-deep-objects"),
    pytest.param(nested(100_000).replace(b"hi", b"\\ud800"), id="100000-deep-and-half"),
    pytest.param(b"[" * 100_000, id="100000-never-closed"),
    pytest.param(b'{"model":"m","x":' + b"[" * 100_000, id="100000-never-closed-inside"),
]


@pytest.mark.parametrize("path", [CHAT_PATH, EMBEDDINGS_PATH])
@pytest.mark.parametrize("body", MALFORMED)
def test_B73_a_body_that_is_no_json_object_is_a_400(
    body: bytes, path: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    answer = running(body, path=path)

    error = error_of(answer)
    assert answer.status_code == 400
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_json")
    assert len(error["message"]) < 300
    still_works(running, site)


HUGE = int("9" * 700)


@pytest.mark.parametrize(
    ("over", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"model": ["m"]}, "model"),
        ({"messages": "hi"}, "messages"),
        ({"messages": {"role": "user"}}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": True}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "user"}, None]}, "messages[1]"),
        ({"messages": [[]]}, "messages[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": "usage"}, "stream_options"),
    ],
)
def test_B73_a_member_of_a_wrong_type_is_a_400_that_names_it(
    over: dict[str, Any], param: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    answer = running(chat(**over))

    error = error_of(answer)
    assert answer.status_code == 400
    assert error["param"] == param
    assert error["code"] == "invalid_type"
    still_works(running, site)


@pytest.mark.parametrize("member", [b"model", b"messages", b"stream", b"stream_options"])
def test_B73_an_endless_number_is_a_number(member: bytes, ask: NewAsker, site: Site) -> None:
    running = ask()

    answer = running(b'{"%s":%d}' % (member, HUGE))

    assert answer.status_code == 400
    assert "a number" in error_of(answer)["message"]
    assert "99999" not in error_of(answer)["message"]
    still_works(running, site)


@pytest.mark.parametrize("value", [5, None, {"a": 1}, True])
def test_B73_an_input_of_a_wrong_type_is_a_400(value: Any, ask: NewAsker, site: Site) -> None:
    running = ask()

    answer = running({"model": "m", "input": value}, path=EMBEDDINGS_PATH)

    assert answer.status_code == 400
    assert error_of(answer)["param"] == "input"
    still_works(running, site)


@pytest.mark.parametrize("levels", [200, 253])
def test_B73_what_is_deep_within_reason_is_taken(levels: int, ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(body={"choices": []}))

    assert running(nested(levels)).status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonx",
        "application/octet-stream",
        "json",
        "é",
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, EMBEDDINGS_PATH])
def test_B73_another_content_type_is_a_415(
    content_type: str, path: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.send(
            f"POST /v1{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.key}\r\n"
            f"content-type: {content_type}\r\ncontent-length: 2\r\n\r\n{{}}".encode("latin-1")
        )
        wire.read_body()

    assert wire.status == 415
    assert b'"unsupported_media_type"' in wire.rest
    still_works(running, site)


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON ; charset=utf-8", "application/vnd.api+json", None],
)
def test_B73_json_by_any_of_its_names_is_taken(content_type: str | None, ask: NewAsker) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        line = f"content-type: {content_type}\r\n" if content_type else ""
        body = b'{"model":"m",' + GOOD + b"}"
        wire.send(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n{line}"
            f"authorization: Bearer {running.key}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wire.read_body()

    assert wire.status == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, identity"])
def test_B73_a_coded_request_body_is_a_415(coding: str, ask: NewAsker, site: Site) -> None:
    running = ask()

    answer = running(gzip.compress(b"{}"), headers={"content-encoding": coding})

    assert answer.status_code == 415
    assert error_of(answer)["code"] == "unsupported_content_encoding"
    still_works(running, site)


def test_B73_a_body_above_the_limit_is_refused_before_it_is_sent(ask: NewAsker, site: Site) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 31457280\r\n\r\n" + b'{"model":'
        )
        wire.read_body()

    assert wire.status == 413
    assert b'"request_too_large"' in wire.rest
    still_works(running, site)


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_B73_thirty_megabytes_are_a_413(framing: str, ask: NewAsker, site: Site) -> None:
    running = ask()
    body = b'{"model":"m","messages":[{"role":"user","content":"' + b"x" * 30_000_000 + b'"}]}'
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.key}\r\n"
    )

    with Wire(running.proxy.url) as wire:
        if framing == "chunked":
            head += "transfer-encoding: chunked\r\n\r\n"
            raw = head.encode() + chunked([body[:9_000_000], body[9_000_000:]])
        else:
            head += f"content-length: {len(body)}\r\n\r\n"
            raw = head.encode() + body
        sender = threading.Thread(target=_send_quietly, args=(wire, raw))
        sender.start()
        wire.read_body()
        sender.join()

    assert wire.status == 413
    still_works(running, site)


def _send_quietly(wire: Wire, raw: bytes) -> None:
    try:
        wire.send(raw)
    except ConnectionError:
        return  # the proxy may hang up on who goes on sending


def test_B73_a_body_of_just_the_limit_is_taken(ask: NewAsker, site: Site) -> None:
    limit = 10_000
    running = ask({"server": {"max_body_bytes": limit}})
    body = b'{"model":"m",' + GOOD + b"}"

    assert running(body.ljust(limit)).status_code == 200
    assert running(body.ljust(limit + 1)).status_code == 413


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\x16\x03\x01\x02\x00\x01", id="tls"),
        pytest.param(b"GET\r\n\r\n", id="no-target"),
        pytest.param(b"POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", id="length"),
        pytest.param(b"POST /v1/x HTTP/1.1\r\nho st: x\r\n\r\n", id="header-name"),
    ],
)
def test_B73_what_is_not_http_ends_the_connection_and_no_more(
    raw: bytes, ask: NewAsker, site: Site
) -> None:
    running = ask()

    with Wire(running.proxy.url) as wire:
        wire.send(raw)
        answer = wire.read_all()

    assert b"Traceback" not in answer
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    still_works(running, site)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/chat/completions", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("GET", "/v2/models", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("GET", "/admin", 404, "unknown_url"),
        ("POST", "/admin/nothing", 404, "unknown_url"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("DELETE", "/metrics", 405, "method_not_allowed"),
        ("GET", "/admin/explain", 405, "method_not_allowed"),
    ],
)
def test_B73_an_unknown_path_and_a_wrong_method_are_told_in_the_envelope(
    method: str, path: str, status: int, code: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    answer = httpx.request(method, f"{running.proxy.url}{path}")

    assert answer.status_code == status
    assert error_of(answer)["code"] == code
    assert site.standin.app.requests == []


ADMIN = {"admin": {"key_hashes": [hash_of("adm-1")]}}


@pytest.mark.parametrize("shown", [None, "", "adm-2", "sha256:", hash_of("adm-1")])
def test_B73_admin_without_its_key_is_a_401(shown: str | None, ask: NewAsker) -> None:
    running = ask(ADMIN)
    headers = {} if shown is None else {"x-admin-key": shown}

    plain = httpx.post(f"{running.proxy.url}/admin/explain", json=chat(), headers=headers)

    assert plain.status_code == 401
    assert error_of(plain)["code"] == "invalid_admin_key"


def test_B73_without_admin_keys_nobody_is_admin(ask: NewAsker) -> None:
    running = ask()

    for shown in ("", "x", "sha256:"):
        answer = httpx.post(
            f"{running.proxy.url}/admin/explain", json=chat(), headers={"x-admin-key": shown}
        )
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        (b"{", "", 400, "invalid_json"),
        (b"[]", "", 400, "invalid_json"),
        (b'{"messages":5}', "", 400, "invalid_type"),
        (b"{}", "?endpoint=chats", 400, "invalid_value"),
        (b'{"model":"m","x":"' + b"x" * 5_000 + b'"}', "", 413, "request_too_large"),
        (nested(100_000)[:4_000], "", 400, "invalid_json"),
    ],
)
def test_B73_bad_input_to_explain(
    body: bytes, query: str, status: int, code: str, ask: NewAsker
) -> None:
    running = ask({**ADMIN, "server": {"max_body_bytes": 4_096}})

    answer = httpx.post(
        f"{running.proxy.url}/admin/explain{query}", content=body, headers={"x-admin-key": "adm-1"}
    )

    assert answer.status_code == status
    assert error_of(answer)["code"] == code


def test_B73_a_body_to_explain_is_refused_as_soon_as_it_is_too_large(ask: NewAsker) -> None:
    running = ask({**ADMIN, "server": {"max_body_bytes": 4_096}})

    with Wire(running.proxy.url) as wire:
        head = b"POST /admin/explain HTTP/1.1\r\nhost: x\r\nx-admin-key: adm-1\r\n"
        wire.send(head + b"transfer-encoding: chunked\r\n\r\n1400\r\n" + b" " * 5_120 + b"\r\n")
        wire.read_body()

    assert wire.status == 413, "though its end has not come"


KEYS: dict[str, Any] = {
    "clients": [
        {"name": "ann", "key_hashes": [hash_of("mp-ann"), hash_of("mp-ann-2")], "tenant": "team"},
        {"name": "ben", "key_hashes": [hash_of("mp-ben")], "tenant": "team"},
        {"name": "cid", "key_hashes": [hash_of("mp-cid")]},
    ],
}


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="none"),
        pytest.param({"authorization": ""}, id="empty"),
        pytest.param({"authorization": "Bearer"}, id="empty-bearer"),
        pytest.param({"authorization": "Bearer mp-nobody"}, id="unknown"),
        pytest.param({"authorization": "Basic mp-ann"}, id="basic"),
        pytest.param({"authorization": "Bearer MP-ANN"}, id="other-case"),
        pytest.param({"authorization": f"Bearer {hash_of('mp-ann')}"}, id="the-hash-itself"),
        pytest.param({"authorization": "Bearer sk-upstream"}, id="the-upstreams-key"),
        pytest.param({"x-admin-key": "mp-ann"}, id="as-admin"),
        pytest.param({"cookie": "key=mp-ann"}, id="cookie"),
    ],
)
@pytest.mark.parametrize("path", [CHAT_PATH, EMBEDDINGS_PATH, "/models"])
def test_B71_B72_who_shows_no_known_key_gets_401_also_for_what_is_cached(
    headers: dict[str, str], path: str, ask: NewAsker, site: Site
) -> None:
    upstream = {"base_url": site.standin.base_url, "api_keys": ["sk-upstream"]}
    running = ask({**KEYS, "upstreams": {"openai": upstream}})
    running(chat("cached"), key="mp-ann")
    asked = site.standin.app.count()

    # A body that can't be parsed: who is unknown does not hear about that.
    for body in (chat("cached"), b"{"):
        content = body if isinstance(body, bytes) else None
        answer = httpx.post(
            f"{running.proxy.base_url}{path}",
            content=content,
            json=None if content is not None else body,
            headers=headers,
        )
        assert answer.status_code == 401
        assert error_of(answer)["code"] == "invalid_api_key"

    assert site.standin.app.count() == asked


@pytest.mark.parametrize("name", ["authorization", "api-key", "x-api-key"])
def test_B71_a_proxy_key_is_taken_in_each_place_that_clients_use(
    name: str, ask: NewAsker, site: Site
) -> None:
    upstream = {"base_url": site.standin.base_url, "api_keys": ["sk-upstream"]}
    running = ask({**KEYS, "upstreams": {"openai": upstream}})
    value = "Bearer mp-cid" if name == "authorization" else "mp-cid"

    answer = httpx.post(
        f"{running.proxy.base_url}/chat/completions", json=chat(name), headers={name: value}
    )

    assert answer.status_code == 200
    (seen,) = site.standin.app.requests
    assert seen.credential == "sk-upstream"
    sent = b"\n".join(key + b":" + text for key, text in seen.headers)
    assert b"mp-cid" not in sent


def test_B71_a_tenant_shares_entries_and_others_do_not(ask: NewAsker, site: Site) -> None:
    upstream = {"base_url": site.standin.base_url, "api_keys": ["sk-upstream"]}
    running = ask({**KEYS, "upstreams": {"openai": upstream}})
    body = chat("for the tenant")

    answers = [running(body, key=key) for key in ("mp-ann", "mp-ann-2", "mp-ben", "mp-cid")]

    assert [a.headers["x-cache"] for a in answers] == ["MISS", "HIT", "HIT", "MISS"]


@pytest.mark.parametrize("name", ["Authorization", "Api-Key", "X-Api-Key", "X-Goog-Api-Key"])
def test_B70_without_clients_every_credential_has_entries_of_its_own(
    name: str, ask: NewAsker, site: Site
) -> None:
    running = ask()

    def asked(value: str) -> str:
        answer = httpx.post(
            f"{running.proxy.base_url}/chat/completions",
            json=chat(f"{name} {running.key}"),
            headers={name: value},
        )
        return answer.headers["x-cache"]

    assert [asked("one"), asked("two"), asked("one"), asked("two"), asked("One")] == [
        "MISS",
        "MISS",
        "HIT",
        "HIT",
        "MISS",
    ]
    assert site.standin.app.requests[0].header(name) == "one"


def test_B71_open_clients_share_entries_and_never_see_the_upstreams_key(
    ask: NewAsker, site: Site
) -> None:
    upstream = {"base_url": site.standin.base_url, "api_keys": ["sk-upstream"]}
    running = ask({"clients": "open", "upstreams": {"openai": upstream}})

    answers = [running(key=key) for key in ("whatever", "sk-else")]

    assert [a.headers["x-cache"] for a in answers] == ["MISS", "HIT"]
    assert [request.credential for request in site.standin.app.requests] == ["sk-upstream"]


def test_B73_a_fault_of_the_proxy_itself_is_a_500_in_the_envelope_and_no_traceback(
    ask: NewAsker, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = ask()
    monkeypatch.setattr("proxy.engine.service.make_plan", _fail)

    answers = [running(), httpx.post(f"{running.proxy.url}/v1/embeddings", json={})]

    for answer in answers:
        assert answer.status_code == 500
        assert error_of(answer)["code"] == "internal_error"
        assert "secret detail" not in answer.text
        assert answer.headers["x-cache"] == "ERROR"
    monkeypatch.undo()
    still_works(running, site)


def test_B73_a_fault_behind_an_admin_route_is_a_500_in_the_envelope(
    ask: NewAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = ask(ADMIN)
    monkeypatch.setattr("proxy.engine.service.make_plan", _fail)

    answer = httpx.post(
        f"{running.proxy.url}/admin/explain", json=chat(), headers={"x-admin-key": "adm-1"}
    )

    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error"
    assert "secret detail" not in answer.text


def _fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("a secret detail")
