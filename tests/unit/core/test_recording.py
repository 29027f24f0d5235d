"""B14, B21: what may be stored, and why the rest may not."""

from typing import Any

import orjson
import pytest

from proxy.core.entry import Form, Usage
from proxy.core.recording import NotStored, Recording, StreamRecorder, UsageFilter, judge_json
from proxy.core.wire import Endpoint

ALLOWED = frozenset({"stop", "tool_calls", "function_call"})
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def _completion(*choices: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "c", "object": "chat.completion", "choices": list(choices), **more}


def _choice(reason: str | None = "stop", **message: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hi", **message}
    return {"index": 0, "message": message, "finish_reason": reason}


def _tool(arguments: Any) -> list[dict[str, Any]]:
    return [{"id": "a", "type": "function", "function": {"name": "f", "arguments": arguments}}]


def _judge(
    body: Any,
    *,
    endpoint: Endpoint = Endpoint.CHAT,
    status: int = 200,
    content_type: str = "application/json",
    max_bytes: int = 10_000,
    items: int | None = None,
) -> Recording | NotStored:
    return judge_json(
        endpoint,
        status,
        content_type,
        body if isinstance(body, bytes) else orjson.dumps(body),
        store_finish_reasons=ALLOWED,
        max_bytes=max_bytes,
        items=items,
    )


def test_B14_a_complete_answer_is_recorded_byte_for_byte() -> None:
    body = b' {"id" : "c", "choices": [{"message": {}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7} }\n'
    assert _judge(body) == Recording(Form.JSON, body, Usage(3, 4, 7), ("stop",))


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON;x=y"],
)
def test_B14_spellings_of_the_content_type(content_type: str) -> None:
    assert isinstance(_judge(_completion(_choice()), content_type=content_type), Recording)


@pytest.mark.parametrize(
    "choices",
    [
        [_choice(), _choice("function_call", function_call={"name": "f", "arguments": "{}"})],
        [_choice("tool_calls", content=None, tool_calls=_tool('{"a":1}'))],
        [_choice("tool_calls", tool_calls=_tool(""))],
        [_choice("tool_calls", tool_calls=_tool({"already": "parsed"}))],
        [_choice("tool_calls", tool_calls=[{"type": "custom", "custom": {"input": "not {json"}}])],
        [_choice("stop", content="not {json", tool_calls=None, function_call=None)],
    ],
)
def test_B14_complete_choices(choices: list[dict[str, Any]]) -> None:
    verdict = _judge(_completion(*choices, error=None))
    assert isinstance(verdict, Recording)
    assert verdict.finish_reasons == tuple(choice["finish_reason"] for choice in choices)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", NotStored.UNPARSABLE),
        (b"{", NotStored.UNPARSABLE),
        (b"[]", NotStored.UNPARSABLE),
        (b"<html>", NotStored.UNPARSABLE),
        (
            b'{"choices":[{"finish_reason":"stop","message":{"content":"\xff"}}]}',
            NotStored.UNPARSABLE,
        ),
        (b"[" * 100_000, NotStored.TOO_LARGE),
        ({"error": {"message": "m"}}, NotStored.ERROR_BODY),
        (_completion(_choice(), error="overloaded"), NotStored.ERROR_BODY),
        ({"id": "c"}, NotStored.UNPARSABLE),
        (_completion(), NotStored.UNFINISHED),
        ({"choices": {}}, NotStored.UNPARSABLE),
        ({"choices": ["stop"]}, NotStored.UNPARSABLE),
        ({"choices": [{"finish_reason": "stop"}]}, NotStored.UNPARSABLE),
        (_completion(_choice(None)), NotStored.UNFINISHED),
        (_completion(_choice(""), _choice()), NotStored.UNFINISHED),
        (_completion(_choice(), {"index": 1, "message": {}}), NotStored.UNFINISHED),
        (_completion(_choice("length")), NotStored.FINISH_REASON),
        (_completion(_choice(), _choice("content_filter")), NotStored.FINISH_REASON),
        (_completion(_choice("tool_calls", tool_calls=_tool('{"a":'))), NotStored.TOOL_ARGUMENTS),
        (_completion(_choice("tool_calls", tool_calls=_tool("{}{}"))), NotStored.TOOL_ARGUMENTS),
        (
            _completion(_choice("function_call", function_call={"arguments": "}"})),
            NotStored.TOOL_ARGUMENTS,
        ),
        (_completion(_choice(content="x" * 10_000)), NotStored.TOO_LARGE),
        (_completion({**_choice(), "error": {"message": "cut off"}}), NotStored.ERROR_BODY),
    ],
)
def test_B14_what_is_not_a_complete_answer(body: Any, reason: NotStored) -> None:
    assert _judge(body) == reason


