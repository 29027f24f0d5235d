"""Over HTTP: which requests share an entry, and what goes upstream for them."""

import gzip
from typing import Any

import httpx
import orjson
import pytest

from proxy.standin import Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import EMBEDDINGS_PATH, Site, cache_status, chat, error_of

RULE: dict[str, Any] = {
    "name": "one",
    "model_names": ["*"],
    "include_in_key": ["messages"],
    "ttl_seconds": 600,
}


def rules(*given: dict[str, Any]) -> dict[str, Any]:
    return {"cache_settings": {"rules": [{**RULE, **each} for each in given]}}


@pytest.mark.parametrize(
    ("policy", "field", "outcome"),
    [
        ("ignore", {"tools": []}, "HIT"),
        ("ignore", {"anything": 1}, "HIT"),
        ("guard", {"temperature": 0.5}, "HIT"),
        ("guard", {"anything": 1}, "HIT"),
        ("guard", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "BYPASS"),
        ("guard", {"tool_choice": "none"}, "BYPASS"),
        ("guard", {"functions": []}, "BYPASS"),
        ("guard", {"function_call": "none"}, "BYPASS"),
        ("guard", {"response_format": {"type": "json_object"}}, "BYPASS"),
        ("guard", {"n": 2}, "BYPASS"),
        ("guard", {"logprobs": True}, "BYPASS"),
        ("guard", {"top_logprobs": 1}, "BYPASS"),
        ("guard", {"modalities": ["text"]}, "BYPASS"),
        ("guard", {"audio": {}}, "BYPASS"),
        ("bypass", {"temperature": 0.5}, "BYPASS"),
        ("bypass", {"anything": 1}, "BYPASS"),
        ("bypass", {"user": "ann"}, "HIT"),
        ("bypass", {"metadata": {"a": "b"}}, "HIT"),
        ("bypass", {"store": True}, "HIT"),
        ("bypass", {"service_tier": "flex"}, "HIT"),
        ("bypass", {"safety_identifier": "x"}, "HIT"),
        ("bypass", {"prompt_cache_key": "x"}, "HIT"),
        ("bypass", {"stream": False}, "HIT"),
        ("bypass", {"stream_options": None}, "HIT"),
    ],
)
def test_B6_a_field_that_is_not_in_the_key(
    policy: str, field: dict[str, Any], outcome: str, ask: NewAsker, site: Site
) -> None:
    running = ask(rules({"unlisted_fields": policy}))
    running(chat())

    answer = running(chat(**field))

    assert answer.headers["x-cache"] == outcome
    if outcome == "BYPASS":
        (name,) = field
        assert cache_status(answer)["detail"] == f"unlisted-field:{name}"
        assert site.standin.app.requests[-1].json()[name] == field[name]


@pytest.mark.parametrize(
    ("field", "outcome"), [("dimensions", "BYPASS"), ("encoding_format", "HIT"), ("user", "HIT")]
)
def test_B6_B33_embeddings_entries_serve_every_encoding_but_not_every_dimension(
    field: str, outcome: str, ask: NewAsker
) -> None:
    running = ask(rules({"include_in_key": ["input"]}))
    body = {"model": "text-embedding-3-small", "input": "a"}
    value = {"dimensions": 4, "encoding_format": "base64", "user": "u"}[field]

    running(body, path=EMBEDDINGS_PATH)

    answer = running({**body, field: value}, path=EMBEDDINGS_PATH)
    assert answer.headers["x-cache"] == outcome


def test_B7_normalize_changes_what_is_compared_and_never_what_is_sent(
    ask: NewAsker, site: Site
) -> None:
    dates = {"path": "messages[*].content", "pattern": r"\d{4}-\d\d-\d\d", "replacement": "<date>"}
    running = ask(rules({"normalize": [dates]}))
    body = b'{"model":"m", "messages":[{"role":"user","content":"Today is 2026-01-02."}]}'

    first = running(body)
    same_but_for_the_date = running(body.replace(b"2026-01-02", b"2027-03-04"))
    another = running(body.replace(b"Today", b"Tomorrow"))

    assert [answer.headers["x-cache"] for answer in (first, same_but_for_the_date, another)] == [
        "MISS",
        "HIT",
        "MISS",
    ]
    assert site.standin.app.requests[0].body == body


