"""Over HTTP: what is told of requests that end otherwise than clients and operators hope."""

from typing import Any

import httpx
import orjson
import pytest

from proxy.standin import RunningStandIn, Script
from tests.integration.conftest import NewAsker
from tests.integration.contract import (
    CHAT_PATH,
    EMBEDDINGS_PATH,
    Asker,
    Site,
    chat,
    error_of,
    metric,
    post,
)
from tests.integration.servers import ProxyFactory
from tests.integration.wire import Wire
from tests.waiting import eventually

OUTCOMES = ("hit", "miss", "bypass", "stale", "error")


def requests_told(asker: Asker, endpoint: str) -> dict[str, float]:
    """How many requests were told since the asker was made, by outcome."""
    sample = 'magic_proxy_requests_total{{endpoint="{}",outcome="{}"}}'
    counts = {name: asker.counted(sample.format(endpoint, name)) for name in OUTCOMES}
    return {name: count for name, count in counts.items() if count}


def incomplete(asker: Asker, endpoint: str) -> float:
    return asker.counted(f'magic_proxy_incomplete_answers_total{{endpoint="{endpoint}"}}')


def key_of(asker: Asker) -> dict[str, str]:
    return {"authorization": f"Bearer {asker.key}"}


@pytest.mark.parametrize("over", [{}, {"temperature": 2}], ids=["miss", "bypass"])
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B42_a_client_that_leaves_before_its_answer_begins_is_told_as_an_error(
    stream: bool, over: dict[str, Any], ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never"))

    with Wire(running.proxy.url) as wire:
        wire.request("POST", "/v1" + CHAT_PATH, chat(stream=stream, **over), key_of(running))
        site.standin.app.wait_for_requests(1)[0].holding.wait()

    eventually(lambda: incomplete(running, "chat") == 1)
    assert requests_told(running, "chat") == {"error": 1}
    assert running.stored() == 0


def test_B42_a_client_that_leaves_a_stream_is_told_as_incomplete(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never", hold_after=1))

    with Wire(running.proxy.url) as wire:
        wire.request("POST", "/v1" + CHAT_PATH, chat(stream=True), key_of(running))
        wire.read_until(b"data: ")

    eventually(lambda: incomplete(running, "chat") == 1)
    assert requests_told(running, "chat") == {"miss": 1}
    assert running.counted("magic_proxy_in_flight") == 0


@pytest.mark.parametrize("path", [CHAT_PATH, EMBEDDINGS_PATH, "/files"])
def test_B42_a_client_that_leaves_in_its_upload_is_told_as_incomplete(
    path: str, ask: NewAsker, site: Site
) -> None:
    running = ask()
    endpoint = {CHAT_PATH: "chat", EMBEDDINGS_PATH: "embeddings"}.get(path, "other")

    with Wire(running.proxy.url) as wire:
        head = f"POST /v1{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        wire.send(head.encode() + b'{"model":')
        if endpoint == "other":
            site.standin.app.wait_for_requests(1)

    eventually(lambda: incomplete(running, endpoint) == 1)
    told = requests_told(running, endpoint)
    assert told == {"bypass" if endpoint == "other" else "error": 1}


@pytest.mark.parametrize("hold_after", [None, 1], ids=["before-the-answer", "in-its-body"])
def test_B60_a_client_that_leaves_a_pass_through_is_told_as_incomplete(
    hold_after: int | None, ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(hold="never", hold_after=hold_after, split_bytes=40))

    with Wire(running.proxy.url) as wire:
        wire.request("GET", "/v1/echo", headers=key_of(running))
        site.standin.app.wait_for_requests(1)[0].holding.wait()
        if hold_after is not None:
            wire.read_until(b"\r\n\r\n", b'{"')

    eventually(lambda: incomplete(running, "other") == 1)
    assert requests_told(running, "other") == {"bypass": 1}
    assert running.counted('magic_proxy_bypass_total{reason="not-cacheable"}') == 1


def test_B60_a_pass_through_that_ends_well_is_told_as_complete(ask: NewAsker) -> None:
    running = ask()

    answer = httpx.get(f"{running.proxy.base_url}/echo", headers=key_of(running))

    assert answer.status_code == 200
    eventually(lambda: requests_told(running, "other") == {"bypass": 1})
    assert incomplete(running, "other") == 0


def test_B60_a_pass_through_that_breaks_off_upstream_is_told_as_incomplete(
    ask: NewAsker, site: Site
) -> None:
    running = ask()
    site.standin.app.script(Script(split_bytes=10, hold="cut", hold_after=1, close_after=1))

    with Wire(running.proxy.url) as wire:
        wire.request("GET", "/v1/echo", headers=key_of(running))
        site.standin.app.wait_for_requests(1)[0].holding.wait()
        wire.read_until(b"\r\n\r\n")
        site.standin.app.gate("cut").set()
        wire.read_all()

    assert (wire.status, wire.ended) == (200, True)
    eventually(lambda: incomplete(running, "other") == 1)
    assert requests_told(running, "other") == {"bypass": 1}


def without_id(status: int = 200) -> Script:
    """An answer of an upstream that gives its answers no ids."""
    body = orjson.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": {}}]})
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return Script(raw=f"{head}\r\n\r\n{body.decode()}")


@pytest.mark.parametrize(
    ("script", "body", "path"),
    [
        pytest.param(None, chat(), CHAT_PATH, id="miss"),
        pytest.param(None, chat(stream=True), CHAT_PATH, id="stream"),
        pytest.param(None, chat(temperature=2), CHAT_PATH, id="bypass"),
        pytest.param(None, {"model": "m", "input": "a"}, EMBEDDINGS_PATH, id="embeddings"),
        pytest.param(Script(status=500), chat(), CHAT_PATH, id="upstream-error"),
        pytest.param(without_id(), chat(), CHAT_PATH, id="no-id-upstream"),
        pytest.param(Script(close_before_answer=True), chat(), CHAT_PATH, id="no-answer"),
        pytest.param(None, b"{", CHAT_PATH, id="refused"),
        pytest.param(None, {"input": "a"}, "/moderations", id="pass-through"),
        pytest.param(
            Script(headers=(("x-request-id", "r" * 300),)), chat(), CHAT_PATH, id="long-id"
        ),
    ],
)
def test_B17_the_log_names_the_request_id_that_the_client_saw(
    script: Script | None,
    body: Any,
    path: str,
    proxy: ProxyFactory,
    standin: RunningStandIn,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    running = proxy({"server": {"access_log": True}})
    if script is not None:
        standin.app.script(script)

    first = post(running, body, path=path)
    second = post(running, body, path=path)
    running.stop()

    lines = [orjson.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    seen = [answer.headers["x-request-id"] for answer in (first, second)]
    assert [line["request_id"] for line in lines] == [each[:200] for each in seen]
    assert len(set(seen)) == 2, "a hit has an id of its own"
    assert [line["status"] for line in lines] == [first.status_code, second.status_code]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/readyz", {"GET", "HEAD"}),
        ("PUT", "/metrics", {"GET", "HEAD"}),
        ("GET", "/admin/explain", {"POST"}),
    ],
)
def test_B73_a_405_tells_what_is_allowed(
    method: str, path: str, allowed: set[str], ask: NewAsker
) -> None:
    answer = httpx.request(method, f"{ask().proxy.url}{path}")

    assert answer.status_code == 405
    assert error_of(answer)["code"] == "method_not_allowed"
    assert {each.strip() for each in answer.headers["allow"].split(",")} == allowed


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_who_watches_may_ask_for_the_head_alone(path: str, ask: NewAsker) -> None:
    url = f"{ask().proxy.url}{path}"

    head, whole = httpx.head(url), httpx.get(url)

    assert head.status_code == whole.status_code == 200
    assert head.headers["content-type"] == whole.headers["content-type"]
    assert (head.content, whole.content != b"") == (b"", True)


def _fail(*_: Any, **__: Any) -> Any:
    raise ZeroDivisionError("a secret detail")


@pytest.mark.parametrize(
    ("part", "path", "endpoint"),
    [
        ("proxy.engine.service.make_plan", CHAT_PATH, "chat"),
        ("proxy.engine.service.make_plan", EMBEDDINGS_PATH, "embeddings"),
        ("proxy.engine.leading.judge_json", CHAT_PATH, "chat"),
        ("proxy.edge.passthrough.refuse_dot_segments", "/moderations", "other"),
        ("proxy.edge.passthrough.send_stream", "/moderations", "other"),
    ],
)
def test_B73_a_fault_of_the_proxy_itself_is_told_once(
    part: str, path: str, endpoint: str, ask: NewAsker, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = ask()
    monkeypatch.setattr(part, _fail)

    answer = running(chat(input="a"), path=path)

    assert answer.status_code == 500
    assert error_of(answer)["code"] == "internal_error"
    assert requests_told(running, endpoint) == {"error": 1}
    assert incomplete(running, endpoint) == 0
    assert metric(running.proxy, "magic_proxy_in_flight") == 0


@pytest.mark.parametrize(
    ("part", "target", "endpoint", "told"),
    [
        ("proxy.edge.passthrough.RawBody.__aiter__", "/v1/moderations", "other", "error"),
        ("proxy.engine.leading.StreamRecorder.feed", "/v1" + CHAT_PATH, "chat", "miss"),
    ],
)
def test_B73_a_fault_in_an_answer_that_has_begun_is_told_once(
    part: str,
    target: str,
    endpoint: str,
    told: str,
    ask: NewAsker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = ask()
    monkeypatch.setattr(part, _fail)

    with Wire(running.proxy.url) as wire:
        wire.request("POST", target, chat(stream=True, input="a"), key_of(running))
        wire.read_all()

    assert wire.ended
    assert wire.status != 500, "it had begun"
    assert b"secret detail" not in wire.received
    eventually(lambda: incomplete(running, endpoint) == 1)
    assert requests_told(running, endpoint) == {told: 1}
    assert running.stored() == 0


def test_B12_a_failed_forward_says_why_it_was_forwarded(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(close_before_answer=True), times=None)

    failed = running()

    assert failed.status_code == 502
    assert failed.headers["x-cache"] == "ERROR"
    assert "fwd=miss" in failed.headers["cache-status"]
    assert "fwd-status" not in failed.headers["cache-status"]


def test_B73_a_closed_list_of_models_takes_no_body_without_a_model(
    ask: NewAsker, site: Site
) -> None:
    running = ask({"models": {"main": {}}, "unlisted_models": "refuse"})
    body = {name: value for name, value in chat().items() if name != "model"}

    refused = running(body)

    assert refused.status_code == 404
    assert site.standin.app.requests == []
