"""Over HTTP: several answers to one request, collected and then served in turn."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from proxy.standin import RunningStandIn, Script, server_error
from tests.integration.ageing import TTL_SECONDS, Ageing, Ages, completion_id
from tests.integration.contract import cache_status, chat
from tests.integration.hotpath import Line, request
from tests.integration.redis_server import RedisServer
from tests.waiting import until


@pytest.fixture(scope="module")
def upstream(ages: Ages) -> RunningStandIn:
    return ages.standin


def seen(answers: Sequence[httpx.Response]) -> list[str]:
    return [answer.headers["x-cache"] for answer in answers]


def several(
    here: Ageing, count: int, control: str = "", /, *, stream: bool = False
) -> list[httpx.Response]:
    text = "Name three rivers."
    return [here.ask(text, control, temperature=0.7, stream=stream) for _ in range(count)]


def test_B15_the_first_are_misses_and_then_each_has_its_turn(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(variants=3)

    first, *rest = (several(here, 3) for _ in range(4))

    assert seen(first) == ["MISS"] * 3
    names = [completion_id(answer) for answer in first]
    assert len(set(names)) == 3
    assert all(cache_status(answer)["stored"] for answer in first)
    for turn in rest:
        assert seen(turn) == ["HIT"] * 3
        assert [completion_id(answer) for answer in turn] == names
    assert upstream.app.count() == 3


def test_B15_random_choice_gives_each_of_them(ageing: Ages, upstream: RunningStandIn) -> None:
    here = ageing(variants=3, variant_choice="random")
    names = {completion_id(answer) for answer in several(here, 3)}

    hits = several(here, 60)

    assert set(seen(hits)) == {"HIT"}
    # Each has a third: that one of them does not come is as good as impossible.
    assert {completion_id(answer) for answer in hits} == names
    assert upstream.app.count() == 3


@pytest.mark.parametrize(
    ("members", "misses"),
    [({}, 3), ({"temperature": 0.1}, 3), ({"temperature": 0}, 1), ({"temperature": None}, 3)],
    ids=str,
)
def test_B15_chance_has_to_be_asked_for(
    members: dict[str, float | None], misses: int, ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(variants=3)

    answers = [here.ask(**members) for _ in range(5)]

    assert seen(answers) == ["MISS"] * misses + ["HIT"] * (5 - misses)
    assert upstream.app.count() == misses


async def crowd(*places: Ageing, each: int) -> list[httpx.Response]:
    """So many equal requests at each of the places, all at once."""
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(limits=limits, timeout=30) as client:
        asked = [
            client.post(
                f"{here.proxy.url}/v1/chat/completions",
                json=chat(temperature=0.7),
                headers={"authorization": f"Bearer {places[0].key}"},
            )
            for here in places
            for _ in range(each)
        ]
        answering = asyncio.gather(*asked)
        standin = places[0].standin.app
        await asyncio.to_thread(standin.wait_for_requests, 3)
        # Nobody who has come by now can have been answered.
        await until(
            lambda: sum(here.metrics()["magic_proxy_in_flight"] for here in places) == len(asked)
        )
        standin.gate("answers").set()
        return await answering


def test_B40_a_crowd_on_a_cold_key_asks_for_each_once(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(variants=3)
    upstream.app.script(Script(hold="answers"), times=None)

    answers = asyncio.run(crowd(here, each=10))

    assert set(seen(answers)) == {"MISS"}
    assert sorted(Counter(map(completion_id, answers)).values()) == [3, 3, 4]
    assert sum("collapsed" in cache_status(answer) for answer in answers) == 7
    assert len(here.calls()) == 3
    assert seen(several(here, 3)) == ["HIT"] * 3


def test_B40_replicas_collect_together(
    ageing: Ages, upstream: RunningStandIn, redis: RedisServer
) -> None:
    store = {"store": {"tiers": ["memory", "redis"], "redis": {"url": redis.url}}}
    places = [ageing.own(store, variants=3) for _ in range(2)]
    upstream.app.script(Script(hold="answers"), times=None)

    answers = asyncio.run(crowd(*places, each=5))

    assert len(set(map(completion_id, answers))) == 3
    assert len(places[0].calls()) == 3
    places[1].key = places[0].key
    for here in places:
        here.settled()
        assert seen(several(here, 3)) == ["HIT"] * 3


def test_B15_they_are_there_after_a_restart(
    ageing: Ages, upstream: RunningStandIn, tmp_path: Path
) -> None:
    disk = {"store": {"tiers": ["memory", "disk"], "disk": {"path": str(tmp_path / "c.sqlite3")}}}
    here = ageing.own(disk, variants=3)
    names = {completion_id(answer) for answer in several(here, 3)}
    here.settled()
    here.proxy.stop()

    again = ageing.own(disk, variants=3)
    again.key = here.key
    hits = several(again, 3)

    assert seen(hits) == ["HIT"] * 3
    assert {completion_id(answer) for answer in hits} == names


def test_B13_no_cache_renews_one_in_turn(ageing: Ages, upstream: RunningStandIn) -> None:
    here = ageing(variants=3)
    old = [completion_id(answer) for answer in several(here, 3)]

    renewed = several(here, 2, "no-cache")

    assert seen(renewed) == ["MISS"] * 2
    now = {completion_id(answer) for answer in several(here, 3)}
    assert now == {*(completion_id(answer) for answer in renewed), old[2]}
    assert upstream.app.count() == 5


def test_B13_only_if_cached_takes_of_what_there_is(ageing: Ages, upstream: RunningStandIn) -> None:
    here = ageing(variants=3)
    assert several(here, 1, "only-if-cached")[0].status_code == 504
    names = {completion_id(answer) for answer in several(here, 2)}

    only = several(here, 4, "only-if-cached")

    assert seen(only) == ["HIT"] * 4
    assert {completion_id(answer) for answer in only} == names
    assert upstream.app.count() == 2


def test_B23_streams_and_whole_answers_are_variants_of_each_other(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(variants=3)
    names = {completion_id(several(here, 1, stream=stream)[0]) for stream in (False, True, False)}
    here.settled()

    for stream in (False, True):
        hits = several(here, 3, stream=stream)
        assert seen(hits) == ["HIT"] * 3
        assert {completion_id(answer) for answer in hits} == names
        content_type = "text/event-stream" if stream else "application/json"
        assert all(hit.headers["content-type"].startswith(content_type) for hit in hits)
    assert upstream.app.count() == 3


def test_B15_no_variant_is_repeated_unread(ageing: Ages) -> None:
    here = ageing(variants=2)
    raw = request(body=chat(temperature=0.7), key=here.key)
    with Line(here.proxy) as line:
        names = [line.ask(raw).json["id"] for _ in range(2)]

        for _ in range(3):
            replies, parsed = here.proxy.parsed_by(lambda: [line.ask(raw) for _ in range(2)])
            assert parsed == 2
            assert [reply.json["id"] for reply in replies] == names


def test_B15_each_grows_stale_by_itself_and_is_refreshed_by_itself(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(variants=2, stale_while_revalidate_seconds=30)
    (old,) = several(here, 1)
    here.clock.advance(100)
    (young,) = several(here, 1)
    here.clock.advance(TTL_SECONDS - 90)

    answers = several(here, 2)
    here.settled()
    after = several(here, 2)

    assert Counter(seen(answers)) == {"STALE": 1, "HIT": 1}
    assert {completion_id(each) for each in answers} == {completion_id(old), completion_id(young)}
    assert seen(after) == ["HIT"] * 2
    assert completion_id(young) in map(completion_id, after)
    assert completion_id(old) not in map(completion_id, after)
    assert upstream.app.count() == 3


def test_B15_a_stale_variant_serves_where_its_renewal_fails(
    ageing: Ages, upstream: RunningStandIn
) -> None:
    here = ageing(variants=2, stale_if_error_seconds=300)
    names = {completion_id(answer) for answer in several(here, 2)}
    here.clock.advance(TTL_SECONDS)
    upstream.app.script(server_error(503), times=None)

    answers = several(here, 2)

    assert seen(answers) == ["STALE"] * 2
    assert {completion_id(answer) for answer in answers} <= names


@pytest.mark.parametrize("soft", [False, True])
def test_B54_a_purge_by_key_is_one_of_all_variants(
    soft: bool, ageing: Ages, upstream: RunningStandIn
) -> None:
    settings = {
        "admin": {"key_hashes": ["sha256:" + hashlib.sha256(b"adm").hexdigest()]},
        "cache_settings": {"expose_key": True},
    }
    here = ageing(settings, variants=3)
    *_, last = several(here, 3)
    other = here.ask("Another.", temperature=0.7)
    digest = cache_status(last)["key"]

    purged = httpx.delete(
        f"{here.proxy.url}/admin/entries/{digest}",
        params={"soft": "true"} if soft else {},
        headers={"x-admin-key": "adm"},
    )

    assert purged.status_code == 200, purged.text
    assert seen(several(here, 4)) == ["MISS"] * 3 + ["HIT"]
    only = here.ask("Another.", "only-if-cached", temperature=0.7)
    assert completion_id(only) == completion_id(other)
