"""B22, B23: what the chunks of many providers say, put together."""

import json
from typing import Any

import orjson
import pytest

from proxy.core.entry import Usage
from proxy.core.transcript import NotAChunk, NotAssemblable, Transcript

TOP = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "gpt-4o"}


def _chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **more}
    return {**TOP, "choices": [choice]}


def _transcript(*chunks: dict[str, Any]) -> Transcript:
    transcript = Transcript()
    for chunk in chunks:
        # The standard library's writer has no limit of depth below Python's own.
        transcript.add(json.dumps(chunk).encode())
    return transcript


def _message(*deltas: dict[str, Any]) -> dict[str, Any]:
    completion = _transcript(*map(_chunk, deltas)).completion()
    message: dict[str, Any] = completion["choices"][0]["message"]
    return message


def test_B23_text_becomes_a_completion() -> None:
    transcript = _transcript(
        _chunk({"role": "assistant", "content": "", "refusal": None}, logprobs=None),
        _chunk({"content": "Hel"}, logprobs=None),
        _chunk({"content": "lo"}, logprobs=None),
        _chunk({}, "stop", logprobs=None),
    )
    assert transcript.completion() == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 17,
        "model": "gpt-4o",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_B22_parallel_tool_calls_as_openai_streams_them() -> None:
    message = _message(
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "index": 0,
                    "id": "call_a",
                    "type": "function",
                    "function": {"name": "weather", "arguments": ""},
                }
            ],
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call_b",
                    "type": "function",
                    "function": {"name": "time", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
    )
    assert message == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_a",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Paris"}'},
            },
            {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }


def _call(
    index: int | None, call_id: str | None, name: str | None, arguments: str
) -> dict[str, Any]:
    call: dict[str, Any] = {"function": {"name": name, "arguments": arguments}}
    if call_id is not None:
        call["id"] = call_id
    if index is not None:
        call["index"] = index
    return call


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        pytest.param(
            [_call(0, "a", "f", "{"), _call(0, "a", "f", "}")],
            [("a", "f", "{}")],
            id="id and name on each chunk",
        ),
        pytest.param(
            [_call(0, "a", "f", "{"), _call(0, "", "", "}"), _call(0, None, None, "")],
            [("a", "f", "{}")],
            id="empty id and name on later chunks",
        ),
        pytest.param(
            [_call(0, "a", "get_", ""), _call(0, None, "weather", "{}")],
            [("a", "get_weather", "{}")],
            id="the name in pieces",
        ),
        pytest.param(
            [_call(0, "a", "f", "{}"), _call(0, "b", "g", "{"), _call(0, None, None, "}")],
            [("a", "f", "{}"), ("b", "g", "{}")],
            id="every call numbered 0",
        ),
        pytest.param(
            [_call(None, "a", "f", "{"), _call(None, None, None, "}"), _call(None, "b", "g", "{}")],
            [("a", "f", "{}"), ("b", "g", "{}")],
            id="no numbers",
        ),
        pytest.param(
            [_call(None, "a", "f", "{"), _call(None, "a", "f", "}")],
            [("a", "f", "{}")],
            id="no numbers, id on each chunk",
        ),
        pytest.param(
            [_call(None, None, "f", "{}"), _call(None, None, "g", "{}")],
            [(None, "f", "{}"), (None, "g", "{}")],
            id="no numbers, no ids",
        ),
        pytest.param(
            [_call(0, "a", "f", "{"), _call(1, "b", "g", "["), _call(0, None, None, "}"),
             _call(1, None, None, "]")],
            [("a", "f", "{}"), ("b", "g", "[]")],
            id="interleaved",
        ),
    ],
)  # fmt: skip
def test_B22_tool_calls_as_providers_stream_them(
    calls: list[dict[str, Any]], told: list[tuple[str | None, str, str]]
) -> None:
    message = _message(*({"tool_calls": [call]} for call in calls))
    assert [
        (call.get("id"), call["function"]["name"], call["function"]["arguments"])
        for call in message["tool_calls"]
    ] == told
    assert _message({"tool_calls": calls}) == message


def test_B22_text_that_repeats_itself_is_no_repeat() -> None:
    message = _message({"content": "ha"}, {"content": "ha"}, {"reasoning": "a"}, {"reasoning": "a"})
    assert (message["content"], message["reasoning"]) == ("haha", "aa")


