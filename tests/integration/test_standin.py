"""The stand-in upstream does what the other tests rely on, seen through the OpenAI SDK."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import orjson
import pytest
from pydantic import BaseModel

from proxy.standin import (
    Close,
    Pace,
    RunningStandIn,
    Script,
    Signal,
    StandIn,
    error_in_ok,
    rate_limited,
    start_standin,
)
from tests.fakes import FakeClock
from tests.integration.sdk import CHAT, WEATHER_TOOL, ask, ask_assembled, ask_streamed, embed, said


@pytest.fixture
def sdk(standin: RunningStandIn) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=standin.base_url, api_key="sk-test", max_retries=0) as client:
        yield client


def test_the_same_question_gets_the_same_content_under_a_new_id(sdk: openai.OpenAI) -> None:
    first, second = ask(sdk).value, ask(sdk).value
    other = ask(sdk, seed=1).value

    assert first.choices == second.choices
    assert first.id != second.id
    assert other.choices != first.choices


@pytest.mark.parametrize(
    "members",
    [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 2}, {"tools": [WEATHER_TOOL]}],
    ids=["text", "two", "logprobs", "tools"],
)
def test_a_stream_assembles_to_what_the_document_says(
    sdk: openai.OpenAI, members: dict[str, Any]
) -> None:
    streamed, whole = said(ask_assembled(sdk, **members)), said(ask(sdk, **members).value)

    assert streamed["choices"] == whole["choices"]


def test_usage_is_streamed_only_if_asked_for(sdk: openai.OpenAI) -> None:
    *chunks, last = ask_streamed(sdk, stream_options={"include_usage": True}).value

    assert last.usage == ask(sdk).value.usage
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert all(chunk.choices for chunk in ask_streamed(sdk).value)


def test_a_limit_cuts_the_answer_short(sdk: openai.OpenAI) -> None:
    choice = ask(sdk, max_completion_tokens=5).value.choices[0]

    assert choice.finish_reason == "length"
    assert len((choice.message.content or "").split()) == 5


class Leaf(BaseModel):
    name: str
    next: "Leaf | None" = None


class Tree(BaseModel):
    size: int
    ratio: float
    green: bool
    leaves: list[Leaf]


def test_a_json_schema_is_followed(sdk: openai.OpenAI) -> None:
    parsed = sdk.chat.completions.parse(**CHAT, response_format=Tree).choices[0].message.parsed

    assert parsed is not None
    assert len(parsed.leaves) == 2


def test_legacy_functions_are_called(sdk: openai.OpenAI) -> None:
    choice = ask(sdk, functions=[WEATHER_TOOL["function"]]).value.choices[0]

    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert orjson.loads(choice.message.function_call.arguments)["city"]


def test_embeddings_are_the_same_numbers_in_both_encodings(sdk: openai.OpenAI) -> None:
    coded = embed(sdk, input=["amber", "birch", "amber"]).value
    floats = embed(sdk, input=["amber", "birch", "amber"], encoding_format="float").value

    for one, other in zip(coded.data, floats.data, strict=True):
        assert (
            np.array(one.embedding, np.float32).tolist()
            == np.array(other.embedding, np.float32).tolist()
        )
        assert np.linalg.norm(one.embedding) == pytest.approx(1.0, abs=1e-6)
    assert coded.data[0].embedding == coded.data[2].embedding != coded.data[1].embedding
    assert [row.index for row in coded.data] == [0, 1, 2]
    assert len(embed(sdk, dimensions=4).value.data[0].embedding) == 4


@pytest.mark.parametrize("wrong", ["", [], [1, "a"], {"a": 1}, [[]], [True]])
def test_embeddings_of_no_such_input_are_refused(sdk: openai.OpenAI, wrong: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        embed(sdk, input=wrong)


def test_uploads_are_counted_and_found_again(sdk: openai.OpenAI, standin: RunningStandIn) -> None:
    file = sdk.files.create(file=b"x" * 3_000_000, purpose="assistants")

    assert file.bytes > 3_000_000
    assert sdk.files.retrieve(file.id) == file
    upload = standin.app.requests[0]
    assert (upload.size, upload.body) == (file.bytes, b"")


def test_requests_are_recorded_as_they_came(standin: RunningStandIn) -> None:
    headers = [("x-twice", "1"), ("X-Twice", "2"), ("Authorization", "Bearer sk-mine")]

    answer = httpx.put(f"{standin.url}/v1/echo/a%2Fb;x?q=[1]&z", headers=headers, content=b"hi")

    (seen,) = standin.app.requests
    assert (seen.method, seen.raw_path, seen.query) == ("PUT", "/v1/echo/a%2Fb;x", "q=[1]&z")
    assert [value for name, value in seen.headers if name == b"x-twice"] == [b"1", b"2"]
    assert (seen.body, seen.credential) == (b"hi", "sk-mine")
    assert answer.json()["path"] == "/v1/echo/a%2Fb;x"


def test_scripts_go_out_in_order_to_the_requests_they_are_for(
    sdk: openai.OpenAI, standin: RunningStandIn
) -> None:
    standin.app.script(Script(content="for another"), credential="sk-other", times=None)
    standin.app.script(Script(content="one"))
    standin.app.script(Script(content="two"))

    contents = [ask(sdk).value.choices[0].message.content for _ in range(3)]
    other = ask(sdk, extra_headers={"Authorization": "Bearer sk-other"}).value

    assert contents[:2] == ["one", "two"]
    assert contents[2] not in {"one", "two", "for another"}
    assert other.choices[0].message.content == "for another"


def test_a_request_header_scripts_its_own_answer(sdk: openai.OpenAI) -> None:
    script = {"status": 418, "headers": [["x-pot", "tea"]], "body": {"error": {"message": "no"}}}

    with pytest.raises(openai.APIStatusError) as refused:
        ask(sdk, extra_headers={"x-standin-script": orjson.dumps(script).decode()})
    with pytest.raises(openai.BadRequestError, match="a script is an object"):
        ask(sdk, extra_headers={"x-standin-script": '{"statsu": 1}'})

    assert refused.value.status_code == 418
    assert refused.value.response.headers["x-pot"] == "tea"


def test_ready_made_failures(sdk: openai.OpenAI, standin: RunningStandIn) -> None:
    standin.app.script(rate_limited("3"))
    standin.app.script(error_in_ok())

    with pytest.raises(openai.RateLimitError) as limited:
        ask(sdk)
    odd = ask(sdk)

    assert limited.value.response.headers["retry-after"] == "3"
    assert odd.value.model_extra is not None
    assert odd.value.model_extra["error"]["code"] == "overloaded"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script(close_before_answer=True), httpx.RemoteProtocolError),
        (Script(close_before_answer=True, close=Close.RESET), httpx.ReadError),
        (Script(close_after=0), httpx.RemoteProtocolError),
        (Script(close_after=1, split_bytes=10), httpx.RemoteProtocolError),
        (Script(close_after=1, split_bytes=10, close=Close.RESET), httpx.ReadError),
        (Script(raw="What?\r\n\r\n"), httpx.RemoteProtocolError),
    ],
    ids=["no-answer", "no-answer-reset", "headers-only", "cut", "reset", "not-http"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_broken_connections(
    script: Script, error: type[Exception], stream: bool, standin: RunningStandIn
) -> None:
    standin.app.script(script)

    with pytest.raises(error):
        httpx.post(f"{standin.base_url}/chat/completions", json={**CHAT, "stream": stream})

    assert not standin.app.requests[0].finished.is_set()


def test_a_client_that_goes_away_is_noticed_while_the_answer_is_held(
    sdk: openai.OpenAI, standin: RunningStandIn
) -> None:
    standin.app.script(Script(hold="never", hold_after=2))

    with sdk.chat.completions.create(**CHAT, stream=True) as stream:
        next(stream)
        (request,) = standin.app.wait_for_requests(1)
        request.holding.wait()
        assert request.chunks_sent == 2
        assert not request.disconnected.is_set()

    request.disconnected.wait()


def test_stopping_cuts_off_what_is_held() -> None:
    failed = Signal("client failed")
    running = start_standin(StandIn(clock=FakeClock()))
    running.app.script(Script(hold="never"))

    def call() -> None:
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{running.base_url}/chat/completions", json=dict(CHAT))
        failed.set()

    caller = threading.Thread(target=call)
    caller.start()
    running.app.wait_for_requests(1)[0].holding.wait()
    running.stop()
    failed.wait()
    caller.join()


def test_answers_take_their_time() -> None:
    with start_standin(StandIn(pace=Pace(first_seconds=0.05, token_seconds=0.01))) as running:
        answer = httpx.post(f"{running.base_url}/chat/completions", json={**CHAT, "stream": True})

    assert answer.elapsed.total_seconds() > 0.05 + 24 * 0.01


def test_a_stand_in_for_long_runs_keeps_only_the_last_requests() -> None:
    with start_standin(StandIn(keep=2)) as running:
        for number in range(4):
            httpx.get(f"{running.base_url}/models/{number}")

        assert [request.raw_path[-1] for request in running.app.requests] == ["2", "3"]
