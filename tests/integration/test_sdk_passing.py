"""The OpenAI SDK through the proxy: what is not cached passes through as it is."""

import httpx
import openai
import orjson
import pytest

from proxy.standin import RunningStandIn, Script
from tests.integration.conftest import NewClient
from tests.integration.sdk import CHAT
from tests.integration.servers import ProxyFactory


def test_B60_models_and_files_pass_through(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    names = [model.id for model in sdk.models.list()]
    file = sdk.files.create(file=("data.bin", b"\0\xff" * 1_000_000), purpose="assistants")

    assert "gpt-4o" in names
    assert file.bytes > 2_000_000
    assert sdk.files.retrieve(file.id) == file
    assert standin.app.requests[1].credential == "sk-test"


def test_B60_method_path_query_and_headers_arrive_unchanged(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy()
    headers = [("x-twice", "1"), ("x-twice", "2"), ("connection", "x-hop"), ("x-hop", "1")]

    answer = httpx.patch(
        f"{running.base_url}/echo/a%2Fb;x=1?q=[1]&plus=a+b&empty", headers=headers, content=b"\0hi"
    )

    (seen,) = standin.app.requests
    assert answer.status_code == 200
    assert (seen.method, seen.raw_path) == ("PATCH", "/v1/echo/a%2Fb;x=1")
    assert seen.query == "q=[1]&plus=a+b&empty"
    assert seen.body == b"\0hi"
    assert [value for name, value in seen.headers if name == b"x-twice"] == [b"1", b"2"]
    assert seen.header("x-hop") is None
    assert answer.headers["set-cookie"]


def test_B61_a_request_without_rewriting_is_forwarded_byte_for_byte(
    proxy: ProxyFactory, standin: RunningStandIn
) -> None:
    running = proxy()
    body = b'{ "model":"gpt-4o-mini",\n "temperature" : 1.0, "messages":[{"role":"user","content":"\\u00e9"}]}'

    answer = httpx.post(
        f"{running.base_url}/chat/completions",
        content=body,
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 200
    assert standin.app.requests[0].body == body


def test_B65_an_unknown_path_gets_the_upstreams_own_error(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())

    with pytest.raises(openai.NotFoundError) as unknown:
        sdk.get("/nowhere", cast_to=httpx.Response)

    assert unknown.value.code == "unknown_url"


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B65_a_connection_that_breaks_before_the_answer_is_a_502_in_the_envelope(
    stream: bool, proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    sdk = client(proxy())
    standin.app.script(Script(close_before_answer=True), times=None)

    with pytest.raises(openai.InternalServerError) as failed:
        sdk.chat.completions.create(**CHAT, stream=stream)

    error = orjson.loads(failed.value.response.content)["error"]
    assert failed.value.status_code == 502
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "upstream_error"
    assert failed.value.response.headers["x-cache"] == "ERROR"