def test_B22_a_choice_without_a_number_is_the_first() -> None:
    transcript = _transcript(_chunk({"content": "a"}), {"choices": [{"delta": {"content": "b"}}]})
    (choice,) = transcript.completion()["choices"]
    assert (choice["index"], choice["message"]["content"]) == (0, "ab")


def test_B22_what_was_said_is_not_taken_back_by_a_later_null() -> None:
    transcript = _transcript(_chunk({"content": "a"}, "stop"), {**_chunk({}), "usage": {"x": 1}})
    transcript.add(orjson.dumps({**_chunk({"content": None}), "usage": None}))
    completion = transcript.completion()
    assert completion["usage"] == {"x": 1}
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["choices"][0]["message"]["content"] == "a"


def test_B22_several_choices_interleaved() -> None:
    def chunk(index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": reason}
        return {**TOP, "choices": [choice]}

    transcript = _transcript(
        chunk(1, "b"), chunk(0, "a"), chunk(1, "B", "stop"), chunk(0, "A", "length")
    )
    choices = transcript.completion()["choices"]
    assert [(choice["index"], choice["message"]["content"]) for choice in choices] == [
        (0, "aA"),
        (1, "bB"),
    ]
    assert transcript.finish_reasons == ("length", "stop")


def test_B22_nothing_that_a_delta_carries_is_lost() -> None:
    message = _message(
        {"role": "assistant", "reasoning_content": "Let ", "content": None},
        {"role": "assistant", "reasoning_content": "me think", "novel": {"score": 1, "note": "a"}},
        {"novel": {"score": 2, "note": "b", "more": None}, "flag": True},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Let ", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.text", "text": "me", "index": 0}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x", "index": 0}]},
        {"annotations": [{"type": "url_citation"}]},
        {"annotations": [{"type": "url_citation"}], "refusal": "I "},
        {"refusal": "can't", "function_call": {"name": "f", "arguments": "{"}},
        {"function_call": {"arguments": "}"}, "content": "!"},
    )
    assert message == {
        "role": "assistant",
        "reasoning_content": "Let me think",
        "content": "!",
        "novel": {"score": 2, "note": "ab", "more": None},
        "flag": True,
        "reasoning_details": [
            {"type": "reasoning.text", "text": "Let me", "index": 0},
            {"type": "reasoning.encrypted", "data": "x", "index": 0},
        ],
        "annotations": [{"type": "url_citation"}, {"type": "url_citation"}],
        "refusal": "I can't",
        "function_call": {"name": "f", "arguments": "{}"},
    }


def test_B22_audio_is_joined_and_its_id_taken_once() -> None:
    message = _message(
        {"audio": {"id": "audio_1", "transcript": "Hel"}},
        {"audio": {"id": "audio_1", "transcript": "lo"}},
        {"audio": {"data": "AAAA"}},
        {"audio": {"data": "BBBB"}},
        {"audio": {"expires_at": 1700000000}},
    )
    assert message["audio"] == {
        "id": "audio_1",
        "transcript": "Hello",
        "data": "AAAABBBB",
        "expires_at": 1700000000,
    }


def test_B22_logprobs_and_unknown_members_of_a_choice() -> None:
    one, two = ({"token": token, "logprob": -0.5, "top_logprobs": []} for token in "ab")
    transcript = _transcript(
        _chunk({"content": ""}, logprobs=None, content_filter_results={}),
        _chunk({"content": "a"}, logprobs={"content": [one], "refusal": None}),
        _chunk({"content": "b"}, logprobs={"content": [two], "refusal": None}, token_ids=[1]),
        _chunk({}, "stop", logprobs=None, token_ids=[2], stop_reason="x"),
        {**TOP, "choices": [{"index": 0, "content_filter_results": {"hate": {"filtered": False}}}]},
    )
    (choice,) = transcript.completion()["choices"]
    del choice["message"]
    assert choice == {
        "index": 0,
        "finish_reason": "stop",
        "logprobs": {"content": [one, two], "refusal": None},
        "content_filter_results": {"hate": {"filtered": False}},
        "token_ids": [1, 2],
        "stop_reason": "x",
    }


def test_B22_members_of_the_top_level() -> None:
    azure = {"id": "", "object": "", "created": 0, "model": "", "choices": [], "prompt_filter": [1]}
    transcript = _transcript(
        azure,
        {**_chunk({"content": "a"}), "system_fingerprint": None, "obfuscation": "xyz"},
        {**_chunk({}, "stop"), "system_fingerprint": "fp_1", "service_tier": "default"},
        {**_chunk({}), "system_fingerprint": None, "citations": ["u"], "error": None},
        {"id": "other", "created": 18, "model": "gpt-4o-2", "choices": []},
    )
    completion = transcript.completion()
    del completion["choices"]
    assert completion == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 17,
        "model": "gpt-4o",
        "prompt_filter": [1],
        "system_fingerprint": "fp_1",
        "service_tier": "default",
        "citations": ["u"],
    }
    assert not transcript.error


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "details": {"cached": 1}}


