"""What ends a hot answer: time, a renewal, a reload; and what is told of each one."""

import gc
import hashlib
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.standin import RunningStandIn, start_standin
from tests.integration.contract import chat
from tests.integration.hotpath import (
    CHAT,
    OFF,
    HotProxy,
    Line,
    Reply,
    Starter,
    SteadyClock,
    heat,
    request,
)
from tests.integration.servers import merged

HIT = ("HIT", 0)
PARSED_HIT = ("HIT", 1)
PARSED_MISS = ("MISS", 1)
USAGE = {"include_usage": True}


@pytest.fixture(scope="module")
def upstream() -> Iterator[RunningStandIn]:
    with start_standin() as standin:
        yield standin


@pytest.fixture
def start(upstream: RunningStandIn, tmp_path: Path) -> Iterator[Starter]:
    with Starter(upstream.base_url, tmp_path) as starter:
        yield starter


def told(proxy: HotProxy, line: Line, raw: bytes) -> tuple[str, int]:
    """`X-Cache` of one answer, and how many requests were parsed for it."""
    reply, parsed = proxy.parsed_by(lambda: line.ask(raw))
    return reply.x_cache, parsed


def ttl(reply: Reply) -> int:
    return int(reply["cache-status"].partition("ttl=")[2].partition(";")[0])


def test_B15_age_and_ttl_move_until_the_entry_is_no_longer_fresh(start: Starter) -> None:
    clock = SteadyClock()
    proxy = start(clock=clock)
    raw = request()

    with Line(proxy) as line:
        whole = ttl(heat(line, raw))
        clock.advance(10)
        assert told(proxy, line, raw) == HIT
        reply = line.ask(raw)
        assert (reply["age"], ttl(reply)) == ("10", whole - 10)
        clock.advance(whole - 11)
        reply = line.ask(raw)
        assert (reply["age"], ttl(reply)) == (str(whole - 1), 1)
        assert told(proxy, line, raw) == HIT
        clock.advance(1)

        reply, parsed = proxy.parsed_by(lambda: line.ask(raw))

        assert (reply.x_cache, parsed) == PARSED_MISS
        assert told(proxy, line, raw) == PARSED_HIT
        again, parsed = proxy.parsed_by(lambda: line.ask(raw))
        assert parsed == 0
        assert (again.body, again["age"], ttl(again)) == (reply.body, "0", whole)
    assert not proxy_holds_more_than(proxy, 1)


def proxy_holds_more_than(proxy: HotProxy, answers: int) -> bool:
    assert proxy.app.direct is not None
    return len(proxy.app.direct.hot._hot) > answers


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("renewal", ["no-cache", "max-age=0"])
def test_B13_an_entry_renewed_on_another_connection_is_seen_at_once(
    renewal: str, stream: bool, start: Starter
) -> None:
    proxy = start()
    raw = request(body=chat(stream=stream))

    with Line(proxy) as line, Line(proxy) as other:
        old = heat(line, raw)
        assert told(proxy, line, raw) == HIT
        renewed = other.ask(request(f"cache-control: {renewal}"))
        assert renewed.x_cache == "MISS"

        new, parsed = proxy.parsed_by(lambda: line.ask(raw))

        assert (new.x_cache, parsed) == PARSED_HIT
        assert renewed.json["id"].encode() in new.body
        assert renewed.json["id"].encode() not in old.body
        repeated, parsed = proxy.parsed_by(lambda: line.ask(raw))
        assert (repeated.body, parsed) == (new.body, 0)


@pytest.mark.parametrize(
    ("control", "x_cache"),
    [
        ("no-cache", "MISS"),
        ("no-store", "HIT"),
        ("max-age=0", "MISS"),
        ("max-age=60", "HIT"),
        ("only-if-cached", "HIT"),
        ("no-cache, no-store", "BYPASS"),
    ],
)
def test_B13_a_request_with_cache_control_is_never_answered_unread(
    control: str, x_cache: str, start: Starter
) -> None:
    proxy = start()
    raw = request(f"Cache-Control: {control}")

    with Line(proxy) as line:
        heat(line, request())
        for _ in range(4):
            assert told(proxy, line, raw) == (x_cache, 1)