def test_B9_the_first_rule_whose_conditions_all_hold_wins(ask: NewAsker, site: Site) -> None:
    running = ask(
        {
            "cache_settings": {
                "rules": [
                    {
                        **RULE,
                        "name": "exact",
                        "model_names": ["gpt-4o-mini"],
                        "when": {"max_temperature": 0},
                    },
                    {**RULE, "name": "tagged", "when": {"headers": {"X-Team": "re*"}}},
                    {
                        **RULE,
                        "name": "short",
                        "when": {"max_messages": 1, "has_user_message": True},
                    },
                    {**RULE, "name": "glob", "model_names": ["gpt-4*"]},
                    {
                        **RULE,
                        "name": "vectors",
                        "include_in_key": ["input"],
                        "endpoints": ["embeddings"],
                    },
                ]
            }
        }
    )
    two = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]

    def rule_of(
        body: dict[str, Any], path: str = "/chat/completions", **headers: str
    ) -> str | None:
        told: str | None = running(body, path=path, headers=headers).headers.get("x-cache-rule")
        return told

    assert rule_of(chat(temperature=0)) == "exact"
    assert rule_of(chat()) == "short", "a temperature that is absent counts as 1.0"
    assert rule_of(chat(temperature=0), **{"x-team": "research"}) == "exact"
    assert rule_of(chat(), **{"x-team": "research"}) == "tagged"
    assert rule_of(chat(), **{"x-team": "sales"}) == "short"
    assert rule_of(chat(messages=two)) == "glob"
    assert rule_of(chat(messages=[{"role": "system", "content": "s"}])) == "glob"
    assert rule_of(chat(messages=two, model="o3")) is None
    assert rule_of({"model": "e", "input": "x"}, path=EMBEDDINGS_PATH) == "vectors"


def test_B9_an_alias_falls_under_the_rules_of_its_model(ask: NewAsker, site: Site) -> None:
    running = ask(
        {
            "cache_settings": {"rules": [{**RULE, "name": "main-rule", "model_names": ["main"]}]},
            "models": {"main": {"model": "gpt-4o-2024"}},
            "aliases": {"gpt-4": "main"},
        }
    )

    by_alias, by_name = running(chat(model="gpt-4")), running(chat(model="main"))
    other = running(chat(model="gpt-4o-2024"))

    assert by_alias.headers["x-cache-rule"] == "main-rule"
    assert by_name.headers["x-cache"] == "HIT"
    assert site.standin.app.requests[0].json()["model"] == "gpt-4o-2024"
    assert other.headers["x-cache"] == "BYPASS"


HOLD = b'"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model":"m",' + HOLD + b',"model":"m"}', id="same-value-twice"),
        pytest.param(
            b'{"model":"m","messages":[{"role":"user","role":"system"}]}', id="in-a-message"
        ),
        pytest.param(b'{"model":"m",' + HOLD + b',"x":[[{"a":{"b":1,"b":2}}]]}', id="deep"),
        pytest.param(
            b'{"model":"m","messages":[{"role":"user","content":"good"}],'
            b'"m\\u0065ssages":[{"role":"user","content":"evil"}]}',
            id="escaped-name",
        ),
        pytest.param(
            b'{"model":"m","a":{"b\\u003a":1,"b:":2},' + HOLD + b"}", id="escaped-colon-in-a-name"
        ),
        pytest.param(
            # The dropped member's colon is made up for by one in a string.
            b'{"model":"m","messages":[],"messages":[{"role":"user","content":"\\u003a"}]}',
            id="escaped-colon-in-a-string",
        ),
        pytest.param(b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', id="half"),
        pytest.param(b'{"model":"m",' + HOLD + b',"\\udfff":1}', id="half-in-a-name"),
        pytest.param(b'{"model":"\\ud800",' + HOLD + b"}", id="half-in-the-model"),
        pytest.param(b'{"model":"m",' + HOLD + b',"seed":1e400}', id="beyond-a-double"),
    ],
)
def test_B18_what_parsers_read_differently_is_forwarded_as_it_is_and_never_stored(
    body: bytes, ask: NewAsker, site: Site
) -> None:
    site.standin.app.script(
        Script(
            body={"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": "x"}}]}
        ),
        times=None,
    )
    running = ask({"server": {"access_log": True}})

    answers = [running(body) for _ in range(2)]

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["x-cache"] == "BYPASS"
        assert cache_status(answer)["detail"] == "unrepresentable"
    assert [request.body for request in site.standin.app.requests] == [body, body]
    assert running.stored() == 0


