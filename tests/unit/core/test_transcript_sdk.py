"""B23: what the OpenAI SDK itself makes of the chunks that a stored completion is told in."""

from collections.abc import Iterator
from typing import Any

import httpx2
import orjson
import pytest
from openai import OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel

from proxy.core.entry import Entry, Form, Usage
from proxy.core.replay import Wanted, render
from proxy.core.transcript import read_usage
from proxy.core.wire import Endpoint

TOP = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1694268190,
    "model": "gpt-4o-mini",
    "service_tier": "default",
    "system_fingerprint": "fp_1",
}
USAGE = {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}


def _choice(message: dict[str, Any], reason: str = "stop", index: int = 0, **more: Any) -> Any:
    message = {"role": "assistant", "refusal": None, "annotations": [], **message}
    return {
        "index": index,
        "message": message,
        "logprobs": None,
        "finish_reason": reason,
        **more,
    }


def _token(text: str) -> dict[str, Any]:
    top = {"token": text, "logprob": -0.25, "bytes": list(text.encode())}
    return {**top, "top_logprobs": [top, {"token": "x", "logprob": -3.5, "bytes": [120]}]}


def _tool(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


COMPLETIONS: dict[str, list[dict[str, Any]]] = {
    "text": [_choice({"content": "Hello there, größe 😀"})],
    "empty text": [_choice({"content": ""})],
    "refusal": [_choice({"content": None, "refusal": "I'm sorry, I can't."})],
    "tools": [
        _choice(
            {
                "content": None,
                "tool_calls": [
                    _tool("call_a", "weather", '{"city":"Paris"}'),
                    _tool("call_b", "time", ""),
                    _tool("call_c", "weather", '{"city":"Oslo"}'),
                ],
            },
            "tool_calls",
        )
    ],
    "text and a custom tool": [
        _choice(
            {
                "content": "Let me see.",
                "tool_calls": [
                    {"id": "call_a", "type": "custom", "custom": {"name": "sh", "input": "ls"}}
                ],
            },
            "tool_calls",
        )
    ],
    "function call": [
        _choice(
            {"content": None, "function_call": {"name": "f", "arguments": '{"a":1}'}},
            "function_call",
        )
    ],
    "logprobs": [
        _choice(
            {"content": "Hi!"},
            logprobs={"content": [_token("Hi"), _token("!")], "refusal": None},
        )
    ],
    "logprobs of a refusal": [
        _choice(
            {"content": None, "refusal": "No"},
            logprobs={"content": None, "refusal": [_token("No")]},
        )
    ],
    "three choices": [
        _choice({"content": "a"}),
        _choice({"content": "b", "refusal": "r"}, "length", 1),
        _choice({"content": None, "tool_calls": [_tool("c", "f", "{}")]}, "tool_calls", 2),
    ],
    "audio": [
        _choice(
            {
                "content": None,
                "audio": {"id": "a1", "data": "AAAA", "expires_at": 17, "transcript": "Hi"},
            }
        )
    ],
    "what is not in the API": [
        _choice(
            {
                "content": "42",
                "reasoning_content": "6 times 7",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "6", "index": 0},
                    {"type": "reasoning.text", "text": "7", "index": 1},
                ],
                "novel": {"deep": {"number": 1.5, "flag": True, "text": "a"}},
            },
            content_filter_results={"hate": {"filtered": False, "severity": "safe"}},
        )
    ],
    "annotations": [
        _choice(
            {
                "content": "see",
                "annotations": [
                    {
                        "type": "url_citation",
                        "url_citation": {
                            "start_index": 0,
                            "end_index": 3,
                            "title": "t",
                            "url": "u",
                        },
                    }
                ],
            }
        )
    ],
}


@pytest.fixture(name="wire")
def _wire() -> Iterator[tuple[OpenAI, list[bytes]]]:
    """The SDK over a transport that answers with the first of these bodies."""
    bodies: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, content=bodies[0]
        )

    with httpx2.Client(transport=httpx2.MockTransport(answer)) as http:
        yield (
            OpenAI(api_key="sk-test", base_url="http://upstream.test/v1", http_client=http),
            bodies,
        )