def test_B13_a_limit_of_age_counts_on_each_repetition(start: Starter) -> None:
    clock = SteadyClock()
    proxy = start(clock=clock)
    raw = request("cache-control: max-age=10")

    with Line(proxy) as line:
        heat(line, raw)
        clock.advance(10)
        assert told(proxy, line, raw) == PARSED_HIT
        clock.advance(1)
        assert told(proxy, line, raw) == PARSED_MISS


def test_B72_a_client_whose_key_was_revoked_gets_no_hot_answer(start: Starter) -> None:
    hashed = {name: "sha256:" + hashlib.sha256(name.encode()).hexdigest() for name in ("a", "b")}
    clients = [{"name": name, "tenant": "t", "key_hashes": [hashed[name]]} for name in hashed]
    settings: dict[str, Any] = {"upstreams": {"openai": {"api_keys": ["sk-pool"]}}}
    proxy = start({**settings, "clients": clients})
    of_a, of_b = request(key="a"), request(key="b")

    with Line(proxy) as line:
        for raw in (of_a, of_b, of_a, of_b):
            line.ask(raw)
        assert told(proxy, line, of_a) == told(proxy, line, of_b) == HIT

        proxy.reload({**settings, "clients": clients[1:]})

        for _ in range(3):
            refused, parsed = proxy.parsed_by(lambda: line.ask(of_a))
            assert (refused.status, parsed) == (401, 1)
            assert refused.json["error"]["code"] == "invalid_api_key"
        assert told(proxy, line, of_b) == PARSED_HIT
        assert told(proxy, line, of_b) == HIT
        assert line.ask(of_a).status == 401


def test_B72_a_refused_request_is_read_each_time(start: Starter) -> None:
    proxy = start({"upstreams": {"openai": {"api_keys": ["sk-pool"]}}, "clients": [CLIENT]})

    with Line(proxy) as line:
        for _ in range(3):
            reply, parsed = proxy.parsed_by(lambda: line.ask(request(key="wrong")))
            assert (reply.status, parsed) == (401, 1)


CLIENT = {"name": "a", "key_hashes": ["sha256:" + "0" * 64]}


@pytest.mark.parametrize(
    ("over", "x_cache"),
    [
        ({}, "HIT"),
        ({"cache_settings": {"enabled": False}}, "BYPASS"),
        ({"cache_settings": {"key_prefix": "other:"}}, "HIT"),  # it is that of the start
    ],
    ids=["same", "disabled", "other-prefix"],
)
def test_B74_a_reload_is_in_force_for_the_next_request(
    over: dict[str, Any], x_cache: str, start: Starter
) -> None:
    proxy = start()
    raw = request()

    with Line(proxy) as line:
        heat(line, raw)
        assert told(proxy, line, raw) == HIT
        proxy.reload(over)
        assert told(proxy, line, raw) == (x_cache, 1)


def test_B74_a_reload_of_the_key_s_visibility_shows_in_the_next_answer(start: Starter) -> None:
    proxy = start()

    with Line(proxy) as line:
        assert "key=" not in heat(line, request())["cache-status"]
        proxy.reload({"cache_settings": {"expose_key": True}})
        shown = [line.ask(request()) for _ in range(3)]
        assert all("key=" in reply["cache-status"] for reply in shown)
        assert told(proxy, line, request()) == HIT


def test_B74_settings_that_were_replaced_are_let_go(start: Starter) -> None:
    proxy = start()

    with Line(proxy) as line:
        heat(line, request())
        assert told(proxy, line, request()) == HIT
        old = weakref.ref(proxy.app.runtime.snapshot)
        proxy.reload({})
        # Another request takes the place of the last one, which held on to what it began with.
        line.ask(request(body=chat("Another.")))
        proxy.on_loop(gc.collect)
        assert old() is None


