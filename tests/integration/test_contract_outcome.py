"""Over HTTP: what every answer tells of the cache, and how a client steers it."""

import hashlib
from typing import Any

import httpx
import pytest

from proxy.standin import Script, rate_limited, server_error
from tests.integration.ageing import Ages
from tests.integration.conftest import NewAsker
from tests.integration.contract import EMBEDDINGS_PATH, Site, cache_status, chat, error_of
from tests.integration.structured_fields import Token, parse_list

MESSAGES_RULE: dict[str, Any] = {
    "name": "messages-only",
    "model_names": ["*"],
    "include_in_key": ["messages"],
    "ttl_seconds": 600,
}


def rules(*given: dict[str, Any], **over: Any) -> dict[str, Any]:
    """Settings with these rules and no others."""
    return {"cache_settings": {"rules": list(given), **over}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        pytest.param("/chat/completions", chat(), id="chat"),
        pytest.param("/chat/completions", chat(stream=True), id="stream"),
        pytest.param(
            EMBEDDINGS_PATH, {"model": "text-embedding-3-small", "input": "a"}, id="embeddings"
        ),
    ],
)
def test_B10_a_hit_is_the_stored_answer_byte_for_byte(
    path: str, body: Any, ask: NewAsker, site: Site
) -> None:
    running = ask()

    first, second = running(body, path=path), running(body, path=path)

    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert second.content == first.content
    assert second.status_code == first.status_code == 200
    assert second.headers["content-type"] == first.headers["content-type"]
    assert int(second.headers["content-length"]) == len(first.content)
    assert site.standin.app.count() == 1


def test_B10_a_hit_keeps_bytes_that_no_serialiser_would_write(ask: NewAsker, site: Site) -> None:
    odd = (
        '{ "id":"c-1",\n\t"choices" : [{"index":0,"finish_reason":"stop",'
        '"message":{"role":"assistant","content":"\\u00e9\\/é"}}],"n":1.0e0 }\n'
    )
    site.standin.app.script(Script(body=odd, content_type="Application/JSON;charset=UTF-8"))
    running = ask()

    first, second = running(), running()

    assert second.headers["x-cache"] == "HIT"
    assert first.content == second.content == odd.encode()
    assert second.headers["content-type"] == "Application/JSON;charset=UTF-8"


def test_B11_a_hit_has_the_headers_of_the_allow_list_and_no_others(
    ask: NewAsker, site: Site
) -> None:
    kept = {"openai-version": "2031-01-01", "openai-model": "gpt-x", "x-request-id": "req_theirs"}
    dropped = {
        "set-cookie": "session=1",
        "cache-control": "max-age=5",
        "etag": '"1"',
        "vary": "accept",
        "server": "upstream/1",
        "via": "1.1 somewhere",
        "date": "Sat, 21 Nov 2020 00:00:00 GMT",
        "age": "99",
        "x-cache": "HIT from elsewhere",
        "retry-after": "9",
        "x-ratelimit-remaining-tokens": "3",
        "x-ratelimit-reset-tokens": "1s",
        "x-envoy-upstream-service-time": "7",
        "strict-transport-security": "max-age=1",
        "access-control-allow-origin": "*",
    }
    script = Script(headers=tuple({**kept, **dropped}.items()))
    site.standin.app.script(script)
    running = ask()

    first, second = running(), running()

    assert {name: first.headers.get(name) for name in kept} == kept
    assert first.headers["x-cache"] == "MISS", "an upstream's own word on another cache is no use"
    assert "age" not in first.headers
    told = {"content-type", "content-length", "cache-status", "x-cache", "x-cache-rule", "age"}
    ids = {"x-request-id", "x-upstream-request-id"}
    openai = {"openai-version", "openai-model", "openai-organization", "openai-processing-ms"}
    assert set(second.headers) == told | ids | openai
    assert second.headers["x-upstream-request-id"] == "req_theirs"
    assert second.headers["x-request-id"] != "req_theirs"
    assert second.headers["openai-version"] == "2031-01-01"


def test_B12_miss_then_hit(ask: NewAsker, site: Site) -> None:
    running = ask()

    first, second = running(), running()

    assert first.headers["x-cache"] == "MISS"
    assert cache_status(first) == {
        "fwd": Token("miss"),
        "fwd-status": 200,
        "ttl": 3600,
        "stored": True,
        "detail": "absent",
    }
    assert second.headers["x-cache"] == "HIT"
    status = cache_status(second)
    assert status.keys() == {"hit", "ttl"}
    assert status["hit"] is True
    assert 3590 <= int(status["ttl"]) <= 3600
    assert second.headers["age"].isdigit()
    assert first.headers["x-cache-rule"] == second.headers["x-cache-rule"] == "chat"


