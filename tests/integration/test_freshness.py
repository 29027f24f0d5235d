"""Over HTTP: how answers age, and what clients and upstreams make of it (B13, B15)."""

import asyncio
import hashlib
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy.standin import RunningStandIn, Script, rate_limited, server_error, start_standin
from tests.integration.ageing import TTL_SECONDS, Ages, completion_id
from tests.integration.contract import cache_status, chat, error_of
from tests.integration.hotpath import Line, SteadyClock, heat, request
from tests.integration.redis_server import RedisServer
from tests.integration.structured_fields import Token
from tests.waiting import eventually

WINDOWS: Mapping[str, Any] = {"stale_while_revalidate_seconds": 30, "stale_if_error_seconds": 300}
SWR: Mapping[str, Any] = {"stale_while_revalidate_seconds": 30}
SIE: Mapping[str, Any] = {"stale_if_error_seconds": 300}


@pytest.fixture(scope="module")
def upstream(ages: Ages) -> RunningStandIn:
    return ages.standin


# ---- stale while revalidate ----


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B15_a_stale_answer_is_there_while_the_upstream_hangs(
    stream: bool, ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SWR)
    old = completion_id(here.ask(stream=stream))
    here.clock.advance(TTL_SECONDS + 5)
    upstream.app.script(Script(hold="answer"))

    stale = here.ask(stream=stream)

    assert (stale.headers["x-cache"], stale.headers["age"]) == ("STALE", "605")
    assert completion_id(stale) == old
    upstream.app.wait_for_requests(2)[1].holding.wait()
    assert here.counted("magic_proxy_refreshes_in_flight") == 1
    assert here.ask(stream=stream).headers["x-cache"] == "STALE"
    upstream.app.gate("answer").set()
    here.settled()
    fresh = here.ask(stream=stream)
    assert (fresh.headers["x-cache"], fresh.headers["age"]) == ("HIT", "0")
    assert completion_id(fresh) != old
    assert here.standin.app.count() == 2


def test_B15_a_hundred_stale_hits_at_once_are_one_upstream_request(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SWR)
    old = completion_id(here.ask())
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(Script(hold="answer"))

    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=100)
        headers = {"authorization": f"Bearer {here.key}"}
        async with httpx.AsyncClient(limits=limits, timeout=30, headers=headers) as client:
            url = f"{here.proxy.url}/v1/chat/completions"
            return await asyncio.gather(*(client.post(url, json=chat()) for _ in range(100)))

    answers = asyncio.run(crowd())

    assert Counter(each.headers["x-cache"] for each in answers) == {"STALE": 100}
    assert {completion_id(each) for each in answers} == {old}
    upstream.app.gate("answer").set()
    assert len(here.calls()) == 2
    assert here.ask().headers["x-cache"] == "HIT"
    unattended = 'magic_proxy_unattended_flights_total{end="stored",purpose="refresh"}'
    assert here.counted(unattended) == 1
    assert here.counted('magic_proxy_requests_total{endpoint="chat",outcome="stale"}') == 100


def test_B16_a_stale_hit_saves_tokens_and_its_refresh_is_billed(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SWR)
    usage = here.ask().json()["usage"]
    here.clock.advance(TTL_SECONDS)
    here.ask()
    here.settled()

    tokens = 'magic_proxy_tokens_total{{direction="completion",kind="{}"}}'.format
    assert here.counted(tokens("billed")) == 2 * usage["completion_tokens"]
    assert here.counted(tokens("saved")) == usage["completion_tokens"]


def test_B15_what_failed_to_be_refreshed_is_served_until_its_window_ends(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SWR)
    old = completion_id(here.ask())
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(server_error(503), times=None)
    for _ in range(3):
        stale = here.ask()
        assert (stale.headers["x-cache"], completion_id(stale)) == ("STALE", old)
        here.settled()
        here.clock.advance(9.9)
    here.clock.advance(0.3)

    assert here.ask().status_code == 503
    refreshes = 'magic_proxy_unattended_flights_total{{end="{}",purpose="refresh"}}'.format
    assert here.counted(refreshes("failed")) == 3
    assert here.counted(refreshes("stored")) == 0


