"""The OpenAI SDK fails through the proxy as it fails without: types, retries, waits, contents."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from proxy.standin import Close, Script
from proxy.standin.script import deactivated, out_of_quota, rate_limited, unauthorised
from tests.integration.conftest import NewAsker
from tests.integration.contract import Site
from tests.integration.sdk import CHAT

CALLS: dict[str, Callable[[openai.OpenAI], Any]] = {
    "chat": lambda sdk: sdk.chat.completions.create(**CHAT),
    "stream": lambda sdk: list(sdk.chat.completions.create(**CHAT, stream=True)),
    "embeddings": lambda sdk: sdk.embeddings.create(model="m", input=["a", "b"]),
    "models": lambda sdk: sdk.models.list(),
    "upload": lambda sdk: sdk.files.create(file=("a.bin", b"\0\xff"), purpose="assistants"),
}


def error(status: int, code: str | None = None, **headers: str) -> Script:
    told = {
        "message": f"It is {status}.",
        "type": "some_error",
        "param": "p",
        "code": code,
        "x": [1.0],
    }
    pairs = {"x-request-id": f"req_{status}", **headers}
    return Script(
        status=status,
        headers=tuple((name.replace("_", "-"), value) for name, value in pairs.items()),
        body={"error": told},
    )


FAILURES = {
    "400": error(400, "invalid_value"),
    "401": unauthorised(),
    "401-deactivated": deactivated(),
    "402": error(402, "billing_hard_limit_reached"),
    "403": error(403, "unsupported_country"),
    "404": error(404, "model_not_found"),
    "408": error(408),
    "409": error(409),
    "413": error(413, "too_large"),
    "422": error(422),
    "429": error(429, "rate_limit_exceeded"),
    "429-seconds": rate_limited("7"),
    "429-fraction": error(429, retry_after="0.25"),
    "429-milliseconds": error(429, retry_after_ms="1500", retry_after="9"),
    "429-date": error(429, retry_after=formatdate(4_000_000_000, usegmt=True)),
    "429-zero": error(429, retry_after="0"),
    "429-hours": error(429, retry_after="7200"),
    "429-rubbish": error(429, retry_after="soon"),
    "429-resets": error(429, x_ratelimit_reset_requests="2m0s", x_ratelimit_remaining_requests="0"),
    "429-not-again": error(429, x_should_retry="false", retry_after="1"),
    "429-quota": out_of_quota(),
    "400-again": error(400, x_should_retry="true", retry_after="1"),
    "500": error(500),
    "500-not-again": error(500, x_should_retry="false"),
    "500-no-json": Script(status=500, body="<h1>Oops</h1>", content_type="text/html"),
    "502-empty": Script(status=502, body=""),
    "503": error(503, retry_after="3"),
    "504": error(504),
    "529": error(529, "overloaded_error"),
}


@dataclass
class Failure:
    """All that a caller can see of one, and what it took."""

    kind: type[BaseException]
    status: int | None
    code: str | None
    param: str | None
    message: str
    body: object
    request_id: str | None
    told: dict[str, str]
    waits: list[float] = field(default_factory=list)
    asked: int = 0


READ = ("retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "content-type")


def failure(
    sdk: openai.OpenAI, call: Callable[[openai.OpenAI], Any], waits: list[float]
) -> Failure:
    with pytest.raises(openai.APIError) as failed:
        call(sdk)
    told = failed.value
    taken = list(waits)
    waits.clear()
    if not isinstance(told, openai.APIStatusError):
        return Failure(type(told), None, None, None, told.message, told.body, None, {}, taken)
    headers = told.response.headers
    named = {n: v for n, v in headers.items() if n in READ or n.startswith("x-ratelimit-")}
    return Failure(
        type(told),
        told.status_code,
        told.code,
        told.param,
        told.message,
        told.body,
        told.request_id,
        named,
        taken,
    )


@pytest.fixture(scope="module")
def sdk() -> Iterator[openai.OpenAI]:
    """One for all tests: its TLS context takes longer to make than all of a test."""
    with openai.OpenAI(api_key="k", max_retries=2, timeout=20.0) as made:
        yield made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the SDK would have slept; its dice always show the same."""
    waited: list[float] = []
    clock = SimpleNamespace(time=time.time, sleep=waited.append)
    monkeypatch.setattr("openai._base_client.time", clock)
    monkeypatch.setattr("openai._base_client.random", lambda: 0.0)
    return waited


