"""Over HTTP: what is stored and what is not, tokens billed and saved, ids."""

from typing import Any

import orjson
import pytest

from proxy.standin import Close, Script, error_in_ok, rate_limited, server_error
from tests.integration.conftest import NewAsker
from tests.integration.contract import EMBEDDINGS_PATH, Site, cache_status, chat

RULE: dict[str, Any] = {
    "name": "all",
    "model_names": ["*"],
    "include_in_key": ["*"],
    "ttl_seconds": 600,
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def rules(**over: Any) -> dict[str, Any]:
    return {"cache_settings": {"rules": [{**RULE, **over}]}}


def choices(*reasons: str | None) -> dict[str, Any]:
    return {
        "id": "c",
        "choices": [
            {
                "index": index,
                "finish_reason": reason,
                "message": {"role": "assistant", "content": "x"},
            }
            for index, reason in enumerate(reasons)
        ],
    }


NO_CHUNK = 'data: {"choices": 1}\n\ndata: [DONE]\n\n'
SSE = "text/event-stream"


@pytest.mark.parametrize(
    ("script", "request_over", "reason"),
    [
        pytest.param(rate_limited(), {}, "status", id="429"),
        pytest.param(server_error(), {}, "status", id="500"),
        pytest.param(Script(status=201), {}, "status", id="201"),
        pytest.param(error_in_ok(), {}, "error-body", id="error-in-200"),
        pytest.param(
            Script(body="hello", content_type="text/plain"), {}, "content-type", id="text"
        ),
        pytest.param(Script(body='{"choices":[{'), {}, "unparsable", id="cut-json"),
        pytest.param(Script(body="[1]"), {}, "unparsable", id="array"),
        pytest.param(Script(body={"choices": []}), {}, "unfinished", id="no-choice"),
        pytest.param(
            Script(body=choices("stop", None)), {"n": 2}, "unfinished", id="one-unfinished"
        ),
        pytest.param(Script(finish_reason="length"), {}, "finish-reason", id="length"),
        pytest.param(Script(finish_reason="content_filter"), {}, "finish-reason", id="filtered"),
        pytest.param(
            Script(body=choices("stop", "length")), {"n": 2}, "finish-reason", id="one-of-two-cut"
        ),
        pytest.param(
            Script(arguments='{"a": '), {"tools": TOOLS}, "tool-arguments", id="broken-arguments"
        ),
        pytest.param(Script(content="x" * 20_000), {}, "too-large", id="too-large"),
        pytest.param(Script(encoding="br"), {}, "content-coding", id="unknown-coding"),
        pytest.param(Script(done=False), {"stream": True}, "truncated", id="no-done"),
        pytest.param(
            Script(error_event={"error": {"message": "busy"}}, error_after=2),
            {"stream": True},
            "error-event",
            id="error-event",
        ),
        pytest.param(
            Script(finish_reason="length"), {"stream": True}, "finish-reason", id="stream-length"
        ),
        pytest.param(
            Script(body=NO_CHUNK, content_type=SSE), {"stream": True}, "unparsable", id="no-chunk"
        ),
        pytest.param(
            Script(content="x" * 20_000), {"stream": True}, "too-large", id="stream-too-large"
        ),
        pytest.param(
            Script(encoding="br"), {"stream": True}, "content-coding", id="stream-unknown-coding"
        ),
        pytest.param(
            Script(arguments="{"),
            {"stream": True, "tools": TOOLS},
            "tool-arguments",
            id="stream-tool",
        ),
    ],
)
def test_B14_what_is_no_complete_success_is_counted_and_not_stored(
    script: Script, request_over: dict[str, Any], reason: str, ask: NewAsker, site: Site
) -> None:
    running = ask(rules(max_entry_bytes=16_384))
    body = chat(**request_over)
    site.standin.app.script(script)

    bad = running(body)

    assert bad.headers["x-cache"] == "MISS"
    assert "stored" not in cache_status(bad)
    assert running.counted(f'magic_proxy_not_stored_total{{reason="{reason}"}}') == 1
    assert running.stored() == 0
    if not body.get("stream"):
        assert cache_status(bad)["detail"] == f"absent, not-stored:{reason}"
    again = running(body)
    assert again.headers["x-cache"] == "MISS"
    assert site.standin.app.count() == 2


@pytest.mark.parametrize(
    ("over", "headers", "reason"),
    [
        pytest.param({"ttl_seconds": 0}, {}, "no-lifetime", id="ttl-0"),
        pytest.param({}, {"cache-control": "no-store"}, "client-no-store", id="no-store"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B14_what_may_not_be_stored_is_counted(
    over: dict[str, Any], headers: dict[str, str], reason: str, stream: bool, ask: NewAsker
) -> None:
    running = ask(rules(**over))

    answer = running(chat(stream=stream), headers=headers)

    assert cache_status(answer)["detail"] == f"absent, not-stored:{reason}"
    assert running.counted(f'magic_proxy_not_stored_total{{reason="{reason}"}}') == 1
    assert running.stored() == 0


def test_B14_a_rule_can_store_more_finish_reasons(ask: NewAsker, site: Site) -> None:
    running = ask(rules(store_finish_reasons=["stop", "length"]))
    site.standin.app.script(Script(finish_reason="length"))

    assert [running().headers["x-cache"] for _ in range(2)] == ["MISS", "HIT"]


def test_B14_a_wrong_number_of_vectors_is_not_stored(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(drop_items=1))
    body = {"model": "text-embedding-3-small", "input": ["a", "b"]}

    bad, good = (running(body, path=EMBEDDINGS_PATH) for _ in range(2))

    assert cache_status(bad)["detail"] == "absent, not-stored:item-count"
    assert good.headers["x-cache"] == "MISS"


PRICES = {
    "prices": {
        "gpt-4o*": {"prompt_per_million": 1_000_000, "completion_per_million": 10_000_000},
    }
}


def tokens(running: Any) -> dict[str, tuple[float, float]]:
    """Billed and saved: tokens of prompts and of completions."""
    sample = 'magic_proxy_tokens_total{{direction="{}",kind="{}"}}'
    return {
        kind: (
            running.counted(sample.format("prompt", kind)),
            running.counted(sample.format("completion", kind)),
        )
        for kind in ("billed", "saved")
    }


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({}, {}, id="json"),
        pytest.param(
            {"stream": True, "stream_options": {"include_usage": True}},
            {"stream": True, "stream_options": {"include_usage": True}},
            id="stream",
        ),
        pytest.param(
            {}, {"stream": True, "stream_options": {"include_usage": True}}, id="json-then-stream"
        ),
    ],
)
def test_B16_billed_and_saved_tokens_and_cost_are_counted_apart(
    first: dict[str, Any], second: dict[str, Any], ask: NewAsker, site: Site
) -> None:
    running = ask(PRICES)

    miss = running(chat(**first))
    billed = tokens(running)
    hits = [running(chat(**second)) for _ in range(3)]

    assert [hit.headers["x-cache"] for hit in hits] == ["HIT"] * 3
    prompt, completion = billed["billed"]
    assert min(prompt, completion) > 0
    assert billed == {"billed": (prompt, completion), "saved": (0, 0)}
    assert tokens(running) == {
        "billed": (prompt, completion),
        "saved": (3 * prompt, 3 * completion),
    }
    cost = prompt + 10 * completion
    assert running.counted('magic_proxy_cost_total{kind="billed"}') == pytest.approx(cost)
    assert running.counted('magic_proxy_cost_total{kind="saved"}') == pytest.approx(3 * cost)
    if not first:
        told = orjson.loads(miss.content)["usage"]
        assert (told["prompt_tokens"], told["completion_tokens"]) == (prompt, completion)


def test_B16_tokens_of_answers_that_are_not_stored_are_billed_too(
    ask: NewAsker, site: Site
) -> None:
    running = ask(PRICES)

    bypassed = running(chat(temperature=2))
    passed = running(chat(), headers={"cache-control": "no-store"})

    each = [orjson.loads(answer.content)["usage"] for answer in (bypassed, passed)]
    assert tokens(running) == {
        "billed": (
            sum(usage["prompt_tokens"] for usage in each),
            sum(usage["completion_tokens"] for usage in each),
        ),
        "saved": (0, 0),
    }


def test_B16_a_model_without_a_price_costs_nothing(ask: NewAsker) -> None:
    running = ask({"prices": {"gpt-5*": {"prompt_per_million": 1}}})

    running()

    assert tokens(running)["billed"][0] > 0
    assert running.counted('magic_proxy_cost_total{kind="billed"}') == 0


def test_B16_usage_of_a_stream_is_asked_for_and_kept_from_who_did_not_ask(
    ask: NewAsker, site: Site
) -> None:
    running = ask(
        {"upstreams": {"openai": {"base_url": site.standin.base_url, "request_usage": True}}}
    )

    first, second = running(chat(stream=True)), running(chat(stream=True))
    asked = running(chat(stream=True, stream_options={"include_usage": True}))

    assert site.standin.app.requests[0].json()["stream_options"] == {"include_usage": True}
    assert b'"usage":{' not in first.content
    assert second.content == first.content
    assert asked.headers["x-cache"] == "HIT"
    assert b'"usage":{' in asked.content
    billed, saved = tokens(running).values()
    assert billed[1] > 0
    assert saved == (2 * billed[0], 2 * billed[1])


@pytest.mark.parametrize("stored_as_stream", [False, True], ids=["from-json", "from-stream"])
@pytest.mark.parametrize("stream", [False, True], ids=["as-json", "as-stream"])
def test_B17_fresh_ids_are_new_in_every_answer_and_nothing_else_is(
    stored_as_stream: bool, stream: bool, ask: NewAsker, site: Site
) -> None:
    running = ask(rules(fresh_ids=True))
    first = running(chat(stream=stored_as_stream))

    hits = [running(chat(stream=stream)) for _ in range(2)]

    assert [hit.headers["x-cache"] for hit in hits] == ["HIT", "HIT"]
    ids = [_ids(hit.content, stream=stream) for hit in hits]
    original = _ids(first.content, stream=stored_as_stream)
    assert all(len(each) == 1 for each in (*ids, original)), "one id in all chunks of a stream"
    assert len({*ids[0], *ids[1], *original}) == 3
    assert all(str(each).startswith("chatcmpl-") for each in ids[0] | ids[1])
    assert _without_ids(hits[0].content, stream=stream) == _without_ids(
        hits[1].content, stream=stream
    )


def test_B17_ids_are_replayed_by_default(ask: NewAsker) -> None:
    running = ask()

    first, second = running(), running()

    assert orjson.loads(second.content)["id"] == orjson.loads(first.content)["id"]
    assert orjson.loads(second.content)["created"] == orjson.loads(first.content)["created"]


def test_B17_each_answer_has_a_request_id_of_its_own(ask: NewAsker, site: Site) -> None:
    running = ask()
    site.standin.app.script(Script(close=Close.RESET, close_before_answer=True))

    answers = [
        running(),  # broken upstream
        running(),  # miss
        running(),
        running(),  # hits
        running(b"{"),
        running(b"{"),
        running(chat(stream=True)),  # a hit in the other form
    ]

    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    assert all(len(each) > 8 for each in ids)


def _objects(body: bytes, *, stream: bool) -> list[dict[str, Any]]:
    if not stream:
        return [orjson.loads(body)]
    lines = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [orjson.loads(line) for line in lines]


def _ids(body: bytes, *, stream: bool) -> set[str]:
    return {each["id"] for each in _objects(body, stream=stream)}


def _without_ids(body: bytes, *, stream: bool) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in each.items() if name not in {"id", "created"}}
        for each in _objects(body, stream=stream)
    ]