def test_B18_a_poisoned_request_does_not_answer_the_plain_one(ask: NewAsker, site: Site) -> None:
    running = ask()
    running(
        b'{"model":"m","messages":[{"role":"user","content":"evil"}],'
        b'"messages":[{"role":"user","content":"good\\u003a"}]}'
    )

    plain = running(b'{"model":"m","messages":[{"role":"user","content":"good:"}]}')

    assert plain.headers["x-cache"] == "MISS"


def test_B18_integers_of_any_size_are_told_apart(ask: NewAsker) -> None:
    running = ask()
    big = 2**70

    answers = [running(chat(seed=0) | {"x": 1})]
    answers += [
        running(b'{"model":"m",' + HOLD + b',"seed":%d}' % seed) for seed in (big, big + 1, big)
    ]

    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "MISS", "MISS", "HIT"]


@pytest.mark.parametrize("name", ["OpenAI-Organization", "OpenAI-Project", "X-Workspace"])
def test_B19_headers_that_choose_an_account_split_entries(
    name: str, ask: NewAsker, site: Site
) -> None:
    running = ask(
        {
            "upstreams": {
                "openai": {"base_url": site.standin.base_url, "account_headers": ["x-workspace"]}
            }
        }
    )

    answers = [
        running(headers={name: value} if value else {}).headers["x-cache"]
        for value in ("", "a", "b", "a", "")
    ]

    assert answers == ["MISS", "MISS", "MISS", "HIT", "HIT"]
    assert site.standin.app.requests[1].header(name) == "a"


def test_B70_where_everybody_may_in_an_upstream_without_keys_still_splits_by_credential(
    ask: NewAsker, site: Site
) -> None:
    keyed = {"base_url": site.standin.base_url, "api_keys": ["sk-pool"]}
    running = ask(
        {
            "clients": "open",
            "upstreams": {"keyed": keyed},
            "models": {"own": {"upstream": "openai"}, "pooled": {"upstream": "keyed"}},
            "default_upstream": "openai",
        }
    )

    def asked(model: str) -> list[str]:
        body = chat(model=model)
        return [running(body, key=key).headers["x-cache"] for key in ("sk-a", "sk-b", "sk-a")]

    assert asked("own") == ["MISS", "MISS", "HIT"]
    assert asked("pooled") == ["MISS", "HIT", "HIT"]


def test_B70_a_credential_in_an_unusual_header_splits_entries(ask: NewAsker, site: Site) -> None:
    auth = {"header": "Ocp-Apim-Subscription-Key", "scheme": ""}
    running = ask({"upstreams": {"openai": {"base_url": site.standin.base_url, "auth": auth}}})

    answers = [
        running(headers={"Ocp-Apim-Subscription-Key": key}).headers["x-cache"]
        for key in ("a", "b", "a")
    ]

    assert answers == ["MISS", "MISS", "HIT"]


def test_B19_the_query_string_splits_entries(ask: NewAsker, site: Site) -> None:
    running = ask()
    paths = ["/chat/completions" + query for query in ("", "?v=1", "?v=2", "?v=1", "?", "")]

    answers = [running(path=path).headers["x-cache"] for path in paths]

    assert answers == ["MISS", "MISS", "MISS", "HIT", "HIT", "HIT"]
    assert [request.query for request in site.standin.app.requests] == ["", "v=1", "v=2"]