def test_B14_fewer_choices_than_were_asked_for_are_not_complete() -> None:
    two = _completion(_choice(), {**_choice(), "index": 1})
    assert isinstance(_judge(two, items=2), Recording)
    assert _judge(two, items=3) == NotStored.UNFINISHED
    recorder = StreamRecorder(store_finish_reasons=ALLOWED, max_bytes=10_000, choices=2)
    recorder.feed(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n')
    recorder.feed(b"data: [DONE]\n\n")
    assert recorder.finish(ended_well=True) == NotStored.UNFINISHED


@pytest.mark.parametrize("embedding", [[], "", [None, None], [0.5, "x"], [0.5, [1]], [True]])
def test_B14_what_is_no_vector_of_numbers_is_not_stored(embedding: Any) -> None:
    body = {"object": "list", "data": [{"index": 0, "embedding": embedding}]}
    assert _judge(body, endpoint=Endpoint.EMBEDDINGS, items=1) == NotStored.UNPARSABLE


@pytest.mark.parametrize("status", [201, 202, 204, 206, 302, 400, 404, 429, 500])
def test_B14_only_status_200(status: int) -> None:
    assert _judge(_completion(_choice()), status=status) == NotStored.STATUS


@pytest.mark.parametrize(
    "content_type", ["", "text/html", "text/event-stream", "application/jsonl"]
)
def test_B14_only_json(content_type: str) -> None:
    assert _judge(_completion(_choice()), content_type=content_type) == NotStored.CONTENT_TYPE


def test_B14_an_answer_of_just_the_size_is_stored() -> None:
    body = orjson.dumps(_completion(_choice()))
    assert isinstance(_judge(body, max_bytes=len(body)), Recording)
    assert _judge(body, max_bytes=len(body) - 1) == NotStored.TOO_LARGE


def _vectors(*indices: Any, embedding: Any = (0.5,)) -> dict[str, Any]:
    vectors = [{"object": "embedding", "index": index, "embedding": embedding} for index in indices]
    return {"object": "list", "data": vectors, "usage": {"prompt_tokens": 2, "total_tokens": 2}}


@pytest.mark.parametrize(
    ("body", "items"),
    [
        (_vectors(0), 1),
        (_vectors(1, 0, 2), 3),
        (_vectors(0, 1, embedding="AAAAAA=="), 2),
        (_vectors(0, 1), None),
    ],
)
def test_B31_vectors_for_every_input(body: dict[str, Any], items: int | None) -> None:
    verdict = _judge(body, endpoint=Endpoint.EMBEDDINGS, items=items)
    assert verdict == Recording(Form.JSON, orjson.dumps(body), Usage(2, 0, 2), ())


@pytest.mark.parametrize(
    ("body", "items", "reason"),
    [
        (_vectors(0), 2, NotStored.ITEM_COUNT),
        (_vectors(0, 1), 1, NotStored.ITEM_COUNT),
        (_vectors(0, 0), 2, NotStored.ITEM_COUNT),
        (_vectors(1, 2), 2, NotStored.ITEM_COUNT),
        (_vectors(0, None), 2, NotStored.ITEM_COUNT),
        (_vectors(0, [1]), 2, NotStored.ITEM_COUNT),
        (_vectors(0, True), 2, NotStored.ITEM_COUNT),
        (_vectors(0, 2), None, NotStored.ITEM_COUNT),
        (_vectors(0, embedding=None), 1, NotStored.UNPARSABLE),
        (
            {"data": [*_vectors(0)["data"], *_vectors(1, embedding="AA")["data"]]},
            2,
            NotStored.UNPARSABLE,
        ),
        ({"data": [1]}, 1, NotStored.UNPARSABLE),
        ({"data": None}, 1, NotStored.UNPARSABLE),
        ({"error": {}}, 1, NotStored.ERROR_BODY),
    ],
)
def test_B31_a_wrong_count_stores_nothing(
    body: dict[str, Any], items: int | None, reason: NotStored
) -> None:
    assert _judge(body, endpoint=Endpoint.EMBEDDINGS, items=items) == reason


def _event(chunk: Any) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _delta(reason: str | None = None, index: int = 0, **delta: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": reason}
    return _event({"id": "c", "object": "chat.completion.chunk", "choices": [choice]})


DONE = b"data: [DONE]\n\n"
HELLO = _delta(role="assistant", content="Hello")
STOP = _delta("stop")
USAGE_CHUNK = _event({"id": "c", "choices": [], "usage": USAGE})


def _recorder(*pieces: bytes, max_bytes: int = 10_000) -> StreamRecorder:
    recorder = StreamRecorder(store_finish_reasons=ALLOWED, max_bytes=max_bytes)
    for piece in pieces:
        recorder.feed(piece)
    return recorder


def _record(*pieces: bytes, ended_well: bool = True) -> Recording | NotStored:
    return _recorder(*pieces).finish(ended_well)


def test_B21_a_stream_that_ended_well_is_recorded_byte_for_byte() -> None:
    stream = b": hello\r\n\r\n" + HELLO + b"\n" + STOP + USAGE_CHUNK + DONE
    for pieces in ([stream], [stream[place : place + 1] for place in range(len(stream))]):
        assert _record(*pieces) == Recording(Form.SSE, stream, Usage(3, 4, 7), ("stop",))


@pytest.mark.parametrize("after", [b"", b"\n", b"\r\n\r\n", b": bye\n\n", b": bye", b"\n: bye\n"])
def test_B21_white_space_and_comments_after_the_terminal_event_are_left_out(after: bytes) -> None:
    verdict = _record(HELLO + STOP + DONE, after)
    assert isinstance(verdict, Recording)
    assert verdict.payload == HELLO + STOP + DONE


@pytest.mark.parametrize("after", [HELLO, DONE, b"data: x", b"event: error\n\n", b"rubbish"])
def test_B21_anything_else_after_the_terminal_event_is_no_good_end(after: bytes) -> None:
    assert _record(HELLO + STOP + DONE, after) == NotStored.UNPARSABLE


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b"", NotStored.TRUNCATED),
        (HELLO, NotStored.TRUNCATED),
        (HELLO + STOP, NotStored.TRUNCATED),
        (HELLO + STOP + b"data: [DONE]", NotStored.TRUNCATED),
        (HELLO + STOP + b"data: [DONE]\n", NotStored.TRUNCATED),
        (HELLO + STOP[:-1] + DONE, NotStored.UNPARSABLE),
        (DONE, NotStored.UNFINISHED),
        (HELLO + DONE, NotStored.UNFINISHED),
        (HELLO + STOP + _delta(index=1, content="b") + DONE, NotStored.UNFINISHED),
        (HELLO + _delta("length") + DONE, NotStored.FINISH_REASON),
        (HELLO + STOP + _delta("content_filter", index=1) + DONE, NotStored.FINISH_REASON),
        (HELLO + b"data: {\n\n" + STOP + DONE, NotStored.UNPARSABLE),
        (HELLO + b'data: "x"\n\n' + STOP + DONE, NotStored.UNPARSABLE),
        (HELLO + _delta(content=["x"]) + STOP + DONE, NotStored.UNPARSABLE),
        (HELLO + _event({"error": {"message": "m"}}) + STOP + DONE, NotStored.ERROR_EVENT),
        (HELLO + b"event: error\ndata: {}\n\n" + STOP + DONE, NotStored.ERROR_EVENT),
        (HELLO + b"event: error\n\n" + STOP + DONE, NotStored.ERROR_EVENT),
        (_delta("tool_calls", tool_calls=_tool('{"a"')) + DONE, NotStored.TOOL_ARGUMENTS),
        (HELLO + _delta(content="x" * 10_000) + STOP + DONE, NotStored.TOO_LARGE),
    ],
)
def test_B21_what_did_not_end_well_is_not_stored(stream: bytes, reason: NotStored) -> None:
    assert _record(stream) == reason
    assert _record(*(stream[place : place + 7] for place in range(0, len(stream), 7))) == reason