def test_B12_a_stream_tells_what_is_known_when_it_begins(ask: NewAsker) -> None:
    running = ask()

    first, second = running(chat(stream=True)), running(chat(stream=True))

    assert cache_status(first) == {"fwd": Token("miss"), "fwd-status": 200, "detail": "absent"}
    assert first.headers["x-cache"] == "MISS"
    assert cache_status(second).keys() == {"hit", "ttl"}
    assert second.headers["x-cache"] == "HIT"


UNLISTED = {**MESSAGES_RULE, "include_in_key": ["model"]}


@pytest.mark.parametrize(
    ("settings", "body", "headers", "detail", "reason"),
    [
        pytest.param(
            {"cache_settings": {"enabled": False}},
            chat(),
            {},
            "disabled",
            "disabled",
            id="disabled",
        ),
        pytest.param({}, chat(temperature=1.5), {}, "no-rule", "no-rule", id="no-rule"),
        pytest.param(
            rules({**MESSAGES_RULE, "include_in_key": ["seed"]}),
            chat(),
            {},
            "no-key-field",
            "no-key-field",
            id="no-key-field",
        ),
        pytest.param(
            rules(MESSAGES_RULE),
            chat(tools=[], n=2),
            {},
            "unlisted-field:n",
            "unlisted-field",
            id="guarded-field",
        ),
        pytest.param(
            rules({**MESSAGES_RULE, "unlisted_fields": "bypass"}),
            chat(**{'odd "name"; é\r\nx: y': 1}),
            {},
            'unlisted-field:odd "name"; ???x: y',
            "unlisted-field",
            id="any-unlisted-field",
        ),
        pytest.param(
            {},
            b'{"model":"gpt-4o-mini","messages":[],"messages":[]}',
            {},
            "unrepresentable",
            "unrepresentable",
            id="unrepresentable",
        ),
        pytest.param(
            {},
            chat(internal_model_name="x"),
            {},
            "reserved-field:internal_model_name",
            "reserved-field",
            id="reserved-field",
        ),
        pytest.param(
            {},
            chat(),
            {"cache-control": "no-cache, no-store"},
            "client-pass",
            "client-pass",
            id="client-pass",
        ),
    ],
)
def test_B12_every_bypass_tells_its_reason(
    settings: dict[str, Any],
    body: Any,
    headers: dict[str, str],
    detail: str,
    reason: str,
    ask: NewAsker,
) -> None:
    running = ask(settings)

    answers = [running(body, headers=headers) for _ in range(2)]

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["x-cache"] == "BYPASS"
        assert cache_status(answer) == {
            "fwd": Token("bypass"),
            "fwd-status": 200,
            "detail": detail,
        }
    assert running.counted(f'magic_proxy_bypass_total{{reason="{reason}"}}') == 2
    assert running.stored() == 0


def test_B12_a_bypass_names_the_field_in_few_characters(ask: NewAsker) -> None:
    running = ask(rules({**MESSAGES_RULE, "unlisted_fields": "bypass"}))

    answer = running(chat(**{"x" * 60_000: 1}))

    assert str(cache_status(answer)["detail"]).startswith("unlisted-field:xxxx")
    assert len(answer.headers["cache-status"]) < 300


