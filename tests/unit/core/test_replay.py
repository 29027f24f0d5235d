"""B10, B16, B17, B22-B24, B33: the stored answer in the form that was asked for."""

from typing import Any

import orjson
import pytest

from proxy.core.entry import Entry, Form, Usage
from proxy.core.replay import FreshIds, Rendered, Wanted, render, wanted_from
from proxy.core.wire import Endpoint, Headers, JsonValue

JSON_HEADERS: Headers = ((b"content-type", b"application/json; charset=utf-8"),)
SSE_HEADERS: Headers = ((b"content-type", b"text/event-stream"),)
AS_JSON = Wanted(stream=False, include_usage=False, encoding=None)
AS_STREAM = Wanted(stream=True, include_usage=False, encoding=None)
WITH_USAGE = Wanted(stream=True, include_usage=True, encoding=None)
FRESH = FreshIds(id="chatcmpl-new", created=99)

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
COMPLETION: dict[str, Any] = {
    "id": "c",
    "object": "chat.completion",
    "created": 17,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "finish_reason": "stop",
        }
    ],
}


def _event(chunk: Any) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _chunk(reason: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return _event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "created": 17,
            "model": "m",
            "choices": [choice],
        }
    )


TEXT = (
    b": hi\r\n\r\n"
    + _chunk(role="assistant", content="Hel")
    + _chunk(content="lo")
    + _chunk("stop")
)
USAGE_CHUNK = _event({"id": "c", "choices": [], "usage": USAGE})
DONE = b"data: [DONE]\n\n"


def _entry(
    form: Form, payload: bytes, *, usage: bool = False, headers: Headers | None = None
) -> Entry:
    if headers is None:
        headers = JSON_HEADERS if form is Form.JSON else SSE_HEADERS
    return Entry(
        key="k",
        model="m",
        rule="r",
        stored_at=0,
        fresh_until=1,
        expires_at=2,
        form=form,
        status=200,
        headers=headers,
        usage=Usage(3, 4, 7) if usage else None,
        payload=payload,
    )


def _chat(entry: Entry, wanted: Wanted, fresh: FreshIds | None = None) -> Rendered:
    rendered = render(entry, Endpoint.CHAT, wanted, fresh=fresh)
    assert rendered is not None
    return rendered


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, AS_JSON),
        ({"stream": False}, AS_JSON),
        ({"stream": None, "stream_options": None}, AS_JSON),
        ({"stream": True}, AS_STREAM),
        ({"stream": True, "stream_options": {}}, AS_STREAM),
        ({"stream": True, "stream_options": {"include_usage": False}}, AS_STREAM),
        ({"stream": True, "stream_options": {"include_usage": True}}, WITH_USAGE),
        ({"stream_options": {"include_usage": True}}, AS_JSON),
        ({"encoding_format": "base64"}, AS_JSON),
    ],
)
def test_B23_the_form_that_a_chat_request_asks_for(
    fields: dict[str, JsonValue], wanted: Wanted
) -> None:
    assert wanted_from(Endpoint.CHAT, fields) == wanted


@pytest.mark.parametrize(
    ("fields", "encoding"),
    [
        ({}, "float"),
        ({"encoding_format": None}, "float"),
        ({"encoding_format": "base64", "stream": True}, "base64"),
        ({"encoding_format": "int8"}, "int8"),
        ({"encoding_format": ["int8"]}, ""),
        ({"encoding_format": 5}, ""),
    ],
)
def test_B33_the_encoding_that_an_embeddings_request_asks_for(
    fields: dict[str, JsonValue], encoding: str
) -> None:
    wanted = wanted_from(Endpoint.EMBEDDINGS, fields)
    assert wanted == Wanted(stream=False, include_usage=False, encoding=encoding)
    assert wanted.is_deliverable is (encoding in {"float", "base64"})


def test_B10_json_asked_for_as_json_is_the_very_payload() -> None:
    payload = b' { "not" : "even a completion", 1.0 }'
    rendered = _chat(_entry(Form.JSON, payload), AS_JSON)
    assert rendered.body is payload
    assert rendered.content_type == b"application/json; charset=utf-8"