def test_B21_a_broken_transport_is_not_stored_whatever_came() -> None:
    assert _record(HELLO + STOP + DONE, ended_well=False) == NotStored.TRUNCATED


def test_B21_a_null_error_is_none() -> None:
    null = _event({"choices": [], "error": None})
    assert isinstance(_record(HELLO + null + STOP + DONE), Recording)


def test_B14_tool_arguments_are_judged_when_they_are_whole() -> None:
    pieces = ('{"a"', ":1", "}")
    stream = b"".join(
        _delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}]) for piece in pieces
    )
    assert isinstance(_record(stream + _delta("tool_calls") + DONE), Recording)


def test_B21_the_terminal_event_is_known_when_it_ended() -> None:
    recorder = _recorder(HELLO, STOP, b"data: [DONE]\n")
    terminal = [recorder.saw_terminal]
    recorder.feed(b"\n")
    assert [*terminal, recorder.saw_terminal] == [False, True]


def test_B14_a_stream_of_just_the_size_is_stored() -> None:
    stream = HELLO + STOP + DONE
    assert isinstance(_recorder(stream, max_bytes=len(stream)).finish(ended_well=True), Recording)
    verdict = _recorder(stream, max_bytes=len(stream) - 1).finish(ended_well=True)
    assert verdict == NotStored.TOO_LARGE