def test_B12_a_bypassed_stream_tells_its_reason(ask: NewAsker) -> None:
    answer = ask()(chat(stream=True, temperature=2))

    assert answer.headers["x-cache"] == "BYPASS"
    assert cache_status(answer)["detail"] == "no-rule"
    assert answer.content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "headers", "status", "detail"),
    [
        pytest.param(b"{", {}, 400, "invalid_json", id="400"),
        pytest.param(
            chat(), {"content-type": "text/plain"}, 415, "unsupported_media_type", id="415"
        ),
        pytest.param(chat("x" * 5_000), {}, 413, "request_too_large", id="413"),
        pytest.param(chat(), {"authorization": "Bearer mp-no"}, 401, "invalid_api_key", id="401"),
        pytest.param(chat(model="nowhere"), {}, 404, "model_not_found", id="404"),
        pytest.param(chat(), {"cache-control": "only-if-cached"}, 504, "not_cached", id="504"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B12_errors_of_the_proxy_tell_that_they_are(
    body: Any,
    headers: dict[str, str],
    status: int,
    detail: str,
    stream: bool,
    ask: NewAsker,
    site: Site,
) -> None:
    key_hash = "sha256:" + hashlib.sha256(b"mp-ann").hexdigest()
    running = ask(
        {
            "server": {"max_body_bytes": 4_000},
            "clients": [{"name": "ann", "key_hashes": [key_hash]}],
            "models": {"gpt-4o-mini": {}},
            "unlisted_models": "refuse",
        }
    )
    if stream and isinstance(body, dict):
        body = {**body, "stream": True}

    answer = running(body, headers=headers, key="mp-ann")

    assert answer.status_code == status
    assert error_of(answer)["code"] == detail
    assert answer.headers["x-cache"] == "ERROR"
    assert cache_status(answer) == {"detail": detail}
    assert site.standin.app.requests == []
    assert running.counted('magic_proxy_requests_total{endpoint="chat",outcome="error"}') == 1


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B12_an_upstreams_error_tells_its_status(stream: bool, ask: NewAsker, site: Site) -> None:
    site.standin.app.script(rate_limited("7"))
    site.standin.app.script(server_error(503))
    running = ask()

    answers = [running(chat(stream=stream)) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [429, 503]
    for answer in answers:
        assert answer.headers["x-cache"] == "MISS"
        assert cache_status(answer) == {
            "fwd": Token("miss"),
            "fwd-status": answer.status_code,
            "detail": "absent, not-stored:status",
        }


def test_B12_an_upstreams_own_cache_status_stays_before_ours(ask: NewAsker, site: Site) -> None:
    site.standin.app.script(Script(headers=(("cache-status", "edge; hit; ttl=3"),)))

    answer = ask()()

    items = parse_list(answer.headers["cache-status"])
    assert [str(item.value) for item in items] == ["edge", "magic-proxy"]


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B12_the_key_is_shown_to_admins_only(stream: bool, ask: NewAsker) -> None:
    admin_hash = "sha256:" + hashlib.sha256(b"adm-1").hexdigest()
    running = ask({"admin": {"key_hashes": [admin_hash]}})
    body = chat(stream=stream)

    plain = [running(body) for _ in range(2)]
    wrong = running(body, headers={"x-admin-key": "adm-2"})
    admin = running(body, headers={"x-admin-key": "adm-1"})
    anew = running(chat("Other", stream=stream), headers={"x-admin-key": "adm-1"})

    assert all("key" not in cache_status(answer) for answer in [*plain, wrong])
    for answer in (admin, anew):
        key = cache_status(answer)["key"]
        assert isinstance(key, str)
        assert len(key) == 64
    assert cache_status(admin)["key"] != cache_status(anew)["key"]


def test_B12_the_key_is_shown_to_all_where_the_settings_say_so(ask: NewAsker) -> None:
    running = ask({"cache_settings": {"expose_key": True}})

    first, second = running(), running()
    refused = running(chat("Never"), headers={"cache-control": "only-if-cached"})

    assert cache_status(first)["key"] == cache_status(second)["key"]
    assert cache_status(refused)["key"] != cache_status(first)["key"]


def test_B12_age_grows_and_ttl_shrinks(ageing: Ages) -> None:
    here = ageing(ttl_seconds=2)
    here.ask()
    here.settled()
    told = []
    for seconds in (0.0, 0.75, 0.75):
        here.clock.advance(seconds)
        answer = here.ask()
        told.append((answer.headers["age"], cache_status(answer)["ttl"]))
    assert told == [("0", 2), ("0", 1), ("1", 0)]

    here.clock.advance(0.5)
    answer = here.ask()
    assert answer.headers["x-cache"] == "MISS"
    assert cache_status(answer)["detail"] in {"absent", "expired"}


ABSENT, FRESH = "absent", "fresh"
MISS: tuple[int, str, str | None] = (200, "MISS", "miss")
ASKED: tuple[int, str, str | None] = (200, "MISS", "request")
HIT: tuple[int, str, str | None] = (200, "HIT", None)
PASS: tuple[int, str, str | None] = (200, "BYPASS", "bypass")
REFUSED: tuple[int, str, str | None] = (504, "ERROR", None)


@pytest.mark.parametrize(
    ("control", "held", "expected", "replaced"),
    [
        # what is sent, what is stored, what comes back, whether this answer is stored after it
        ("no-cache", ABSENT, ASKED, True),
        ("no-cache", FRESH, ASKED, True),
        ("no-store", ABSENT, MISS, False),
        ("no-store", FRESH, HIT, False),
        ("no-cache, no-store", ABSENT, PASS, False),
        ("no-cache, no-store", FRESH, PASS, False),
        ("NO-STORE , No-Cache", FRESH, PASS, False),
        ("max-age=600", ABSENT, MISS, True),
        ("max-age=600", FRESH, HIT, False),
        ("max-age=0", FRESH, ASKED, True),
        ("max-age=soon", FRESH, ASKED, True),
        ('max-age="600"', FRESH, HIT, False),
        ("max-age=0, no-store", FRESH, ASKED, False),
        ("only-if-cached", ABSENT, REFUSED, False),
        ("only-if-cached", FRESH, HIT, False),
        ("only-if-cached, max-age=0", FRESH, REFUSED, False),
        ("only-if-cached, no-cache", FRESH, REFUSED, False),
        ("only-if-cached, no-cache, no-store", FRESH, REFUSED, False),
        ("only-if-cached, no-store", FRESH, HIT, False),
        ("max-stale=5, min-fresh=1, no-transform", FRESH, HIT, False),
    ],
)
def test_B13_client_cache_control(
    control: str,
    held: str,
    expected: tuple[int, str, str | None],
    replaced: bool,
    ask: NewAsker,
    site: Site,
) -> None:
    running = ask()
    before = running() if held == FRESH else None

    answer = running(headers={"cache-control": control})

    forwarded = cache_status(answer).get("fwd")
    assert (answer.status_code, answer.headers["x-cache"], forwarded) == expected
    after = running(headers={"cache-control": "only-if-cached"})
    if replaced:
        assert after.content == answer.content
    elif before is not None:
        assert after.content == before.content
    else:
        assert after.status_code == 504
        assert error_of(after)["type"] == "cache_error"
    asked = (before is not None) + (expected not in {HIT, REFUSED})
    assert site.standin.app.count() == asked


def test_B13_several_header_lines_count_as_one(ask: NewAsker) -> None:
    running = ask()
    running()

    answer = httpx.post(
        f"{running.proxy.base_url}/chat/completions",
        json=chat(),
        headers=[
            ("authorization", "Bearer sk-test"),
            ("cache-control", "no-cache"),
            ("cache-control", "no-store"),
        ],
    )

    assert answer.headers["x-cache"] == "BYPASS"


def test_B13_no_cache_on_a_stream_replaces_the_entry(ask: NewAsker) -> None:
    running = ask()
    running(chat(stream=True))

    anew = running(chat(stream=True), headers={"cache-control": "no-cache"})

    assert running(chat(stream=True)).content == anew.content


@pytest.mark.parametrize(
    "control", ["no-cache", "no-store", "no-cache, no-store", "max-age=0", "only-if-cached"]
)
def test_B13_a_rule_can_refuse_client_control(control: str, ask: NewAsker, site: Site) -> None:
    running = ask(rules({**MESSAGES_RULE, "client_control": False}))
    headers = {"cache-control": control}

    answers = [running(headers=headers).headers["x-cache"] for _ in range(2)]

    assert answers == ["MISS", "HIT"]
    assert site.standin.app.count() == 1


def raw_answer(*headers: str) -> Script:
    """An answer whose header names keep their capitals."""
    body = (
        '{"id":"c","choices":[{"index":0,"finish_reason":"stop",'
        '"message":{"role":"assistant","content":"hi"}}]}'
    )
    head = [
        "HTTP/1.1 200 OK",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return Script(raw="\r\n".join([*head, "", body]))


@pytest.mark.parametrize(
    ("headers", "ttl"),
    [
        pytest.param(["Cache-Control: no-store"], None, id="no-store"),
        pytest.param(["cache-control: private"], None, id="private"),
        pytest.param(["CACHE-CONTROL: max-age=0"], None, id="max-age-0"),
        pytest.param(["Cache-Control: public", "Cache-Control: no-store"], None, id="two-lines"),
        pytest.param(["Cache-Control: max-age=60"], 60, id="shorter"),
        pytest.param(["Cache-Control: max-age=60, s-maxage=30"], 30, id="shared"),
        pytest.param(["Cache-Control: max-age=86400"], 600, id="longer"),
        pytest.param([], 600, id="nothing-said"),
    ],
)
def test_B13_upstream_control_counts_where_a_rule_honors_it(
    headers: list[str], ttl: int | None, ask: NewAsker, site: Site
) -> None:
    site.standin.app.script(raw_answer(*headers))
    running = ask(rules({**MESSAGES_RULE, "honor_upstream": True}))

    first = running()

    second = running(headers={"cache-control": "only-if-cached"})
    if ttl is None:
        assert "stored" not in cache_status(first)
        assert "not-stored:no-lifetime" in str(cache_status(first)["detail"])
        assert second.status_code == 504
    else:
        assert cache_status(first)["ttl"] == ttl
        assert second.headers["x-cache"] == "HIT"


def test_B13_upstream_control_is_ignored_otherwise(ask: NewAsker, site: Site) -> None:
    site.standin.app.script(raw_answer("Cache-Control: no-store, private, max-age=0"))
    running = ask()

    assert [running().headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]