@pytest.mark.parametrize(("usage", "wanted"), [(False, AS_STREAM), (True, WITH_USAGE)])
def test_B22_a_stream_asked_for_as_a_stream_is_the_very_payload(
    usage: bool, wanted: Wanted
) -> None:
    payload = TEXT + (USAGE_CHUNK if usage else b"") + DONE
    rendered = _chat(_entry(Form.SSE, payload, usage=usage), wanted)
    assert rendered.body is payload
    assert rendered.content_type == b"text/event-stream"


def test_B24_the_usage_chunk_is_left_out_for_a_client_that_did_not_ask() -> None:
    entry = _entry(Form.SSE, TEXT + USAGE_CHUNK + DONE, usage=True)
    assert _chat(entry, AS_STREAM).body == TEXT + DONE


@pytest.mark.parametrize(
    "entry",
    [_entry(Form.SSE, TEXT + DONE), _entry(Form.JSON, orjson.dumps(COMPLETION))],
    ids=["stream", "json"],
)
def test_B24_usage_that_is_not_known_can_not_be_replayed(entry: Entry) -> None:
    assert render(entry, Endpoint.CHAT, WITH_USAGE) is None
    assert render(entry, Endpoint.CHAT, AS_STREAM) is not None
    assert render(entry, Endpoint.CHAT, AS_JSON) is not None


@pytest.mark.parametrize("usage", [True, False])
def test_B23_a_stream_asked_for_as_json_is_the_assembled_completion(usage: bool) -> None:
    payload = TEXT + (USAGE_CHUNK if usage else b"") + DONE
    rendered = _chat(_entry(Form.SSE, payload, usage=usage), AS_JSON)
    assert rendered.content_type == b"application/json"
    assert orjson.loads(rendered.body) == COMPLETION | ({"usage": USAGE} if usage else {})


@pytest.mark.parametrize("include_usage", [True, False])
def test_B23_json_asked_for_as_a_stream_tells_the_same(include_usage: bool) -> None:
    completion = {**COMPLETION, "usage": USAGE}
    entry = _entry(Form.JSON, orjson.dumps(completion), usage=True)
    wanted = Wanted(stream=True, include_usage=include_usage, encoding=None)
    rendered = _chat(entry, wanted)
    assert rendered.content_type == b"text/event-stream; charset=utf-8"
    assert rendered.body.count(DONE) == 1
    assert rendered.body.endswith(DONE)
    again = _chat(_entry(Form.SSE, rendered.body, usage=include_usage), AS_JSON)
    assert orjson.loads(again.body) == (completion if include_usage else COMPLETION)


def test_B23_the_chunks_have_the_shape_of_openais_own() -> None:
    completion = {**COMPLETION, "system_fingerprint": "fp", "citations": ["u"]}
    body = _chat(_entry(Form.JSON, orjson.dumps(completion)), AS_STREAM).body
    chunks = [orjson.loads(line[6:]) for line in body.split(b"\n\n")[:-2]]
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert [chunk["system_fingerprint"] for chunk in chunks] == ["fp"] * 3
    assert ["citations" in chunk for chunk in chunks] == [True, False, False]


def test_the_content_type_of_an_entry_without_one() -> None:
    stream = _entry(Form.SSE, TEXT + DONE, headers=())
    assert _chat(stream, AS_STREAM).content_type == b"text/event-stream; charset=utf-8"
    assert _chat(_entry(Form.JSON, b"{}", headers=()), AS_JSON).content_type == b"application/json"


def test_B17_fresh_ids_in_json_leave_every_other_byte() -> None:
    entry = _entry(Form.JSON, b'{"created" : 17, "x":{"id":"c"}, "id":"c", "n": 1.0}')
    body = _chat(entry, AS_JSON, FRESH).body
    assert body == b'{"created" : 99, "x":{"id":"c"}, "id":"chatcmpl-new", "n": 1.0}'


def test_B17_ids_are_not_invented() -> None:
    assert _chat(_entry(Form.JSON, b'{"choices":[]}'), AS_JSON, FRESH).body == b'{"choices":[]}'