def test_B15_no_more_refreshes_than_allowed_are_under_way(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing({"cache_settings": {"max_refreshes": 2}}, **SWR)
    texts = [f"Number {number}." for number in range(5)]
    for text in texts:
        here.ask(text)
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(Script(hold="answer"), times=None)

    stale = [here.ask(text) for text in texts]

    assert {each.headers["x-cache"] for each in stale} == {"STALE"}
    assert Counter(cache_status(each).get("detail") for each in stale) == {
        "revalidating": 2,
        None: 3,
    }
    assert here.counted("magic_proxy_refreshes_in_flight") == 2
    upstream.app.gate("answer").set()
    here.settled()
    assert here.standin.app.count() == 7


def test_B15_a_stale_answer_is_never_repeated_unread(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SWR)
    with Line(here.proxy) as line:
        heat(line, request(key=here.key))
        assert here.proxy.parsed_by(lambda: line.ask(request(key=here.key)))[1] == 0
        here.clock.advance(TTL_SECONDS)
        upstream.app.script(Script(hold="answer"))

        for _ in range(3):
            reply, parsed = here.proxy.parsed_by(lambda: line.ask(request(key=here.key)))
            assert (reply.x_cache, parsed) == ("STALE", 1)
        upstream.app.gate("answer").set()
        here.settled()
        assert line.ask(request(key=here.key)).x_cache == "HIT"
        assert here.proxy.parsed_by(lambda: line.ask(request(key=here.key)))[1] == 0


# ---- stale if error ----


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
def test_B15_where_the_upstream_fails_a_stale_answer_serves_and_says_so(
    status: int, stream: bool, ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SIE)
    old = here.ask(stream=stream)
    here.clock.advance(TTL_SECONDS + 100)
    upstream.app.script(rate_limited() if status == 429 else server_error(status))

    answer = here.ask(stream=stream)

    assert (answer.status_code, answer.content) == (200, old.content)
    assert answer.headers["content-type"] == old.headers["content-type"]
    assert (answer.headers["x-cache"], answer.headers["age"]) == ("STALE", "700")
    assert cache_status(answer) == {
        "fwd": Token("stale"),
        "fwd-status": status,
        "ttl": -100,
        "detail": "stale-if-error:upstream_failing",
    }
    assert "retry-after" not in answer.headers
    # It is asked again each time, and what comes then is the answer.
    assert here.ask(stream=stream).headers["x-cache"] == "MISS"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_B15_B65_an_error_of_the_request_itself_is_passed_on(
    status: int, ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SIE)
    here.ask()
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(Script(status=status, body={"error": {"message": "your fault"}}))

    answer = here.ask()

    assert answer.status_code == status
    assert answer.json() == {"error": {"message": "your fault"}}
    assert answer.headers["x-cache"] == "MISS"


@pytest.mark.parametrize("control", ["no-cache", "max-age=9999"])
def test_B13_who_wants_no_stale_answer_is_told_the_error(
    control: str, ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(**SIE)
    here.ask()
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(rate_limited("7"))

    answer = here.ask("Name three rivers.", control)

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    upstream.app.script(server_error(503))
    assert here.ask().headers["x-cache"] == "STALE"


def test_B15_an_upstream_that_is_gone_is_told_with_the_stale_answer(ageing: Ages) -> None:
    with start_standin() as gone:
        here = ageing.own(standin=gone, **SIE)
        old = completion_id(here.ask())
    here.clock.advance(TTL_SECONDS + 299)

    answer = here.ask()

    assert (answer.headers["x-cache"], completion_id(answer)) == ("STALE", old)
    status = cache_status(answer)
    assert status["detail"] == "stale-if-error:upstream_unreachable"
    assert "fwd-status" not in status
    here.clock.advance(1)
    assert (refused := here.ask()).status_code == 502
    assert error_of(refused)["code"] == "upstream_unreachable"


def test_B15_a_time_out_is_a_failure(ageing: Ages, upstream: RunningStandIn) -> None:
    timeouts = {"upstreams": {"openai": {"timeouts": {"first_byte_seconds": 0.1}}}}
    here = ageing(timeouts, **SIE)
    old = completion_id(here.ask())
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(Script(hold="never"))

    answer = here.ask()

    assert (answer.headers["x-cache"], completion_id(answer)) == ("STALE", old)
    assert cache_status(answer)["detail"] == "stale-if-error:upstream_timeout"


def test_B15_keys_that_all_rest_are_a_failure(ageing: Ages, upstream: RunningStandIn) -> None:
    keys = {"upstreams": {"openai": {"api_keys": ["sk-one", "sk-two"]}}, "clients": "open"}
    here = ageing(keys, **SIE)
    old = completion_id(here.ask())
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(rate_limited("60"), times=2)

    first, second = here.ask(), here.ask()

    assert upstream.app.count() == 3, "the second one found no key to ask with"
    for answer in (first, second):
        assert (answer.headers["x-cache"], completion_id(answer)) == ("STALE", old)
    assert cache_status(second)["detail"] == "stale-if-error:upstream_keys_exhausted"


def test_B15_both_windows_together(ageing: Ages, upstream: RunningStandIn) -> None:
    here = ageing(**WINDOWS)
    old = completion_id(here.ask())
    upstream.app.script(server_error(503), times=None)
    details = []
    for seconds in (TTL_SECONDS, 29, 1, 269, 1):
        here.clock.advance(seconds)
        answer = here.ask()
        here.settled()
        details.append(cache_status(answer)["detail"])
        if answer.headers["x-cache"] == "STALE":
            assert completion_id(answer) == old

    assert details == [
        *["revalidating"] * 2,
        *["stale-if-error:upstream_failing"] * 2,
        "absent, not-stored:status",
    ]


# ---- lifetimes ----

KEPT = [({}, 600), (SWR, 630), (SIE, 900), (WINDOWS, 900)]


@pytest.mark.parametrize(("rule", "seconds"), KEPT)
def test_B15_redis_keeps_an_entry_for_as_long_as_it_may_serve(
    rule: Mapping[str, Any], seconds: int, ageing: Ages, redis: RedisServer
) -> None:
    store = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    here = ageing.own(store, clock=SteadyClock(time.time()), **rule)

    here.ask()

    eventually(lambda: b"magic_proxy:cache:v1:chat:" in redis.command("SCAN", "0", "COUNT", "100"))
    words = redis.command("SCAN", "0", "COUNT", "100").decode().split("\r\n")
    (key,) = [word for word in words if word.startswith("magic_proxy:cache:v1:chat:")]
    left = int(redis.command("PTTL", key)[1:].split(b"\r\n")[0])
    assert seconds - 20 <= left / 1000 <= seconds


@pytest.mark.parametrize(("rule", "seconds"), KEPT)
def test_B15_the_disk_keeps_an_entry_for_as_long_as_it_may_serve(
    rule: Mapping[str, Any], seconds: int, ageing: Ages, upstream: RunningStandIn, tmp_path: Path
) -> None:
    file = tmp_path / "cache.sqlite3"
    store = {"store": {"tiers": ["disk"], "disk": {"path": str(file)}}}
    here = ageing.own(store, **rule)
    here.ask()
    here.settled()

    with sqlite3.connect(file) as connection:
        rows = connection.execute("SELECT expires_at FROM entries").fetchall()
    assert rows == [(here.clock.wall() + seconds,)]


def test_B15_jitter_spreads_lifetimes_over_keys_the_same_way_on_every_replica(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here, there = (ageing.own(ttl_jitter=0.5) for _ in range(2))
    texts = [f"Number {number}." for number in range(12)]

    lifetimes = [int(cache_status(here.ask(text))["ttl"]) for text in texts]

    assert all(300 <= lifetime <= 600 for lifetime in lifetimes)
    assert max(lifetimes) - min(lifetimes) > 100
    assert len(set(lifetimes)) > 8
    assert [int(cache_status(there.ask(text))["ttl"]) for text in texts] == lifetimes
    here.clock.advance(lifetimes[0] + 1)
    assert here.ask(texts[0]).headers["x-cache"] == "MISS"


def test_B67_an_answer_of_a_fallback_stays_for_less(ageing: Ages, upstream: RunningStandIn) -> None:
    chain = {
        "models": {
            "gpt-4o-mini": {"model": "first", "fallbacks": ["second"]},
            "second": {"model": "second"},
        }
    }
    here = ageing(chain, fallback_ttl_seconds=30, **SIE)
    upstream.app.script(server_error(503), when=lambda each: b'"first"' in each.body)

    fallen = here.ask()

    assert (fallen.json()["model"], cache_status(fallen)["ttl"]) == ("second", 30)
    here.clock.advance(29.9)
    assert here.ask().headers["x-cache"] == "HIT"
    here.clock.advance(0.1)
    assert cache_status(answer := here.ask())["ttl"] == 600
    assert answer.json()["model"] == "first"


@pytest.mark.parametrize(("said", "ttl"), [("max-age=20", 20), ("max-age=9999", 600)])
def test_B13_an_upstream_that_is_honored_shortens_and_leaves_the_stale_window(
    said: str, ttl: int, ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(honor_upstream=True, **SWR)
    upstream.app.script(Script(headers=(("cache-control", said),)))

    assert cache_status(here.ask())["ttl"] == ttl
    here.clock.advance(ttl + 29)
    assert here.ask().headers["x-cache"] == "STALE"


def test_B15_a_popular_answer_is_handed_over_in_time_and_refreshed_ahead(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(refresh_ahead=1)
    upstream.app.script(Script(hold="answer"))
    with Line(here.proxy) as line:
        line.send(request(key=here.key))
        upstream.app.wait_for_requests(1)[0].holding.wait()
        here.clock.advance(2)  # so long the upstream takes
        upstream.app.gate("answer").set()
        old = line.read()
        assert old.x_cache == "MISS"
        heat(line, request(key=here.key))

        here.clock.advance(TTL_SECONDS - 22.5)
        reply, parsed = here.proxy.parsed_by(lambda: line.ask(request(key=here.key)))
        assert (reply.x_cache, parsed) == ("HIT", 0)
        here.clock.advance(0.5)
        # From here on each hit may be the one that refreshes; 2 s before the end each does.
        reply, parsed = here.proxy.parsed_by(lambda: line.ask(request(key=here.key)))
        assert (reply.x_cache, parsed) == ("HIT", 1)
        here.clock.advance(20)
        for _ in range(5):
            assert line.ask(request(key=here.key)).x_cache == "HIT"
        assert len(here.calls()) == 2

        fresh = line.ask(request(key=here.key))
        assert fresh.x_cache == "HIT"
        assert fresh.json["id"] != old.json["id"]
        assert fresh["age"] == "0"


# ---- soft purges ----


def test_B54_a_soft_purge_makes_stale_answers_of_fresh_ones(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    admin = {"admin": {"key_hashes": ["sha256:" + hashlib.sha256(b"adm").hexdigest()]}}
    here = ageing(admin, **SWR)
    old = completion_id(here.ask())
    here.clock.advance(5)
    upstream.app.script(Script(hold="answer"))

    purged = httpx.post(
        f"{here.proxy.url}/admin/purge",
        json={"rule": "r", "soft": True},
        headers={"x-admin-key": "adm"},
    )

    assert purged.status_code == 200, purged.text
    stale = here.ask()
    assert (stale.headers["x-cache"], stale.headers["age"]) == ("STALE", "5")
    assert cache_status(stale) == {"hit": True, "ttl": 0, "detail": "revalidating"}
    assert completion_id(stale) == old
    upstream.app.gate("answer").set()
    here.settled()
    assert here.ask().headers["x-cache"] == "HIT"
    assert upstream.app.count() == 2