@pytest.mark.parametrize("other", ["User-Agent", "X-Stainless-Lang", "Accept", "Cookie", "X-Any"])
def test_B19_other_headers_do_not(other: str, ask: NewAsker) -> None:
    running = ask()

    assert running(headers={other: "a"}).headers["x-cache"] == "MISS"
    assert running(headers={other: "b"}).headers["x-cache"] == "HIT"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("first", ["gzip", "identity", "br", "gzip, br, zstd", ""])
def test_B19_accept_encoding_does_not_split_and_every_client_can_read_its_answer(
    first: str, stream: bool, ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(
        Script(encoding="gzip"),
        when=lambda request: "gzip" in (request.header("accept-encoding") or ""),
    )
    body = chat(stream=stream)

    miss = running(body, headers={"accept-encoding": first})
    plain = running(body, headers={"accept-encoding": "identity"})
    coded = running(body, headers={"accept-encoding": "gzip"})

    assert [a.headers["x-cache"] for a in (miss, plain, coded)] == ["MISS", "HIT", "HIT"]
    # httpx has decoded what was coded.
    assert miss.content == plain.content == coded.content
    assert "content-encoding" not in plain.headers
    accepted = [coding.strip() for coding in first.split(",")]
    assert miss.headers.get("content-encoding", "identity") in {*accepted, "identity"}


def test_B19_a_coded_answer_reaches_the_client_as_it_came(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(encoding="gzip"))

    with httpx.stream(
        "POST",
        f"{running.proxy.base_url}/chat/completions",
        json=chat(),
        headers={"authorization": f"Bearer {running.key}", "accept-encoding": "gzip"},
    ) as answer:
        raw = b"".join(answer.iter_raw())

    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(raw) == running().content
    assert int(answer.headers["content-length"]) == len(raw)


@pytest.mark.parametrize(
    ("accepts", "coding"),
    [
        ("gzip, identity;q=0", "gzip"),
        ("gzip;q=0.5, *;q=0", "gzip"),
        ("identity; q=0, gzip", "gzip"),
        ("*;q=0, identity", None),
        ("gzip;q=0, *", None),
        ("gzip;q=0", None),
        # Nothing that this proxy can write is accepted: plain bytes are the lesser evil (RFC 9110
        # section 12.5.3 leaves it to the server).
        ("br, identity;q=0", None),
        ("gzip;q=0, identity;q=0", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B19_a_client_that_refuses_plain_bytes_gets_them_coded(
    accepts: str, coding: str | None, stream: bool, ask: NewAsker
) -> None:
    running = ask()
    plain = running(chat(stream=stream))

    answer = running(chat(stream=stream), headers={"accept-encoding": accepts})

    assert answer.headers["x-cache"] == "HIT"
    assert answer.headers.get("content-encoding") == coding
    assert answer.content == plain.content


def test_B33_plain_curl_and_the_sdk_share_an_embedding(ask: NewAsker) -> None:
    running = ask()
    body = {"model": "text-embedding-3-small", "input": ["a", "b"]}

    first = running(body, path=EMBEDDINGS_PATH)
    second = running({**body, "encoding_format": "base64"}, path=EMBEDDINGS_PATH)
    third = running({**body, "encoding_format": "float"}, path=EMBEDDINGS_PATH)

    assert [a.headers["x-cache"] for a in (first, second, third)] == ["MISS", "HIT", "HIT"]
    assert third.content == first.content
    assert isinstance(orjson.loads(second.content)["data"][0]["embedding"], str)


def test_B73_a_model_that_a_closed_list_does_not_name(ask: NewAsker, site: Site) -> None:
    running = ask({"models": {"main": {}}, "unlisted_models": "refuse"})

    refused = running(chat(model="gpt-4o"))
    half = running(b'{"model":"\\ud800","messages":[]}')

    assert (refused.status_code, half.status_code) == (404, 404)
    assert error_of(refused)["param"] == "model"
    assert error_of(half)["code"] == "model_not_found"
    assert site.standin.app.requests == []