def test_B17_fresh_ids_in_every_chunk_of_a_stream() -> None:
    odd = b'event: note\ndata: {"id": "c",\ndata: "choices":[]}\n\n'
    entry = _entry(Form.SSE, TEXT + odd + USAGE_CHUNK + DONE, usage=True)
    told = (TEXT + odd).replace(b'"created":17', b'"created":99')
    told = told.replace(b'"c"', b'"chatcmpl-new"')
    assert _chat(entry, AS_STREAM, FRESH).body == told + DONE
    with_usage = USAGE_CHUNK.replace(b'"c"', b'"chatcmpl-new"')
    assert _chat(entry, WITH_USAGE, FRESH).body == told + with_usage + DONE


def test_B17_fresh_ids_across_the_forms() -> None:
    told = _chat(_entry(Form.SSE, TEXT + DONE), AS_JSON, FRESH)
    assert orjson.loads(told.body) == {**COMPLETION, "id": "chatcmpl-new", "created": 99}
    stream = _chat(_entry(Form.JSON, orjson.dumps(COMPLETION)), AS_STREAM, FRESH).body
    events = [orjson.loads(line[6:]) for line in stream.split(b"\n\n")[:-2]]
    assert {(event["id"], event["created"]) for event in events} == {("chatcmpl-new", 99)}


@pytest.mark.parametrize(
    ("form", "payload", "wanted"),
    [
        (Form.JSON, b"{", AS_STREAM),
        (Form.JSON, b"[]", AS_STREAM),
        (Form.JSON, b"{}", AS_STREAM),
        (Form.JSON, b'{"choices":[{"index":0}]}', AS_STREAM),
        (Form.JSON, b'{"choices":[{"index":"0","message":{}}]}', AS_STREAM),
        (Form.JSON, b'{"choices":[{"message":{"tool_calls":{}}}]}', AS_STREAM),
        (Form.JSON, b'{"choices":[{"message":{"function_call":[]}}]}', AS_STREAM),
        (Form.JSON, b'{"choices":[{"message":{"x":' + b"[" * 400 + b"]" * 400 + b"}}]}", AS_STREAM),
        (Form.JSON, b'{"choices":[{"index":0,"message":{}},{"index":0,"message":{}}]}', AS_STREAM),
        (Form.SSE, b"data: {\n\n" + DONE, AS_JSON),
        (Form.SSE, _chunk(content="a") + _chunk(content=["b"]) + DONE, AS_JSON),
        (Form.SSE, b'data: {"x":' + b"[" * 400 + b"]" * 400 + b"}\n\n" + DONE, AS_JSON),
    ],
)
def test_an_entry_that_can_not_be_told_in_the_form_is_a_miss(
    form: Form, payload: bytes, wanted: Wanted
) -> None:
    assert render(_entry(form, payload), Endpoint.CHAT, wanted) is None


FLOATS = b'{"data": [{"object":"embedding","index":0,"embedding":[0.1, -0.50]}]}'
IN_BASE64 = b'{"data": [{"object":"embedding","index":0,"embedding":"zczMPQAAAL8="}]}'


def _vectors(payload: bytes, encoding: str | None) -> Rendered | None:
    wanted = Wanted(stream=False, include_usage=False, encoding=encoding)
    return render(_entry(Form.JSON, payload), Endpoint.EMBEDDINGS, wanted, fresh=FRESH)


@pytest.mark.parametrize(("payload", "encoding"), [(FLOATS, "float"), (IN_BASE64, "base64")])
def test_B33_the_stored_encoding_is_the_very_payload(payload: bytes, encoding: str) -> None:
    rendered = _vectors(payload, encoding)
    assert rendered is not None
    assert rendered.body is payload
    assert rendered.content_type == b"application/json; charset=utf-8"


@pytest.mark.parametrize(
    ("payload", "encoding", "told"), [(FLOATS, "base64", IN_BASE64), (IN_BASE64, "float", FLOATS)]
)
def test_B33_the_other_encoding_is_told_from_it(payload: bytes, encoding: str, told: bytes) -> None:
    rendered = _vectors(payload, encoding)
    assert rendered is not None
    assert orjson.loads(rendered.body) == orjson.loads(told)


@pytest.mark.parametrize(
    ("payload", "encoding"),
    [(FLOATS, "int8"), (b"{}", "float"), (IN_BASE64.replace(b"zczM", b"zcz"), "float")],
)
def test_B33_what_can_not_be_told_is_a_miss(payload: bytes, encoding: str) -> None:
    assert _vectors(payload, encoding) is None
