"""Over HTTP: clocks that step or differ, and replicas that renew an answer for all of them (B15)."""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from proxy.standin import RunningStandIn, Script, server_error
from tests.integration.ageing import TTL_SECONDS, Ageing, Ages, completion_id
from tests.integration.contract import cache_status
from tests.integration.hotpath import Line, SteadyClock, heat, request
from tests.integration.redis_server import RedisServer
from tests.integration.structured_fields import Token
from tests.waiting import eventually

WINDOWS: Mapping[str, Any] = {"stale_while_revalidate_seconds": 30, "stale_if_error_seconds": 300}


@pytest.fixture(scope="module")
def upstream(ages: Ages) -> RunningStandIn:
    return ages.standin


# ---- clocks ----


def test_B15_a_clock_that_steps_back_by_an_hour_breaks_nothing(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing.own(**WINDOWS)
    with Line(here.proxy) as line:
        heat(line, request(key=here.key))
        here.clock.advance(10)
        here.clock.set_wall(here.clock.wall() - 3_600)

        reply, parsed = here.proxy.parsed_by(lambda: line.ask(request(key=here.key)))
        assert (reply.x_cache, reply["age"], parsed) == ("HIT", "0", 0)
        assert "ttl=4190" in reply["cache-status"]
        assert here.ask("Another.").headers["x-cache"] == "MISS"
        assert cache_status(here.ask("Another."))["ttl"] == TTL_SECONDS
        # No longer than its ttl and the step.
        here.clock.advance(3_600 + TTL_SECONDS - 10)
        assert line.ask(request(key=here.key)).x_cache == "STALE"


@pytest.mark.parametrize("apart", [-30.0, 30.0])
def test_B15_replicas_whose_clocks_differ_serve_each_other_s_entries(
    apart: float, ageing: Ages, upstream: RunningStandIn, redis: RedisServer
) -> None:
    store = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    now = time.time()
    clocks = SteadyClock(now), SteadyClock(now + apart)
    first, second = (ageing.own(store, clock=clock, **WINDOWS) for clock in clocks)
    second.key = first.key
    stored = first.ask()
    first.settled()

    hit = second.ask()

    assert (hit.headers["x-cache"], completion_id(hit)) == ("HIT", completion_id(stored))
    assert hit.headers["age"] == str(max(0, int(apart)))
    assert cache_status(hit)["ttl"] == TTL_SECONDS - apart
    for here in (first, second):
        here.clock.advance(TTL_SECONDS - 1 - max(0.0, apart))
        assert here.ask().headers["x-cache"] == "HIT"
    second.clock.advance(1 + max(0.0, -apart))
    assert second.ask().headers["x-cache"] == "STALE"
    assert upstream.app.count() <= 2


# ---- replicas ----


@pytest.fixture
def replicas(ageing: Ages, redis: RedisServer) -> tuple[Ageing, Ageing]:
    """Two proxies on one Redis, each with an old answer in its memory whose time is over."""
    store = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    now = time.time()
    first, second = (ageing.own(store, clock=SteadyClock(now), **WINDOWS) for _ in range(2))
    second.key = first.key
    old = first.ask()
    first.settled()
    assert second.ask().headers["x-cache"] == "HIT"
    for here in (first, second):
        assert completion_id(here.ask()) == completion_id(old)
    return first, second


def pass_time(seconds: float, *places: Ageing) -> None:
    for here in places:
        here.clock.advance(seconds)


def test_B15_what_one_replica_has_renewed_the_other_does_not_ask_for_again(
    replicas: tuple[Ageing, Ageing], upstream: RunningStandIn
) -> None:
    first, second = replicas
    pass_time(TTL_SECONDS + 100, *replicas)
    renewed = first.ask()
    assert cache_status(renewed)["fwd"] == Token("stale")
    first.settled()

    found = second.ask()

    assert (found.headers["x-cache"], completion_id(found)) == ("HIT", completion_id(renewed))
    assert second.ask().headers["x-cache"] == "HIT"
    assert upstream.app.count() == 2


def test_B15_replicas_refresh_once_for_all(
    replicas: tuple[Ageing, Ageing], upstream: RunningStandIn
) -> None:
    pass_time(TTL_SECONDS + 5, *replicas)
    upstream.app.script(Script(hold="answer"), times=None)

    stale = [here.ask() for here in (*replicas, *replicas)]

    assert {each.headers["x-cache"] for each in stale} == {"STALE"}
    upstream.app.wait_for_requests(2)
    upstream.app.gate("answer").set()
    for here in replicas:
        here.settled()
    fresh = [here.ask() for here in replicas]
    assert {each.headers["x-cache"] for each in fresh} == {"HIT"}
    assert len(set(map(completion_id, fresh))) == 1
    assert completion_id(fresh[0]) != completion_id(stale[0])
    assert upstream.app.count() == 2


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_B40_who_waits_for_another_replica_gets_the_new_answer_and_not_its_own_old_copy(
    stream: bool, replicas: tuple[Ageing, Ageing], upstream: RunningStandIn
) -> None:
    old = completion_id(replicas[0].ask())
    pass_time(TTL_SECONDS + 100, *replicas)
    upstream.app.script(Script(hold="answer"), times=None)

    with ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(here.ask, stream=stream) for here in replicas]
        eventually(lambda: all(here.counted("magic_proxy_flights") == 1 for here in replicas))
        upstream.app.wait_for_requests(2)[1].holding.wait()
        upstream.app.gate("answer").set()
        answers = [each.result() for each in asked]

    assert {each.headers["x-cache"] for each in answers} == {"MISS"}
    assert len(set(map(completion_id, answers))) == 1
    assert completion_id(answers[0]) != old
    assert upstream.app.count() == 2


def test_B15_where_the_upstream_fails_each_replica_serves_its_copy(
    replicas: tuple[Ageing, Ageing], upstream: RunningStandIn
) -> None:
    pass_time(TTL_SECONDS + 100, *replicas)
    upstream.app.script(server_error(503), times=None)

    answers = [here.ask() for here in (*replicas, *replicas)]

    assert {each.headers["x-cache"] for each in answers} == {"STALE"}
    assert len(set(map(completion_id, answers))) == 1