@pytest.mark.parametrize(
    "chunks",
    [
        [{**_chunk({}, "stop"), "usage": None}, {**TOP, "choices": [], "usage": USAGE}],
        [{**_chunk({}, "stop"), "usage": USAGE}],
        [
            {**_chunk({"content": ""}), "usage": {"total_tokens": 1}},
            {**_chunk({}, "stop"), "usage": USAGE},
        ],
        [_chunk({}, "stop"), {**TOP, "usage": USAGE}],
    ],
    ids=["chunk of its own", "with the finish", "running totals", "no choices"],
)
def test_B16_usage_wherever_it_stands(chunks: list[dict[str, Any]]) -> None:
    transcript = _transcript(*chunks)
    assert transcript.usage == Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
    assert transcript.completion()["usage"] == USAGE


def test_without_usage_the_completion_has_none() -> None:
    transcript = _transcript({**_chunk({}, "stop"), "usage": None})
    assert transcript.usage is None
    assert "usage" not in transcript.completion()


def test_B21_complete_means_that_every_choice_finished() -> None:
    transcript = _transcript()
    complete = [transcript.complete]
    more = {**TOP, "choices": [{"index": 1, "delta": {}}]}
    for chunk in (_chunk({"content": "a"}), _chunk({}, "stop"), more):
        transcript.add(orjson.dumps(chunk))
        complete.append(transcript.complete)
    assert complete == [False, False, True, False]


def test_B21_an_error_in_a_chunk_is_seen() -> None:
    assert _transcript({"error": {"message": "overloaded"}}).error


def test_a_message_always_has_role_and_content() -> None:
    assert _message({"tool_calls": []}) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [],
    }


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"1", b'{"choices":{}}', b'{"choices":[1]}', b'{"a":"\xff"}', b'{"a":NaN}',
     b'{"choices":[{"index":"0"}]}', b"[" * 5000],
)  # fmt: skip
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(NotAChunk):
        Transcript().add(data)


def _deep(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"text": "x"}
    for _ in range(depth):
        value = {"in": value}
    return value


@pytest.mark.parametrize(
    "deltas",
    [
        [{"content": "a"}, {"content": ["b"]}],
        [{"content": ["a"]}, {"content": "b"}],
        [{"content": "a"}, {"content": "b"}, {"content": ["c"]}],
        [{"x": 1}, {"x": "a"}],
        [{"x": "a"}, {"x": 1}],
        [{"x": {}}, {"x": 1}],
        [{"x": {}}, {"x": "a"}],
        [{"x": "a"}, {"x": {}}],
        [_deep(400), _deep(400)],
        [_deep(200)],
    ],
)
def test_contradicting_chunks_are_assembled_to_nothing(deltas: list[dict[str, Any]]) -> None:
    with pytest.raises(NotAssemblable):
        _message(*deltas)


def test_deep_members_of_choices_that_are_met_twice_are_refused() -> None:
    transcript = _transcript(_chunk({}, deep=_deep(400)), _chunk({}, deep=_deep(400)))
    assert transcript.contradicts


def test_a_chunk_with_a_message_in_place_of_a_delta_is_no_stream() -> None:
    transcript = _transcript({**TOP, "choices": [{"index": 0, "message": {"content": "a"}}]})
    with pytest.raises(NotAssemblable):
        transcript.completion()


@pytest.mark.parametrize(
    ("first", "second"), [(1, True), (1, 1.0), ({"a": 1}, {"a": True}), ([0], [False])]
)
def test_of_members_that_python_takes_for_the_same_the_last_one_counts(
    first: object, second: object
) -> None:
    transcript = _transcript({**TOP, "x": first}, {**TOP, "x": second})
    assert orjson.dumps(transcript.completion()["x"]) == orjson.dumps(second)


def test_padding_of_the_delivery_is_left_out_and_changes_nothing_else() -> None:
    chunks = [{**_chunk({"content": text}), "obfuscation": text * 3} for text in "abc"]
    completion = _transcript(*chunks).completion()
    assert "obfuscation" not in completion
    assert completion["choices"][0]["message"]["content"] == "abc"
