"""The OpenAI SDK through the proxy: chat that is not streamed."""

import openai
import pytest
from pydantic import BaseModel

from proxy.standin import RunningStandIn, Script, error_in_ok, rate_limited, server_error
from tests.integration.conftest import NewClient
from tests.integration.sdk import CHAT, WEATHER_TOOL, ask
from tests.integration.servers import ProxyFactory


def test_B12_first_call_is_a_miss_and_the_second_a_hit(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    first, second = ask(sdk), ask(sdk)

    assert (first.x_cache, second.x_cache) == ("MISS", "HIT")
    assert first.cache_status[:3] == ["magic-proxy", "fwd=miss", "fwd-status=200"]
    assert "stored" in first.cache_status
    assert second.cache_status[:2] == ["magic-proxy", "hit"]
    assert any(item.startswith("ttl=") for item in second.cache_status)
    assert "age" not in first.headers
    assert int(second.headers["age"]) >= 0
    assert first.headers["x-cache-rule"] == second.headers["x-cache-rule"] == "chat"
    assert standin.app.count("/chat/completions") == 1


def test_B10_a_hit_returns_the_same_bytes_and_content_type(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())

    first = sdk.chat.completions.with_raw_response.create(**CHAT)
    second = sdk.chat.completions.with_raw_response.create(**CHAT)

    assert second.headers["x-cache"] == "HIT"
    assert second.content == first.content
    assert second.status_code == first.status_code == 200
    assert second.headers["content-type"] == first.headers["content-type"] == "application/json"


def test_B11_a_hit_has_no_cookie_and_no_rate_limit_of_another_call(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())

    first, second = ask(sdk), ask(sdk)

    assert "set-cookie" in first.headers
    assert "x-ratelimit-remaining-requests" in first.headers
    for name in ("set-cookie", "x-ratelimit-remaining-requests", "x-ratelimit-limit-requests"):
        assert name not in second.headers
    assert second.headers["openai-version"] == "2020-10-01"
    assert second.headers["x-upstream-request-id"].startswith("req_")


def test_B16_B17_usage_and_id_are_replayed_and_each_answer_has_its_own_request_id(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())

    first, second = ask(sdk), ask(sdk)

    assert second.x_cache == "HIT"
    assert second.value == first.value
    assert first.value.usage is not None
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_B4_another_question_is_a_miss(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    ask(sdk)
    other = ask(sdk, messages=[{"role": "user", "content": "Name four rivers."}])
    warmer = ask(sdk, temperature=0.3)

    assert (other.x_cache, warmer.x_cache) == ("MISS", "MISS")
    assert standin.app.count() == 3


def test_B13_client_cache_control(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    first = ask(sdk)

    anew = ask(sdk, extra_headers={"Cache-Control": "no-cache"})
    after = ask(sdk)

    assert anew.x_cache == "MISS"
    assert "fwd=request" in anew.cache_status
    assert anew.value.id != first.value.id
    assert (after.x_cache, after.value.id) == ("HIT", anew.value.id)
    with pytest.raises(openai.APIStatusError) as refused:
        ask(
            sdk,
            messages=[{"role": "user", "content": "Never asked."}],
            extra_headers={"Cache-Control": "only-if-cached"},
        )
    assert refused.value.status_code == 504
    assert refused.value.code == "not_cached"
    assert standin.app.count() == 2


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(error_in_ok(), "error-body", id="error-in-200"),
        pytest.param(
            Script(extra={"error": {"message": "half of it"}}), "error-body", id="error-and-answer"
        ),
        pytest.param(Script(finish_reason="length"), "finish-reason", id="cut-short"),
        pytest.param(Script(finish_reason="content_filter"), "finish-reason", id="filtered"),
        pytest.param(Script(arguments='{"city": '), "tool-arguments", id="broken-arguments"),
        pytest.param(
            Script(body="<html>busy</html>", content_type="text/html"),
            "content-type",
            id="not-json",
        ),
        pytest.param(Script(body="{}"), "unparsable", id="no-completion"),
    ],
)
def test_B14_what_is_no_complete_success_is_not_stored(
    script: Script, reason: str, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(script)
    request = {**CHAT, "tools": [WEATHER_TOOL]} if script.arguments else CHAT

    bad, good, again = (sdk.chat.completions.with_raw_response.create(**request) for _ in range(3))

    assert "stored" not in bad.headers["cache-status"].split("; ")
    assert f"not-stored:{reason}" in bad.headers["cache-status"]
    assert [good.headers["x-cache"], again.headers["x-cache"]] == ["MISS", "HIT"]


def test_B65_upstream_errors_reach_the_sdk_as_they_are_and_are_not_stored(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    standin.app.script(rate_limited("17", ("x-ratelimit-reset-requests", "17s")), times=1)
    with pytest.raises(openai.RateLimitError) as limited:
        ask(sdk)
    standin.app.script(server_error(), times=None)
    with pytest.raises(openai.InternalServerError) as failed:
        ask(sdk)

    headers = limited.value.response.headers
    assert limited.value.code == "rate_limit_exceeded"
    assert headers["retry-after"] == "17"
    assert headers["x-ratelimit-reset-requests"] == "17s"
    assert headers["x-cache"] == "MISS"
    assert "fwd-status=429" in headers["cache-status"]
    assert failed.value.status_code == 500
    standin.app.reset()
    assert ask(sdk).x_cache == "MISS"


class River(BaseModel):
    name: str
    length_km: int
    countries: list[str]
    longest: bool


def test_B12_structured_output_is_parsed_from_a_hit(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    answers = [
        sdk.chat.completions.with_raw_response.parse(**CHAT, response_format=River)
        for _ in range(2)
    ]

    assert [answer.headers["x-cache"] for answer in answers] == ["MISS", "HIT"]
    first, second = (answer.parse().choices[0].message.parsed for answer in answers)
    assert isinstance(first, River)
    assert first == second
    assert ask(sdk).x_cache == "MISS", "plain text is another answer"


@pytest.mark.anyio
async def test_B12_the_async_client_sees_the_same(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy()
    async with openai.AsyncOpenAI(
        base_url=running.base_url, api_key="sk-test", max_retries=0
    ) as sdk:
        first = await sdk.chat.completions.with_raw_response.create(**CHAT)
        second = await sdk.chat.completions.with_raw_response.create(**CHAT)

    assert (first.headers["x-cache"], second.headers["x-cache"]) == ("MISS", "HIT")
    assert first.parse() == second.parse()
    assert standin.app.count() == 1


def test_B70_another_credential_does_not_read_the_entry(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    running = proxy()
    mine, theirs = client(running, "sk-mine"), client(running, "sk-theirs")

    ask(mine)

    assert ask(theirs).x_cache == "MISS"
    assert ask(mine).x_cache == "HIT"
    assert [request.credential for request in standin.app.requests] == ["sk-mine", "sk-theirs"]