TOLD_EVERYWHERE = ("400", "429-milliseconds", "500-no-json", "529")
CASES = [
    pytest.param(script, call, id=f"{name}-{call}")
    for name, script in FAILURES.items()
    for call in CALLS
    if call in {"chat", "models"} or name in TOLD_EVERYWHERE
]


@pytest.mark.parametrize(("script", "call"), CASES)
def test_B65_the_sdk_fails_as_it_does_without_the_proxy(
    script: Script, call: str, ask: NewAsker, site: Site, waits: list[float], sdk: openai.OpenAI
) -> None:
    running = ask()
    site.standin.app.script(script, times=None)
    to = partial(sdk.with_options, api_key=running.key)

    direct = failure(to(base_url=site.standin.base_url), CALLS[call], waits)
    direct.asked = site.standin.app.count()
    through = failure(to(base_url=running.proxy.base_url), CALLS[call], waits)
    through.asked = site.standin.app.count() - direct.asked

    if "x-request-id" not in dict(script.headers):
        # The upstream makes a new one for each answer; each way shows that of its own.
        assert through.request_id
        direct.request_id = through.request_id
        direct.told["x-request-id"] = through.told["x-request-id"]
    assert through == direct
    assert running.stored() == 0


@pytest.mark.parametrize("call", ["chat", "stream"])
def test_B65_a_retry_that_succeeds_succeeds_through_the_proxy(
    call: str, ask: NewAsker, site: Site, waits: list[float], sdk: openai.OpenAI
) -> None:
    running = ask()
    site.standin.app.script(error(503, retry_after="3"))
    site.standin.app.script(rate_limited("7"))

    assert CALLS[call](sdk.with_options(base_url=running.proxy.base_url, api_key=running.key))

    assert waits == [3.0, 7.0]
    assert [seen.header("x-stainless-retry-count") for seen in site.standin.app.requests] == [
        "0",
        "1",
        "2",
    ]


def test_B65_a_connection_that_is_cut_is_retried_either_way(
    ask: NewAsker, site: Site, waits: list[float], sdk: openai.OpenAI
) -> None:
    running = ask()
    site.standin.app.script(Script(close_before_answer=True, close=Close.RESET), times=None)
    to = partial(sdk.with_options, api_key=running.key)

    direct = failure(to(base_url=site.standin.base_url), CALLS["chat"], waits)
    through = failure(to(base_url=running.proxy.base_url), CALLS["chat"], waits)

    # The proxy did answer, and says what it knows: this is the one class that differs.
    assert direct.kind is openai.APIConnectionError
    assert (through.kind, through.status) == (openai.InternalServerError, 502)
    assert through.waits == direct.waits, "two retries, after the same waits"


def test_B21_a_stream_that_is_cut_fails_as_it_does_without_the_proxy(
    ask: NewAsker, site: Site, waits: list[float], sdk: openai.OpenAI
) -> None:
    running = ask()
    site.standin.app.script(Script(close_after=2, hold="go", hold_after=1), times=None)
    site.standin.app.gate("go").set()

    def got(base_url: str) -> tuple[type[BaseException], int]:
        chunks: list[Any] = []
        asking = sdk.with_options(base_url=base_url, api_key=running.key, max_retries=0)
        stream = asking.chat.completions.create(**CHAT, stream=True)
        with pytest.raises(Exception) as failed:  # noqa: PT011  # which one is the question
            chunks.extend(stream)
        return type(failed.value), len(chunks)

    assert got(running.proxy.base_url) == got(site.standin.base_url)


def test_B65_a_time_out_of_the_sdk_is_one_through_the_proxy(
    ask: NewAsker, site: Site, waits: list[float], sdk: openai.OpenAI
) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never"), times=None)

    for base_url in (site.standin.base_url, running.proxy.base_url):
        asking = sdk.with_options(
            base_url=base_url, api_key=running.key, max_retries=1, timeout=0.3
        )
        with pytest.raises(openai.APITimeoutError):
            asking.chat.completions.create(**CHAT)

    assert waits == [0.5, 0.5]
    site.standin.app.gate("never").set()
