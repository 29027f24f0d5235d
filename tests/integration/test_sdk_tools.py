"""The OpenAI SDK through the proxy: a whole tool conversation, twice."""

from typing import Any

import orjson
import pytest

from proxy.standin import RunningStandIn
from tests.integration.conftest import NewClient
from tests.integration.sdk import CHAT, WEATHER_TOOL, Told, ask, ask_assembled, said
from tests.integration.servers import ProxyFactory

TWO_TOOLS = [
    WEATHER_TOOL,
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}},
]


def test_B12_both_turns_of_a_tool_conversation_hit_the_second_time(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    def converse() -> list[Told[Any]]:
        asked = ask(sdk, tools=[WEATHER_TOOL])
        message = asked.value.choices[0].message
        (call,) = message.tool_calls or []
        result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        history = [*CHAT["messages"], message.model_dump(exclude_none=True), result]
        return [asked, ask(sdk, messages=history, tools=[WEATHER_TOOL])]

    first, second = converse(), converse()

    assert [turn.x_cache for turn in first + second] == ["MISS", "MISS", "HIT", "HIT"]
    assert [turn.value for turn in first] == [turn.value for turn in second]
    assert first[0].value.choices[0].finish_reason == "tool_calls"
    assert first[1].value.choices[0].message.content
    assert standin.app.count() == 2


@pytest.mark.parametrize("streamed_first", [False, True], ids=["json-first", "stream-first"])
def test_B22_parallel_tool_calls_keep_their_order_and_arguments(
    streamed_first: bool, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    members: dict[str, Any] = {"tools": TWO_TOOLS, "parallel_tool_calls": True}

    answers = [
        ask_assembled(sdk, **members) if streamed else ask(sdk, **members).value
        for streamed in (streamed_first, not streamed_first)
    ]

    first, second = (said(answer)["choices"][0]["calls"] for answer in answers)
    assert [name for _, name, _ in first] == ["get_weather", "get_time"]
    assert orjson.loads(first[0][2]).keys() == {"city", "days"}
    assert first == second
    assert standin.app.count() == 1


def test_B6_other_tools_are_another_entry(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    assert ask(sdk, tools=[WEATHER_TOOL]).x_cache == "MISS"
    assert ask(sdk, tools=TWO_TOOLS).x_cache == "MISS"
    assert ask(sdk).x_cache == "MISS"


def test_B6_tools_that_are_not_in_the_key_bypass_the_cache_and_say_so(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(
        proxy("""
            cache_settings:
              rules:
                - model_names: ["gpt-4o-mini"]
                  include_in_key: ["messages"]
                  ttl_seconds: 600
        """)
    )
    ask(sdk)

    asked = ask(sdk, tools=[WEATHER_TOOL])

    assert asked.x_cache == "BYPASS"
    assert "fwd=bypass" in asked.cache_status
    assert "tools" in asked.headers["cache-status"]
    assert asked.value.choices[0].message.tool_calls
    assert ask(sdk).x_cache == "HIT"