def _told(completion: dict[str, Any], *, include_usage: bool) -> bytes:
    entry = Entry(
        key="k",
        model="m",
        rule="r",
        stored_at=0,
        fresh_until=1,
        expires_at=2,
        form=Form.JSON,
        status=200,
        headers=((b"content-type", b"application/json"),),
        usage=read_usage(completion.get("usage")),
        payload=orjson.dumps(completion),
    )
    wanted = Wanted(stream=True, include_usage=include_usage, encoding=None)
    rendered = render(entry, Endpoint.CHAT, wanted)
    assert rendered is not None
    assert rendered.content_type == b"text/event-stream; charset=utf-8"
    return rendered.body


def _comparable(value: Any) -> Any:
    """Without nulls, and without what only the SDK's stream snapshots have."""
    if isinstance(value, list):
        return [_comparable(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _comparable(member)
        for name, member in value.items()
        if member is not None and name not in {"parsed", "parsed_arguments"}
    }


def _snapshot(state: ChatCompletionStreamState[None]) -> Any:
    snapshot = _comparable(state.current_completion_snapshot.to_dict())
    for choice in snapshot["choices"]:
        for call in choice["message"].get("tool_calls", []):
            del call["index"]
    return snapshot


@pytest.mark.parametrize("include_usage", [True, False])
@pytest.mark.parametrize("name", COMPLETIONS)
def test_B23_the_sdk_assembles_the_completion_again(
    wire: tuple[OpenAI, list[bytes]], name: str, include_usage: bool
) -> None:
    client, bodies = wire
    completion = {**TOP, "choices": COMPLETIONS[name], "usage": USAGE}
    bodies.append(_told(completion, include_usage=include_usage))

    stream = client.chat.completions.create(model="m", messages=[], stream=True)
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    chunks = list(stream)
    for chunk in chunks:
        state.handle_chunk(chunk)

    expected = completion if include_usage else {**TOP, "choices": COMPLETIONS[name]}
    assert _snapshot(state) == _comparable(expected)
    with_usage = [chunk for chunk in chunks if chunk.usage is not None]
    assert [chunk.choices for chunk in with_usage] == ([[]] if include_usage else [])


def test_B24_the_usage_chunk_is_the_last_one(wire: tuple[OpenAI, list[bytes]]) -> None:
    completion = {**TOP, "choices": COMPLETIONS["text"], "usage": USAGE}
    lines = _told(completion, include_usage=True).split(b"\n\n")
    assert lines[-2:] == [b"data: [DONE]", b""]
    chunks = [orjson.loads(line[6:]) for line in lines[:-2]]
    assert [chunk["usage"] for chunk in chunks] == [None] * (len(chunks) - 1) + [USAGE]
    assert read_usage(chunks[-1]["usage"]) == Usage(9, 12, 21)
    without = _told(completion, include_usage=False)
    assert b"usage" not in without


class _City(BaseModel):
    city: str


def test_B23_the_sdks_own_stream_with_structured_output_and_its_events(
    wire: tuple[OpenAI, list[bytes]],
) -> None:
    client, bodies = wire
    choices = [_choice({"content": '{"city":"Paris"}'})]
    bodies.append(_told({**TOP, "choices": choices}, include_usage=False))
    with client.chat.completions.stream(model="m", messages=[], response_format=_City) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == _City(city="Paris")
    assert "content.done" in kinds


def test_B23_the_sdks_own_stream_tells_the_arguments_once(
    wire: tuple[OpenAI, list[bytes]],
) -> None:
    client, bodies = wire
    bodies.append(_told({**TOP, "choices": COMPLETIONS["tools"]}, include_usage=False))
    with client.chat.completions.stream(model="m", messages=[]) as stream:
        done = [
            (event.name, event.arguments)
            for event in stream
            if event.type == "tool_calls.function.arguments.done"
        ]
    assert done == [("weather", '{"city":"Paris"}'), ("time", ""), ("weather", '{"city":"Oslo"}')]
