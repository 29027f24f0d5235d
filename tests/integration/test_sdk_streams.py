"""The OpenAI SDK through the proxy: streams, and both forms out of one entry."""

from typing import Any

import httpx
import openai
import pytest

from proxy.standin import Close, RunningStandIn, Script
from tests.integration.conftest import NewClient
from tests.integration.sdk import (
    CHAT,
    WEATHER_TOOL,
    ask,
    ask_assembled,
    ask_streamed,
    said,
    text_of,
)
from tests.integration.servers import ProxyFactory

USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}


def test_B22_first_stream_is_a_miss_and_the_second_a_hit_with_the_same_events(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    first, second = ask_streamed(sdk), ask_streamed(sdk)

    assert (first.x_cache, second.x_cache) == ("MISS", "HIT")
    assert second.cache_status[:2] == ["magic-proxy", "hit"]
    assert second.headers["content-type"].startswith("text/event-stream")
    assert second.value == first.value
    assert text_of(second.value)
    assert standin.app.count() == 1


@pytest.mark.parametrize(
    "request_members",
    [
        pytest.param({}, id="text"),
        pytest.param({"n": 3}, id="three-choices"),
        pytest.param({"logprobs": True, "top_logprobs": 2}, id="logprobs"),
        pytest.param({"tools": [WEATHER_TOOL]}, id="tools"),
        pytest.param(USAGE, id="usage"),
    ],
)
def test_B22_a_replayed_stream_loses_nothing(
    request_members: dict[str, Any], proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())

    first, second = (ask_streamed(sdk, **request_members) for _ in range(2))

    assert (first.x_cache, second.x_cache) == ("MISS", "HIT")
    assert second.value == first.value


def test_B22_a_replayed_stream_keeps_reasoning_refusals_and_unknown_members(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(
        Script(reasoning="Rivers flow.", refusal="I would rather not.", extra={"x_new": [1]})
    )

    first, second = ask_streamed(sdk), ask_streamed(sdk)

    assert second.x_cache == "HIT"
    assert second.value == first.value
    assert "Rivers flow." in "".join(
        getattr(chunk.choices[0].delta, "reasoning_content", None) or "" for chunk in second.value
    )
    assert all(chunk.model_extra == {"x_new": [1]} for chunk in second.value)


@pytest.mark.parametrize(
    "request_members",
    [
        pytest.param({}, id="text"),
        pytest.param({"n": 2}, id="two-choices"),
        pytest.param({"logprobs": True, "top_logprobs": 1}, id="logprobs"),
        pytest.param({"tools": [WEATHER_TOOL]}, id="tools"),
    ],
)
def test_B23_streamed_after_unstreamed_is_a_hit_that_assembles_to_the_same(
    request_members: dict[str, Any],
    proxy: ProxyFactory,
    client: NewClient,
    standin: RunningStandIn,
) -> None:
    sdk = client(proxy())

    stored = ask(sdk, **request_members)
    streamed = ask_streamed(sdk, **request_members)
    assembled = ask_assembled(sdk, **request_members)

    assert (stored.x_cache, streamed.x_cache) == ("MISS", "HIT")
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert said(assembled) == said(stored.value)
    assert standin.app.count() == 1


@pytest.mark.parametrize(
    "request_members",
    [
        pytest.param({}, id="text"),
        pytest.param({"n": 2}, id="two-choices"),
        pytest.param({"logprobs": True, "top_logprobs": 1}, id="logprobs"),
        pytest.param({"tools": [WEATHER_TOOL]}, id="tools"),
    ],
)
def test_B23_unstreamed_after_streamed_is_a_hit_with_the_assembled_completion(
    request_members: dict[str, Any],
    proxy: ProxyFactory,
    client: NewClient,
    standin: RunningStandIn,
) -> None:
    sdk = client(proxy())

    streamed = ask_streamed(sdk, **request_members)
    assembled = ask_assembled(sdk, **request_members)
    whole = ask(sdk, **request_members)

    assert (streamed.x_cache, whole.x_cache) == ("MISS", "HIT")
    assert whole.headers["content-type"] == "application/json"
    assert whole.value.object == "chat.completion"
    assert said(whole.value) == said(assembled)
    assert standin.app.count() == 1


def test_B24_usage_is_streamed_if_and_only_if_asked_for(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())

    stored = ask(sdk)
    without = ask_streamed(sdk)
    with_usage = ask_streamed(sdk, **USAGE)

    assert (without.x_cache, with_usage.x_cache) == ("HIT", "HIT")
    assert all(chunk.choices and chunk.usage is None for chunk in without.value)
    *chunks, last = with_usage.value
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage) == ([], stored.value.usage)


def test_B24_usage_of_a_stored_stream_is_taken_out_for_who_did_not_ask(
    proxy: ProxyFactory, client: NewClient
) -> None:
    sdk = client(proxy())

    asked = ask_streamed(sdk, **USAGE)
    without = ask_streamed(sdk)
    whole = ask(sdk)

    assert (asked.x_cache, without.x_cache, whole.x_cache) == ("MISS", "HIT", "HIT")
    assert all(chunk.choices and chunk.usage is None for chunk in without.value)
    assert text_of(without.value) == text_of(asked.value)
    assert whole.value.usage == asked.value[-1].usage


def test_B24_usage_that_is_not_known_is_asked_for_upstream(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    ask_streamed(sdk)
    asked, again = ask_streamed(sdk, **USAGE), ask_streamed(sdk, **USAGE)

    assert (asked.x_cache, again.x_cache) == ("MISS", "HIT")
    assert 'detail="form"' in asked.cache_status
    assert asked.value[-1].usage is not None
    assert again.value == asked.value


def test_B24_the_proxy_asks_for_usage_where_the_upstream_is_set_so(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy({"upstreams": {"openai": {"request_usage": True}}}))

    first = ask_streamed(sdk)
    asked = ask_streamed(sdk, **USAGE)

    assert standin.app.requests[0].json()["stream_options"] == {"include_usage": True}
    assert all(chunk.choices for chunk in first.value)
    assert asked.x_cache == "HIT"
    assert asked.value[-1].usage is not None


@pytest.mark.parametrize("close", list(Close))
def test_B21_a_truncated_stream_fails_at_the_client_and_is_not_stored(
    close: Close, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(close_after=5, close=close))

    with pytest.raises(openai.APIError):
        ask_streamed(sdk)

    assert ask_streamed(sdk).x_cache == "MISS"
    assert ask_streamed(sdk).x_cache == "HIT"


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(Script(done=False), id="no-done"),
        pytest.param(Script(finish_reason="length"), id="cut-short"),
    ],
)
def test_B21_a_stream_that_did_not_end_well_is_not_stored(
    script: Script, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(script)

    assert text_of(ask_streamed(sdk).value)

    assert ask_streamed(sdk).x_cache == "MISS"


def test_B21_an_error_event_reaches_the_client_and_nothing_is_stored(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(error_event={"error": {"message": "melted"}}, error_after=3))

    with pytest.raises(openai.APIError, match="melted"):
        ask_streamed(sdk)

    assert ask_streamed(sdk).x_cache == "MISS"


def test_B21_an_error_event_between_good_ones_is_not_stored(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    running = proxy()
    sdk = client(running)
    request = {"stream": True, **CHAT}
    good = httpx.post(f"{standin.base_url}/chat/completions", json=request).text
    broken = good.replace("data: [DONE]", 'data: {"error":{"message":"melted"}}\n\ndata: [DONE]')
    standin.app.script(Script(body=broken, content_type="text/event-stream"))

    with pytest.raises(openai.APIError, match="melted"):
        ask_streamed(sdk)

    assert ask_streamed(sdk).x_cache == "MISS"


def test_B22_who_asks_again_at_the_last_event_finds_the_entry(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    events = len(ask_streamed(sdk, seed=1).value) + 1
    standin.app.script(Script(hold="end", hold_after=events))

    first = ask_streamed(sdk, seed=2)
    upstream = standin.app.wait_for_requests(2)[1]
    second = ask_streamed(sdk, seed=2)

    assert not upstream.finished.is_set(), "the upstream has sent [DONE], and no end of the body"
    assert (first.x_cache, second.x_cache) == ("MISS", "HIT")
    assert second.value == first.value


def test_B20_the_first_event_arrives_while_the_upstream_is_still_at_work(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(hold="rest", hold_after=3))

    with sdk.chat.completions.create(**CHAT, stream=True) as stream:
        chunks = [next(stream) for _ in range(3)]
        (upstream,) = standin.app.wait_for_requests(1)
        assert not upstream.finished.is_set()
        standin.app.gate("rest").set()
        chunks += list(stream)

    assert ask_streamed(sdk).value == chunks


def test_B25_an_upstream_that_trickles_is_recorded_all_the_same(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(content="Ein Fluß = 河 🌊 fließt.", split_bytes=3))

    first, second = ask_streamed(sdk), ask_streamed(sdk)

    assert text_of(first.value) == "Ein Fluß = 河 🌊 fließt."
    assert second.x_cache == "HIT"
    assert second.value == first.value


@pytest.mark.parametrize("streamed", [False, True], ids=["json", "stream"])
def test_B19_an_answer_that_came_compressed_is_a_hit_for_any_client(
    streamed: bool, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(encoding="gzip"))
    plain = {"extra_headers": {"Accept-Encoding": "identity"}}

    if streamed:
        first, second = ask_streamed(sdk), ask_streamed(sdk, **plain)
        assert second.value == first.value
    else:
        whole, again = ask(sdk), ask(sdk, **plain)
        assert again.value == whole.value
        first, second = ask_streamed(sdk), ask_streamed(sdk, **plain)

    assert second.x_cache == "HIT"
    assert "content-encoding" not in second.headers
    assert standin.app.count() == 1


@pytest.mark.anyio
async def test_B22_the_async_client_streams_a_hit(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy()
    async with openai.AsyncOpenAI(
        base_url=running.base_url, api_key="sk-test", max_retries=0
    ) as sdk:
        answers = []
        for _ in range(2):
            raw = await sdk.chat.completions.with_raw_response.create(**CHAT, stream=True)
            answers.append((raw.headers["x-cache"], [chunk async for chunk in raw.parse()]))

    (first, chunks), (second, replayed) = answers
    assert (first, second) == ("MISS", "HIT")
    assert replayed == chunks
    assert standin.app.count() == 1