@pytest.mark.parametrize(
    ("before", "max_bytes"),
    [
        (HELLO, 0),
        (HELLO * 3, len(HELLO)),
        (b"data: {\n\n", 10_000),
        (b"event: error\n\n", 10_000),
    ],
)
def test_B16_usage_is_known_of_a_stream_that_is_not_stored(before: bytes, max_bytes: int) -> None:
    assert _recorder(before, max_bytes=max_bytes).usage is None
    recorder = _recorder(before, STOP + USAGE_CHUNK, max_bytes=max_bytes)
    assert recorder.usage == Usage(3, 4, 7)
    terminal = [recorder.saw_terminal]
    recorder.feed(b'data: {"usage": broken\n\ndata: {"usage": null}\n\n' + DONE)
    assert recorder.usage == Usage(3, 4, 7)
    assert [*terminal, recorder.saw_terminal] == [False, True]
    assert isinstance(recorder.finish(ended_well=True), NotStored)


def test_B16_usage_that_came_before_the_stream_grew_too_long() -> None:
    recorder = _recorder(USAGE_CHUNK, HELLO, max_bytes=len(USAGE_CHUNK))
    assert recorder.usage == Usage(3, 4, 7)


def test_B16_usage_in_the_very_event_that_makes_the_stream_too_long() -> None:
    assert _recorder(USAGE_CHUNK, max_bytes=1).usage == Usage(3, 4, 7)


def test_the_first_reason_is_the_one_that_is_told() -> None:
    recorder = _recorder(b"event: error\n\n", *[b"x" * 1_000_000] * 20)
    assert recorder.finish(ended_well=True) == NotStored.ERROR_EVENT


def test_past_the_size_nothing_is_held() -> None:
    recorder = _recorder(*[HELLO] * 50, max_bytes=len(HELLO) * 10)
    assert recorder._raw == []
    assert recorder._transcript is None


def test_an_endless_event_is_held_up_to_a_bound_only() -> None:
    recorder = _recorder(*[b"x" * 1_000_000] * 20)
    assert len(recorder._parser.pending) < 10_000_000
    assert recorder.finish(ended_well=True) == NotStored.TOO_LARGE


@pytest.mark.parametrize(
    "chunk",
    [
        USAGE_CHUNK,
        USAGE_CHUNK.replace(b"\n\n", b"\r\n\r\n"),
        b'data:{"usage" : {"total_tokens":1}}\n\n',
        b'data: {"choices": [ ],\ndata: "usage": {"total_tokens":1}}\n\n',
        b'data: {"choices":null,"usage":{"total_tokens":1}}\n\n',
    ],
)
def test_B24_the_usage_chunk_is_taken_out(chunk: bytes) -> None:
    usage_filter = UsageFilter()
    assert usage_filter.feed(HELLO + STOP) == HELLO + STOP
    assert usage_filter.feed(chunk) == b""
    assert usage_filter.feed(DONE) == DONE
    assert usage_filter.flush() == b""
    stream = HELLO + STOP + chunk + DONE
    assert UsageFilter().feed(stream) == HELLO + STOP + DONE


@pytest.mark.parametrize(
    "chunk",
    [
        _event({"choices": [{"index": 0, "delta": {}}], "usage": USAGE}),
        _event({"choices": [{"index": 0, "delta": {"content": '"usage"'}}], "usage": None}),
        b'data: {"choices": [], "usage": null}\n\n',
        b'data: {"choices":[],"prompt_filter_results":[]}\n\n',
        b': "usage"\n\n',
        b'data: "usage"\n\n',
        b'data: {"usage"\n\n',
        b"\n\n\n\n",
    ],
)
def test_B24_every_other_event_passes_byte_for_byte(chunk: bytes) -> None:
    usage_filter = UsageFilter()
    assert usage_filter.feed(chunk) + usage_filter.flush() == chunk


def test_B24_a_broken_end_comes_by_the_flush() -> None:
    usage_filter = UsageFilter()
    assert usage_filter.feed(HELLO + USAGE_CHUNK[:-1]) == HELLO
    assert usage_filter.flush() == USAGE_CHUNK[:-1]


def test_B24_an_endless_event_is_passed_on() -> None:
    usage_filter = UsageFilter()
    pieces = [HELLO, *[b"x" * 1_000_000] * 20, USAGE_CHUNK]
    assert b"".join(map(usage_filter.feed, pieces)) + usage_filter.flush() == b"".join(pieces)
