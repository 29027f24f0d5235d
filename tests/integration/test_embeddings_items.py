"""Embeddings by item, over HTTP: plain requests and the OpenAI SDK, one proxy and two."""

import base64
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from proxy.access.clients import hash_key
from proxy.standin import RunningStandIn, Script
from proxy.standin.embeddings import token_count, vector
from tests.integration.conftest import NewAsker, NewClient
from tests.integration.contract import (
    EMBEDDINGS_PATH,
    Asker,
    Site,
    cache_status,
    error_of,
    metric,
    post,
)
from tests.integration.redis_server import RedisServer
from tests.integration.sdk import embed
from tests.integration.servers import ProxyFactory
from tests.waiting import eventually

MODEL = "text-embedding-3-small"


def wanted(given: Any, **members: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": given, **members}


def asked(ask: Asker, given: Any, *, headers: Any = (), **members: Any) -> httpx.Response:
    return ask(wanted(given, **members), path=EMBEDDINGS_PATH, headers=headers)


def inputs(standin: RunningStandIn) -> list[Any]:
    """What the upstream was asked for, request by request."""
    return [request.json()["input"] for request in standin.app.requests]


def check(
    response: httpx.Response, *items: Any, model: str = MODEL, dimensions: int = 1536
) -> None:
    """The answer is exactly the upstream's for these items, in this order."""
    assert response.status_code == 200
    body = response.json()
    assert (body["object"], body["model"]) == ("list", model)
    assert [row["index"] for row in body["data"]] == list(range(len(items)))
    assert {row["object"] for row in body["data"]} == {"embedding"}
    for row, item in zip(body["data"], items, strict=True):
        told = row["embedding"]
        known = tuple(item) if isinstance(item, list) else item
        packed = (
            base64.b64decode(told) if isinstance(told, str) else np.array(told, "<f4").tobytes()
        )
        assert packed == vector(known, model, dimensions)


def test_B30_only_the_missing_items_of_a_batch_go_upstream(ask: NewAsker, site: Site) -> None:
    client = ask()
    check(asked(client, ["amber", "birch"]), "amber", "birch")

    partial = asked(client, ["coral", "birch", "delta", "coral"])

    check(partial, "coral", "birch", "delta", "coral")
    assert inputs(site.standin) == [["amber", "birch"], ["coral", "delta"]]
    assert partial.headers["x-cache"] == "MISS"
    assert cache_status(partial)["detail"] == "partial:1/4"
    assert cache_status(partial)["stored"] is True
    assert client.counted('magic_proxy_embedding_items_total{result="hit"}') == 1
    assert client.counted('magic_proxy_embedding_items_total{result="miss"}') == 4
    assert client.counted('magic_proxy_embedding_items_total{result="collapsed"}') == 1
    assert client.counted('magic_proxy_miss_total{reason="partial"}') == 1
    assert client.stored() == 4


def test_B30_a_text_alone_in_an_array_and_in_a_batch_is_one_entry(
    ask: NewAsker, site: Site
) -> None:
    client = ask()
    first = asked(client, "amber")
    for given in ("amber", ["amber"], ["amber", "amber"]):
        again = asked(client, given)
        assert again.headers["x-cache"] == "HIT"
        check(again, *([given] if isinstance(given, str) else given))
    assert asked(client, ["amber"]).content == first.content
    assert len(site.standin.app.requests) == 1


def test_B30_other_members_that_count_keep_items_apart(ask: NewAsker, site: Site) -> None:
    client = ask()
    check(asked(client, ["amber", "birch"], dimensions=8), "amber", "birch", dimensions=8)
    check(asked(client, ["amber", "birch"]), "amber", "birch")
    check(asked(client, ["birch", "amber"], dimensions=8), "birch", "amber", dimensions=8)
    assert len(site.standin.app.requests) == 2


def test_B31_an_upstream_that_answers_out_of_order_is_put_right(ask: NewAsker, site: Site) -> None:
    client = ask()
    site.standin.app.script(Script(shuffle=True), times=None)
    check(asked(client, ["amber", "birch", "coral"]), "amber", "birch", "coral")
    check(asked(client, ["coral", "delta", "amber", "ember"]), "coral", "delta", "amber", "ember")
    check(asked(client, ["ember", "delta"]), "ember", "delta")
    assert len(site.standin.app.requests) == 2


def test_B31_an_answer_with_too_few_items_stores_nothing(ask: NewAsker, site: Site) -> None:
    client = ask()
    site.standin.app.script(Script(drop_items=1))
    own = asked(client, ["amber", "birch"])
    assert (own.status_code, len(own.json()["data"])) == (200, 1)
    assert "not-stored:item-count" in own.headers["cache-status"]
    asked(client, ["amber", "birch"])
    site.standin.app.script(Script(drop_items=1))

    composed = asked(client, ["amber", "coral", "delta"])

    assert composed.status_code == 502
    assert error_of(composed)["code"] == "upstream_protocol_error"
    assert composed.headers["x-cache"] == "ERROR"
    check(asked(client, ["delta", "amber"]), "delta", "amber")
    assert inputs(site.standin)[-1] == ["delta"]


def test_B32_usage_is_what_the_whole_input_costs_whatever_was_a_hit(
    ask: NewAsker, site: Site
) -> None:
    client = ask()
    given = [[1, 2, 3], [4], [5, 6], [4]]
    totals = {"prompt_tokens": 7, "total_tokens": 7}
    first, partial, hit = (asked(client, part) for part in ([[4], [9]], given, given))
    assert [answer.headers["x-cache"] for answer in (first, partial, hit)] == [
        "MISS",
        "MISS",
        "HIT",
    ]
    assert partial.json()["usage"] == hit.json()["usage"] == totals
    assert client.counted('magic_proxy_tokens_total{direction="prompt",kind="billed"}') == 2 + 5
    assert client.counted('magic_proxy_tokens_total{direction="prompt",kind="saved"}') == 2 + 7

    texts = ["a longer text about rivers", "amber", "birch and more"]
    whole = asked(client, texts).json()["usage"]
    assert whole["total_tokens"] == sum(map(token_count, texts))
    parts = [asked(client, text).json()["usage"]["total_tokens"] for text in texts]
    assert sum(parts) == whole["total_tokens"]
    assert min(parts) >= 1


@pytest.mark.parametrize("first", ["float", "base64"])
def test_B33_numbers_are_those_of_the_upstream_in_either_encoding(
    first: str, ask: NewAsker, site: Site
) -> None:
    client, direct = ask(), site.standin.base_url
    items = ["amber", "birch", "coral"]
    asked(client, items, encoding_format=first)
    for encoding in ("float", "base64"):
        told = asked(client, items[::-1], encoding_format=encoding)
        assert told.headers["x-cache"] == "HIT"
        true = post(direct, wanted(items[::-1], encoding_format=encoding), path=EMBEDDINGS_PATH)
        for row, same in zip(told.json()["data"], true.json()["data"], strict=True):
            assert type(row["embedding"]) is type(same["embedding"])
            if encoding == "base64":
                assert row["embedding"] == same["embedding"]
            else:
                assert np.array_equal(
                    np.array(row["embedding"], np.float32), np.array(same["embedding"], np.float32)
                )


def test_B33_the_sdk_in_base64_and_plain_requests_in_float_share_items(
    proxy: ProxyFactory, client: NewClient, standin: RunningStandIn
) -> None:
    running = proxy()
    sdk = embed(client(running), input=["amber", "birch"])
    assert sdk.x_cache == "MISS"
    plain = post(running, wanted(["birch", "amber", "coral"]), path=EMBEDDINGS_PATH)
    check(plain, "birch", "amber", "coral")
    again = embed(client(running), input=["coral", "amber"])
    assert again.x_cache == "HIT"
    assert [np.array(row.embedding, np.float32).tobytes() for row in again.value.data] == [
        vector(item, MODEL, 1536) for item in ("coral", "amber")
    ]
    assert inputs(standin) == [["amber", "birch"], ["coral"]]


def test_B34_token_arrays_are_items(ask: NewAsker, site: Site) -> None:
    client = ask()
    check(asked(client, [1, 2, 3]), [1, 2, 3])
    answer = asked(client, [[4, 5], [1, 2, 3], [6]])
    check(answer, [4, 5], [1, 2, 3], [6])
    check(asked(client, [[6]]), [6])
    assert inputs(site.standin) == [[1, 2, 3], [[4, 5], [6]]]


def test_B34_an_input_of_another_shape_is_the_upstreams_to_judge(ask: NewAsker) -> None:
    client = ask()
    for given in ([], [[1], []], ["amber", 1]):
        assert asked(client, given).status_code == 400
    mixed = [asked(client, ["amber", [1]]) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in mixed] == ["MISS", "HIT"]
    check(mixed[1], "amber", [1])


def test_B30_a_batch_is_split_for_an_upstream_that_takes_fewer(ask: NewAsker, site: Site) -> None:
    client = ask({"upstreams": {"openai": {"max_batch": 3}}})
    items = [f"item {number}" for number in range(10)]
    check(asked(client, items), *items)
    sent = inputs(site.standin)
    assert sorted(map(len, sent)) == [1, 3, 3, 3]
    assert sorted(item for part in sent for item in part) == sorted(items)


def test_B13_only_if_cached_takes_a_batch_of_hits_alone(ask: NewAsker, site: Site) -> None:
    client = ask()
    asked(client, ["amber", "birch"])
    only = {"cache-control": "only-if-cached"}
    check(asked(client, ["birch", "amber"], headers=only), "birch", "amber")
    refused = asked(client, ["amber", "coral"], headers=only)
    assert (refused.status_code, error_of(refused)["code"]) == (504, "not_cached")
    assert len(site.standin.app.requests) == 1


def test_B40_overlapping_batches_at_once_ask_for_each_item_once(ask: NewAsker, site: Site) -> None:
    client = ask()
    site.standin.app.script(Script(hold="open"), times=None)
    batches = [["amber", "birch"], ["birch", "coral"], ["coral", "amber", "birch"]]
    with ThreadPoolExecutor(3) as callers:
        answers = []
        for number, batch in enumerate(batches, start=1):
            answers.append(callers.submit(asked, client, batch))
            if number < 3:
                site.standin.app.wait_for_requests(number)
        eventually(lambda: metric(client.proxy, "magic_proxy_in_flight") == 3)
        site.standin.app.gate("open").set()
        for batch, answer in zip(batches, answers, strict=True):
            check(answer.result(), *batch)
    assert inputs(site.standin) == [["amber", "birch"], ["coral"]]


def test_B40_two_proxies_on_one_redis_ask_for_each_item_once(
    proxy: ProxyFactory, standin: RunningStandIn, redis: RedisServer
) -> None:
    settings = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    one, other = proxy(settings), proxy(settings)
    standin.app.script(Script(hold="open"), times=None)
    with ThreadPoolExecutor(2) as callers:
        first = callers.submit(post, one, wanted(["amber", "birch"]), path=EMBEDDINGS_PATH)
        standin.app.wait_for_requests(1)
        second = callers.submit(
            post, other, wanted(["birch", "coral", "amber"]), path=EMBEDDINGS_PATH
        )
        standin.app.wait_for_requests(2)
        standin.app.gate("open").set()
        check(first.result(), "amber", "birch")
        check(second.result(), "birch", "coral", "amber")
    assert inputs(standin) == [["amber", "birch"], ["coral"]]
    assert metric(other, 'magic_proxy_embedding_items_total{result="collapsed"}') == 2


def test_B42_a_batch_whose_client_went_away_is_stored(ask: NewAsker, site: Site) -> None:
    client = ask()
    site.standin.app.script(Script(hold="open"))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{client.proxy.base_url}{EMBEDDINGS_PATH}",
            json=wanted(["amber", "birch"]),
            headers={"authorization": f"Bearer {client.key}"},
            timeout=0.3,
            verify=False,
            trust_env=False,
        )
    eventually(
        lambda: client.counted('magic_proxy_incomplete_answers_total{endpoint="embeddings"}') == 1
    )
    site.standin.app.gate("open").set()
    eventually(lambda: client.stored() == 2)
    assert asked(client, ["birch", "amber"]).headers["x-cache"] == "HIT"
    assert len(site.standin.app.requests) == 1


def test_B30_explain_tells_each_items_state(proxy: ProxyFactory) -> None:
    running = proxy({"admin": {"key_hashes": [hash_key("admin-secret")]}})
    post(running, wanted(["amber", "birch"]), path=EMBEDDINGS_PATH)
    told = httpx.post(
        f"{running.url}/admin/explain?endpoint=embeddings",
        json=wanted(["amber", "coral"]),
        headers={"x-admin-key": "admin-secret", "authorization": "Bearer sk-test"},
        verify=False,
        trust_env=False,
    ).json()
    assert (told["would_be"], told["reason"]) == ("MISS", "partial:1/2")
    assert [item["state"] for item in told["items"]] == ["hit", "absent"]
    assert told["store_key"] is None
