"""The URL and the body of one attempt."""

import orjson
import pytest

from proxy.errors import RequestError
from proxy.upstream.base import Outgoing, Profile
from proxy.upstream.config import UpstreamConfig
from proxy.upstream.outgoing import body_for, is_repeatable, model_in, url_for

CONFIG = UpstreamConfig("up", "https://up.example/v1/")
USAGE = UpstreamConfig("up", "https://up.example/v1", request_usage=True)
AZURE = UpstreamConfig("az", "https://az.example/x", query=(("api-version", "2026-01 a"),))


def outgoing(path: str = "/chat/completions", query: str = "", **more: object) -> Outgoing:
    return Outgoing("POST", path, query, (), b"{}", **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "path", "query", "url"),
    [
        (CONFIG, "/models", "", "https://up.example/v1/models"),
        (CONFIG, "/a%2Fb;x=1", "q=[1]&r=+", "https://up.example/v1/a%2Fb;x=1?q=[1]&r=+"),
        (AZURE, "/m", "", "https://az.example/x/m?api-version=2026-01%20a"),
        (AZURE, "/m", "a=%5B&b", "https://az.example/x/m?a=%5B&b&api-version=2026-01%20a"),
        (AZURE, "/m", "api-version=evil", "https://az.example/x/m?api-version=2026-01%20a"),
        (
            AZURE,
            "/m",
            "api%2Dversion=evil&a=1",
            "https://az.example/x/m?a=1&api-version=2026-01%20a",
        ),
    ],
)
def test_B60_the_url_of_an_attempt(config: UpstreamConfig, path: str, query: str, url: str) -> None:
    assert url_for(config, Profile("p", "up"), outgoing(path, query)) == url


@pytest.mark.parametrize(
    ("query", "named", "sent"),
    [
        ("model=rt", "rt", "model=a%2Fb%20c"),
        ("x=%2F&model=rt%2D1+&y=+&&", "rt-1 ", "x=%2F&model=a%2Fb%20c&y=+&&"),
        ("m%6Fdel=rt&model=rt", "rt", "model=a%2Fb%20c&model=a%2Fb%20c"),
        ("model=", None, "model=a%2Fb%20c"),
        ("intent=transcription&models=1", None, "intent=transcription&models=1"),
        ("", None, ""),
    ],
)
def test_B60_the_model_of_a_websocket_is_the_one_in_its_query(
    query: str, named: str | None, sent: str
) -> None:
    socket = outgoing("/realtime", query, upgrade=True)
    assert model_in(query) == named
    url = "https://up.example/v1/realtime"
    theirs = Profile("p", "up", model="a/b c")
    assert url_for(CONFIG, theirs, socket).removeprefix(url).lstrip("?") == sent
    assert url_for(CONFIG, Profile("p", "up"), socket).removeprefix(url).lstrip("?") == query
    plain = outgoing("/realtime", query)
    assert url_for(CONFIG, theirs, plain).removeprefix(url).lstrip("?") == query


def test_B73_a_query_that_names_two_models_is_refused() -> None:
    with pytest.raises(RequestError):
        model_in("model=a&model=b")


RAW = b'{ "temperature": 1.0,\n "model":"gpt4", "n" : 1e0, "x":"\\u00e9" }'


@pytest.mark.parametrize(
    "profile",
    [
        Profile("p", "up"),
        Profile("p", "up", model="gpt4"),
        Profile("p", "up", params={"temperature": 1.0}),
        Profile("p", "up", default_params={"temperature": 0, "x": ""}),
    ],
)
def test_B61_what_needs_no_change_is_the_same_object(profile: Profile) -> None:
    body, asked = body_for(CONFIG, profile, outgoing(), RAW)
    assert body is RAW
    assert not asked


@pytest.mark.parametrize("raw", [b"", b"[1]", b'"x"', b"{", b"\xff"])
def test_B61_what_is_no_object_is_not_changed(raw: bytes) -> None:
    assert body_for(CONFIG, Profile("p", "up", model="m"), outgoing(), raw) == (raw, False)


def test_B61_only_what_differs_is_rewritten() -> None:
    body, _ = body_for(CONFIG, Profile("p", "up", model="gpt-4o"), outgoing(), RAW)
    assert body == RAW.replace(b'"gpt4"', b'"gpt-4o"')


def test_params_override_and_defaults_fill() -> None:
    profile = Profile(
        "p", "up", model="m", params={"n": 2, "seed": 7}, default_params={"x": "", "top_p": 0.5}
    )
    body, _ = body_for(CONFIG, profile, outgoing(), RAW)
    assert orjson.loads(body) == {
        "temperature": 1.0,
        "model": "m",
        "n": 2,
        "x": "é",
        "seed": 7,
        "top_p": 0.5,
    }


def test_a_flag_is_not_taken_for_a_number() -> None:
    body, _ = body_for(CONFIG, Profile("p", "up", params={"n": True}), outgoing(), b'{"n":1}')
    assert body == b'{"n":true}'


def test_B24_usage_is_asked_for_where_both_allow_it() -> None:
    raw, profile = b'{"stream":true}', Profile("p", "up")
    body, asked = body_for(USAGE, profile, outgoing(request_usage=True), raw)
    assert asked
    assert orjson.loads(body) == {"stream": True, "stream_options": {"include_usage": True}}
    assert body_for(USAGE, profile, outgoing(), raw) == (raw, False)
    assert body_for(CONFIG, profile, outgoing(request_usage=True), raw) == (raw, False)


def test_B24_usage_that_the_client_asked_for_is_not_ours() -> None:
    raw = b'{"stream":true,"stream_options":{"include_usage":true}}'
    assert body_for(USAGE, Profile("p", "up"), outgoing(request_usage=True), raw) == (raw, False)


@pytest.mark.parametrize(
    ("method", "path", "repeatable"),
    [
        ("POST", "/chat/completions", True),
        ("POST", "/embeddings", True),
        ("POST", "/embeddings/", True),
        ("GET", "/models", True),
        ("POST", "/files", False),
        ("POST", "/fine_tuning/jobs", False),
        ("POST", "/responses", False),
        ("DELETE", "/embeddings", False),
        ("DELETE", "/files/x", False),
    ],
)
def test_B63_what_can_be_worked_on_twice(method: str, path: str, repeatable: bool) -> None:
    assert is_repeatable(Outgoing(method, path, "", ())) is repeatable
