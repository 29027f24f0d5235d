"""A request whose head was seen before is answered as if the parser had read it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.engine.base import Call
from proxy.engine.plan import Plan
from proxy.standin import RunningStandIn, Script, start_standin
from tests.integration.contract import chat
from tests.integration.hotpath import (
    EMBEDDINGS,
    OFF,
    Line,
    Starter,
    request,
)
from tests.integration.servers import merged
from tests.integration.test_hotpath_same_answers import (
    ADMIN,
    EMBED,
    EXPOSED,
    KEYS,
    Pair,
    varying,
)
from tests.waiting import eventually

CLOSED: Mapping[str, Any] = {
    "unlisted_models": "refuse",
    "models": {"gpt-4o-mini": {"upstream": "openai"}},
}


def spelled(body: Any, spelling: int) -> bytes:
    """The same JSON in other bytes of another length."""
    return orjson.dumps(body, option=orjson.OPT_INDENT_2) + b" " * spelling


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as standin:
        yield standin


@pytest.fixture
def start(upstream: RunningStandIn, tmp_path: Path) -> Iterator[Starter]:
    upstream.app.reset()
    with Starter(upstream.base_url, tmp_path) as starter:
        yield starter


CASES: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...], Any, str | None]] = {
    "json": ({}, (), chat(), None),
    "stream": ({}, (), chat(stream=True), None),
    "stream-usage": ({}, (), chat(stream=True, stream_options={"include_usage": True}), None),
    "embeddings": ({}, (), EMBED, EMBEDDINGS),
    "embeddings-base64": ({}, (), {**EMBED, "encoding_format": "base64"}, EMBEDDINGS),
    "gzip": ({}, ("accept-encoding: gzip, identity;q=0",), chat(), None),
    "no-store": ({}, ("cache-control: no-store",), chat(), None),
    "max-age": ({}, ("cache-control: max-age=60",), chat(), None),
    "expose-key": (EXPOSED, (), chat(), None),
    "admin": (ADMIN, ("x-admin-key: adm-1",), chat(), None),
    "query": ({}, (), chat(), "/v1/chat/completions?a=1"),
    "kept": ({}, ("connection: keep-alive",), chat(), None),
    "client": (KEYS, (), chat(), None),
}


@pytest.mark.parametrize("name", CASES)
def test_B10_a_hit_by_its_head_is_the_ordinary_one_byte_for_byte(
    name: str, start: Starter, tmp_path: Path
) -> None:
    over, lines, body, target = CASES[name]
    more = {} if target is None else {"target": target}
    pair = Pair(start, over, tmp_path)
    key = "mp-ann" if over is KEYS else "sk-1"
    raws = [request(*lines, body=spelled(body, at), key=key, **more) for at in range(5)]

    with Line(pair.off) as off, Line(pair.on) as on:
        assert off.ask(request(body=body, key=key, **more)).status == 200
        pair.off.entries_written()
        # From disk: now it is in memory, and the head is known.
        assert on.ask(raws[0]).x_cache == "HIT"
        told = [(on.ask(raw), off.ask(raw)) for raw in raws[1:]]

    for with_it, without in told:
        assert with_it.x_cache == "HIT"
        assert varying(with_it.raw) == varying(without.raw)
    assert pair.on.watch.by_head == len(told)
    assert len({reply["x-request-id"] for replies in told for reply in replies}) == 2 * len(told)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b"", 400),
        (orjson.dumps({"model": "strange", "messages": []}), 404),
        (orjson.dumps({**chat(), "messages": "no"}), 400),
        (b" " * 40_000, 413),
    ],
    ids=["cut", "array", "not-utf8", "empty", "unknown-model", "wrong-type", "too-large"],
)
def test_B73_what_is_wrong_with_a_body_is_said_as_on_the_ordinary_path(
    body: bytes, status: int, start: Starter
) -> None:
    told = []
    for over in ({}, OFF):
        proxy = start(merged(merged(CLOSED, {"server": {"max_body_bytes": 30_000}}), over))
        with Line(proxy) as line:
            assert line.ask(request()).status == 200
            for _ in range(2):
                reply = line.ask(request(body=body))
                assert reply.status == status
                told.append(varying(reply.raw))
            assert line.ask(request()).x_cache == "HIT"
        errors = [count for name, count in proxy.metrics().items() if 'outcome="error"' in name]
        assert 2.0 in errors
    assert len(set(told)) == 1


def test_B13_what_a_client_wants_of_the_cache_counts_as_on_the_ordinary_path(
    start: Starter,
) -> None:
    told = []
    for over in ({}, OFF):
        proxy = start(over)
        with Line(proxy) as line:
            told.append(
                [
                    line.ask(request(f"cache-control: {control}", body=spelled(chat(), at)))
                    for at, control in enumerate(
                        [
                            "only-if-cached",
                            "only-if-cached",
                            "no-cache",
                            "no-cache",
                            "max-age=60",
                            "max-age=60",
                            "only-if-cached",
                            "no-cache, no-store",
                            "no-cache, no-store",
                        ]
                    )
                ]
            )
    on, off = told
    assert [(each.status, each.x_cache) for each in on] == [
        (each.status, each.x_cache) for each in off
    ]
    assert [each.status for each in on[:3]] == [504, 504, 200]
    assert [each.x_cache for each in on[2:]] == [
        *("MISS", "MISS", "HIT", "HIT", "HIT", "BYPASS", "BYPASS")
    ]


def test_B40_a_miss_by_its_head_goes_on_where_it_was_begun(
    start: Starter, upstream: RunningStandIn
) -> None:
    """The key is derived once, the upstream asked once, and followers of the same join it."""
    proxy = start()
    with Line(proxy) as line, Line(proxy) as other:
        line.ask(request())
        upstream.app.reset()
        upstream.app.script(Script(hold="go"))
        planned: list[Call] = []
        service = proxy.app.runtime.snapshot.service
        plan = service._plan

        def counted(call: Call) -> Plan:
            planned.append(call)
            return plan(call)

        service._plan = counted  # type: ignore[method-assign]  # for this test
        line.send(request(body=spelled(chat("New."), 1)))
        other.send(request(body=spelled(chat("New."), 2)))
        upstream.app.wait_for_requests(1)[0].holding.wait()
        eventually(lambda: len(planned) == 2)
        upstream.app.gate("go").set()
        first, second = line.read(), other.read()

    assert first.body == second.body
    assert first.x_cache == second.x_cache == "MISS"
    assert len(planned) == 2
    assert len(upstream.app.requests) == 1


def test_B42_a_client_that_goes_is_noticed_also_where_its_request_was_begun_by_its_head(
    start: Starter, upstream: RunningStandIn
) -> None:
    proxy = start({"cache_settings": {"rules": [RULE | {"on_disconnect": "cancel"}]}})
    with Line(proxy) as line:
        line.ask(request())
        upstream.app.reset()
        upstream.app.script(Script(hold="go"))
        line.send(request(body=spelled(chat("Gone."), 1)))
        seen = upstream.app.wait_for_requests(1)[0]
        seen.holding.wait()
        assert proxy.watch.connections[-1].cycle.body == b"", "it is not held twice"
    seen.disconnected.wait()


RULE = {"model_names": ["*"], "include_in_key": ["*"], "ttl_seconds": 60}


def test_B72_a_head_is_not_known_any_more_once_its_client_was_revoked(start: Starter) -> None:
    settings = {"upstreams": {"openai": {"api_keys": ["sk-pool"]}}}
    proxy = start({**settings, "clients": KEYS["clients"]})
    with Line(proxy) as line:
        for at in range(3):
            assert line.ask(request(body=spelled(chat(), at), key="mp-ann")).status == 200
        assert proxy.watch.by_head > 0

        proxy.reload({**settings, "clients": [{"name": "b", "key_hashes": ["sha256:" + "0" * 64]}]})

        for at in range(3):
            assert line.ask(request(body=spelled(chat(), at), key="mp-ann")).status == 401


def test_B16_hits_by_their_heads_are_counted_with_their_time(start: Starter) -> None:
    proxy = start()
    with Line(proxy) as line:
        for at in range(6):
            line.ask(request(body=spelled(chat(), at)))

    told = proxy.metrics()

    kind = '{endpoint="chat",outcome="hit"}'
    assert told[f"magic_proxy_requests_total{kind}"] == 5
    assert told[f"magic_proxy_request_seconds_count{kind}"] == 5
    assert told[f"magic_proxy_request_seconds_sum{kind}"] > 0


def test_B12_the_server_counts_them_among_its_requests(start: Starter) -> None:
    proxy = start()
    with Line(proxy) as line:
        line.ask(request())
        before = line.protocol.server_state.total_requests
        for at in range(5):
            line.ask(request(body=spelled(chat(), at)))
        assert line.protocol.server_state.total_requests == before + 5


@pytest.mark.parametrize("zeros", [b"0", b"00"])
def test_B73_a_length_that_is_refused_is_refused_behind_a_known_head_too(
    zeros: bytes, start: Starter
) -> None:
    proxy = start()
    raw = request()
    with Line(proxy) as line:
        for _ in range(3):
            line.ask(raw)
        reply = line.ask(raw.replace(b"content-length: ", b"content-length: " + zeros))
        assert reply.status == 400


def test_B73_a_body_that_is_too_long_is_refused_before_it_has_come(start: Starter) -> None:
    for over in ({}, OFF):
        proxy = start(merged({"server": {"max_body_bytes": 30_000}}, over))
        with Line(proxy) as line:
            assert line.ask(request()).status == 200
            assert line.ask(request()).x_cache == "HIT"
            line.send(request(body=b" " * 40_000)[:2_000])
            assert line.read().status == 413