def test_B16_hot_answers_are_counted_as_the_ordinary_ones_are(start: Starter) -> None:
    priced = {"prices": {"gpt-4o-mini": {"prompt_per_million": 3.0, "completion_per_million": 5.0}}}
    grown = []

    for settings in (priced, merged(priced, OFF)):
        proxy = start(settings)
        with Line(proxy) as line:
            for raw in (request(), request(body=chat(stream=True, stream_options=USAGE))):
                heat(line, raw)
                before = proxy.metrics()
                _, parsed = proxy.parsed_by(lambda raw=raw: [line.ask(raw) for _ in range(5)])  # type: ignore[misc]
                after = proxy.metrics()
                assert parsed == (0 if settings is priced else 5)
                changes = {name: after[name] - before.get(name, 0.0) for name in after}
                grown.append(
                    {
                        name: change
                        for name, change in changes.items()
                        if change
                        and name.startswith("magic_proxy_")
                        and not name.partition("{")[0].endswith(("_created", "_sum", "_bucket"))
                    }
                )

    hot_json, hot_stream, json, stream = grown
    assert hot_json == json
    assert hot_stream == stream
    assert 5.0 in hot_json.values()
    saved = [name for name in hot_json if name.startswith("magic_proxy_tokens") and "saved" in name]
    assert len(saved) == 2
    assert all(hot_json[name] > 0 for name in saved)
    assert any("cost" in name for name in hot_json)


def test_B12_the_server_counts_hot_answers_among_its_requests(start: Starter) -> None:
    proxy = start()

    with Line(proxy) as line:
        heat(line, request())
        before = line.protocol.server_state.total_requests
        _, parsed = proxy.parsed_by(lambda: [line.ask(request()) for _ in range(5)])
        assert parsed == 0
        assert line.protocol.server_state.total_requests == before + 5


def test_B69_each_hot_answer_has_its_line_in_the_log(
    start: Starter, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    proxy = start({"server": {"access_log": True}})
    raw = request("x-secret: do-not-log", body=chat(stream=True, stream_options=USAGE))

    with Line(proxy) as line:
        heat(line, raw)
        ids, parsed = proxy.parsed_by(lambda: [line.ask(raw)["x-request-id"] for _ in range(3)])
    proxy.stop()

    assert parsed == 0
    written = capsysbinary.readouterr().out
    _, ordinary, *hot = [orjson.loads(each) for each in written.splitlines()]
    assert [each.pop("request_id") for each in hot] == ids
    assert [each.pop("ms") for each in hot] == [0.0] * 3
    del ordinary["request_id"], ordinary["ms"]
    for each in (ordinary, *hot):
        assert datetime.fromisoformat(each.pop("time")).tzinfo is UTC
        assert each == ordinary
    assert (ordinary["cache"], ordinary["status"], ordinary["stream"]) == ("HIT", 200, True)
    assert ordinary["completion_tokens"] > 0
    assert b"do-not-log" not in written
    assert b"sk-1" not in written


def test_B56_only_what_fits_is_answered_unread(start: Starter) -> None:
    # An answer of the stand-in and what it is kept with are about 3 KB.
    proxy = start({"server": {"hot_path_bytes": 8_000}})
    requests = [request(body=chat(f"Number {number}.")) for number in range(6)]

    with Line(proxy) as line:
        for raw in requests:
            heat(line, raw)
        parsed = [proxy.parsed_by(lambda raw=raw: line.ask(raw))[1] for raw in requests[::-1]]  # type: ignore[misc]

    assert parsed[0] == 0, "the last one is there"
    assert parsed[-1] == 1, "the first one had to go"
    assert proxy.app.direct is not None
    assert 0 < proxy.app.direct.hot._bytes <= 8_000


@pytest.mark.parametrize(("size", "parsed"), [(50_000, 0), (66_000, 1)])
def test_B56_a_long_request_is_not_kept(size: int, parsed: int, start: Starter) -> None:
    proxy = start()
    raw = request(body=chat("x" * size))

    with Line(proxy) as line:
        heat(line, raw)
        line.ask(raw)
        # A request so long may have come in two reads before, and then it was not noted.
        seen = {told(proxy, line, raw) for _ in range(3)}
    assert ("HIT", parsed) in seen
    assert parsed == 0 or seen == {("HIT", 1)}


def test_B19_no_hot_path_no_table(start: Starter) -> None:
    proxy = start(OFF)

    assert proxy.app.direct is None
    with Line(proxy) as line:
        heat(line, request(target=f"{CHAT}?a=1"))
        assert told(proxy, line, request(target=f"{CHAT}?a=1")) == PARSED_HIT
