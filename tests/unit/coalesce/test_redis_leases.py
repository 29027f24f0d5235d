"""Leases in a real Redis: round trips, fencing, renewal, time limits, outages."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from proxy.coalesce import redis_leases
from proxy.coalesce.base import FlightEnd, Followed
from proxy.errors import StoreUnavailable
from tests.contract.coalescers import follow, lead, story
from tests.integration.redis_server import RedisServer, free_port, redis_server
from tests.unit.coalesce.replicas import PATIENT_SECONDS, PREFIX, Replicas, replicas_over
from tests.waiting import until

pytestmark = pytest.mark.anyio

SLACK_SECONDS = 1.0


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One that a test may harm."""
    with redis_server() as running:
        yield running


@pytest.fixture
async def replicas(shared_server: RedisServer) -> AsyncIterator[Replicas]:
    async with replicas_over(shared_server) as made:
        yield made


@pytest.fixture
async def frail(server: RedisServer) -> AsyncIterator[Replicas]:
    async with replicas_over(server) as made:
        yield made


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, logger="magic_proxy"):
        yield lambda: [
            record.getMessage().split(",")[0].split(" (")[0] for record in caplog.records
        ]


DOWN = "redis leases: does not work"
BACK = "redis leases: works again"


async def test_B40_an_ordinary_miss_costs_one_round_trip_and_leaves_next_to_nothing(
    replicas: Replicas,
) -> None:
    one = await replicas.start()
    await (await lead(one)).release(FlightEnd.STORED)  # the scripts are known from here on
    replicas.forget_calls()
    lease = await lead(one)
    assert replicas.calls()["evalsha"] == 1
    await lease.release(FlightEnd.STORED)
    calls = replicas.calls()
    assert calls["evalsha"] == 2
    assert not calls.keys() & {"eval", "xadd", "publish", "xread"}
    # That an entry was stored is known for a moment; any other end leaves no trace.
    assert replicas.keys() == ["p:fence", "p:lease-probe", "p:lease:k"]
    assert int(replicas.server.command("PTTL", "p:lease:k")[1:]) <= 2000
    await (await lead(one)).release(FlightEnd.UNCACHEABLE)
    assert replicas.keys() == ["p:fence", "p:lease-probe"]
    assert replicas.air.said == []


async def test_every_key_expires_and_none_lies_among_the_entries(replicas: Replicas) -> None:
    one, other = await replicas.start(), await replicas.start()
    lease = await lead(one, "p:v1:chat:s:d")
    following = asyncio.ensure_future(story(await follow(other, "p:v1:chat:s:d"), live=True))
    wanted = asyncio.Event()
    lease.when_wanted(wanted.set)
    await wanted.wait()
    await lease.publish([b"1"])
    during = replicas.keys()
    assert len(during) == 5  # fence, probe, lease, stream, doorbell
    silent = await lead(one, "silent")
    await follow(other, "silent")
    for each in (lease, silent):
        await each.release(FlightEnd.STORED)
    await following
    assert len(replicas.keys("p:flight:*")) == 2
    for key in {*during, *replicas.keys()}:
        assert not key.startswith("p:v1:")
        ttl = int(replicas.server.command("PTTL", key)[1:])
        assert 0 < ttl <= 24 * 3600 * 1000 or ttl == -2, key


async def test_a_thousand_keys_are_one_round_trip_each_way(replicas: Replicas) -> None:
    one = await replicas.start()
    await (await lead(one)).release(FlightEnd.UNCACHEABLE)
    replicas.forget_calls()
    leases = await one.acquire([f"k{i}" for i in range(1000)])
    assert replicas.calls()["evalsha"] == 1
    await asyncio.gather(
        *(each.release(FlightEnd.UNCACHEABLE) for each in leases if not isinstance(each, Followed))
    )
    assert replicas.calls()["evalsha"] <= 1 + 2
    assert replicas.keys("p:lease:*") == []


async def test_a_server_that_has_forgotten_the_scripts_is_told_them_again(
    replicas: Replicas,
) -> None:
    one = await replicas.start()
    lease = await lead(one)
    replicas.server.command("SCRIPT", "FLUSH")
    await lease.release(FlightEnd.UNCACHEABLE)
    assert replicas.keys("p:lease:*") == []
    replicas.server.command("SCRIPT", "FLUSH")
    await lead(one)


async def test_the_token_grows_over_a_restart_that_lost_everything(replicas: Replicas) -> None:
    one = await replicas.start()
    first = await lead(one)
    replicas.server.command("FLUSHALL")
    second = await lead(one)
    assert second.token > first.token


async def test_the_token_grows_where_the_servers_clock_has_stepped_back(
    replicas: Replicas,
) -> None:
    one = await replicas.start()
    ahead = int((time.time() + 3600) * 1_000_000)
    replicas.server.command("SET", f"{PREFIX}fence", str(ahead))
    assert [(await lead(one, key)).token for key in "abc"] == [ahead + 1, ahead + 2, ahead + 3]


async def test_B41_all_leases_of_a_process_are_renewed_together(replicas: Replicas) -> None:
    one = await replicas.start(lease_seconds=0.6)
    leases = await one.acquire([f"k{i}" for i in range(200)])
    replicas.forget_calls()

    def renewed() -> int:
        return replicas.calls().get("evalsha", 0)

    await until(lambda: renewed() >= 4)
    assert renewed() <= 6
    assert len(replicas.keys("p:lease:*")) == 200
    assert not any(each.lost for each in leases if not isinstance(each, Followed))


async def test_B41_a_lease_that_another_holds_is_lost_and_not_released(replicas: Replicas) -> None:
    one = await replicas.start(lease_seconds=0.3)
    taken, gone, kept = [await lead(one, key) for key in ("taken", "gone", "kept")]
    replicas.server.command("HSET", "p:lease:taken", "token", "7")
    replicas.server.command("DEL", "p:lease:gone")
    await until(lambda: taken.lost and gone.lost)
    assert not kept.lost
    for lease in (taken, gone, kept):
        await lease.release(FlightEnd.UNCACHEABLE)
    assert replicas.keys("p:lease:*") == ["p:lease:taken"]


async def test_B41_a_release_without_a_renewal_before_does_not_free_anothers_lease(
    replicas: Replicas,
) -> None:
    one = await replicas.start()
    lease = await lead(one)
    replicas.server.command("HSET", "p:lease:k", "token", "7")
    await lease.release(FlightEnd.STORED)
    assert replicas.keys("p:lease:*") == ["p:lease:k"]


async def test_B50_a_lease_is_not_lost_because_redis_is_away(frail: Replicas) -> None:
    one = await frail.start(lease_seconds=0.3)
    lease = await lead(one)
    frail.server.kill()
    await until(lambda: not one.available)
    assert not lease.lost
    frail.server.start()  # and has forgotten it
    await until(lambda: lease.lost)


async def test_B41_a_leader_learns_by_renewal_that_it_is_followed_if_the_message_was_lost(
    replicas: Replicas,
) -> None:
    replicas.air.down = True
    one, other = await replicas.start(lease_seconds=0.6), await replicas.start(lease_seconds=0.6)
    lease = await lead(one)
    wanted = asyncio.Event()
    lease.when_wanted(wanted.set)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await wanted.wait()
    assert replicas.air.said == []
    await lease.publish([b"1"])
    await lease.release(FlightEnd.STORED)
    assert await following == ([b"1"], FlightEnd.STORED)


async def test_B41_a_leader_looks_whether_it_is_followed_when_the_channel_is_back(
    replicas: Replicas,
) -> None:
    replicas.air.down = True
    one, other = await replicas.start(), await replicas.start()
    lease = await lead(one)
    wanted = asyncio.Event()
    lease.when_wanted(wanted.set)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await until(lambda: b"live" in replicas.server.command("HGETALL", "p:lease:k"))
    assert not wanted.is_set()
    replicas.air.come_back()
    await asyncio.wait_for(wanted.wait(), PATIENT_SECONDS)  # far less than to the next renewal
    await lease.release(FlightEnd.STORED)
    await following


async def test_a_message_that_is_faster_than_the_reply_to_the_acquire_counts(
    replicas: Replicas,
) -> None:
    one = await replicas.start()
    ahead = int((time.time() + 3600) * 1_000_000)
    replicas.server.command("SET", f"{PREFIX}fence", str(ahead))
    acquiring = asyncio.ensure_future(lead(one))
    await asyncio.sleep(0)
    for channel in replicas.air.channels:
        channel.hear(f"{PREFIX}wanted", b"rubbish \xff")
        channel.hear(f"{PREFIX}wanted", b"%d k" % (ahead + 1))
    lease = await acquiring
    assert lease.token == ahead + 1
    wanted = asyncio.Event()
    lease.when_wanted(wanted.set)
    await asyncio.wait_for(wanted.wait(), SLACK_SECONDS)


async def test_B50_a_redis_that_hangs_costs_each_miss_its_limit_until_the_circuit_opens(
    frail: Replicas, lines: Callable[[], list[str]]
) -> None:
    one = await frail.start(timeout_seconds=0.05)
    await (await lead(one)).release(FlightEnd.STORED)
    frail.server.pause()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await one.acquire(["k"])
        assert time.monotonic() - began < 0.05 + SLACK_SECONDS
    assert not one.available
    began = time.monotonic()
    for _ in range(100):
        with pytest.raises(StoreUnavailable):
            await one.acquire(["k"])
    assert time.monotonic() - began < SLACK_SECONDS
    frail.server.resume()
    await until(lambda: one.available)
    assert lines() == [DOWN, BACK]


async def test_B50_what_redis_gives_too_late_is_given_back(frail: Replicas) -> None:
    """The lease would last a minute, and nobody has it."""
    one = await frail.start(timeout_seconds=0.05)
    await (await lead(one)).release(FlightEnd.STORED)
    frail.server.pause()
    with pytest.raises(StoreUnavailable):
        await one.acquire(["k", "l"])
    frail.server.resume()
    await until(lambda: frail.calls().get("evalsha", 0) >= 3)
    await until(lambda: frail.keys("p:lease:*") == [])


async def test_B50_a_slow_redis_does_not_pass_for_a_well_one_because_it_answers_in_the_end(
    frail: Replicas,
) -> None:
    one = await frail.start(timeout_seconds=0.01, retry_seconds=30.0)
    await (await lead(one)).release(FlightEnd.STORED)
    for _ in range(3):
        frail.server.pause()
        with pytest.raises(StoreUnavailable):
            await one.acquire(["k"])
        frail.server.resume()
        await until(lambda: frail.keys("p:lease:*") == [])
    assert not one.available


async def test_B50_a_redis_that_is_down_at_the_start_is_found_later(
    lines: Callable[[], list[str]], server: RedisServer
) -> None:
    async with replicas_over(server) as frail:
        server.kill()
        one = await frail.start()
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await one.acquire(["k"])
        server.start()
        await until(lambda: one.available)
        await lead(one)
        assert lines() == [DOWN, BACK]


def refusals(server: RedisServer) -> int:
    """How many commands had no room."""
    found = re.search(rb"errorstat_OOM:count=([0-9]+)", server.command("INFO", "errorstats"))
    return int(found[1]) if found else 0


async def test_B50_a_redis_that_takes_no_writes_is_one_line_until_it_does(
    frail: Replicas, lines: Callable[[], list[str]]
) -> None:
    one = await frail.start()
    frail.server.command("CONFIG", "SET", "maxmemory", "1")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await one.acquire(["k"])
    refused = refusals(frail.server)
    await until(lambda: refusals(frail.server) >= refused + 3)  # some probes go by
    assert lines() == [DOWN]
    frail.server.command("CONFIG", "SET", "maxmemory", "0")
    await until(lambda: one.available)
    await lead(one)
    assert lines() == [DOWN, BACK]


async def test_B50_what_is_not_ours_under_our_key_costs_a_miss(replicas: Replicas) -> None:
    one = await replicas.start()
    replicas.server.command("SET", "p:lease:text", "x")
    replicas.server.command("HSET", "p:lease:odd", "token", "x")
    for key in ("text", "odd"):
        with pytest.raises(StoreUnavailable):
            await one.acquire([key])
    await lead(one, "sound")


async def test_B50_releasing_and_closing_while_redis_hangs_take_no_longer_than_their_limits(
    frail: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_leases, "_PATIENCE_SECONDS", 0.2)
    one = await frail.start()
    leases = [await lead(one, f"k{i}") for i in range(5)]
    frail.server.pause()
    began = time.monotonic()
    await leases[0].release(FlightEnd.STORED)
    assert time.monotonic() - began < 0.2 + SLACK_SECONDS
    await one.close()
    assert time.monotonic() - began < 0.4 + SLACK_SECONDS
    frail.server.resume()


async def test_closing_leaves_no_connection_and_no_task(replicas: Replicas) -> None:
    before = asyncio.all_tasks()
    one, other = await replicas.start(), await replicas.start()
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await until(lambda: b" cmd=xread " in replicas.server.command("CLIENT", "LIST"))
    await other.close()
    with pytest.raises(StoreUnavailable):
        await following
    await one.close()
    assert lease.lost is False
    await until(lambda: replicas.server.command("CLIENT", "LIST").count(b" addr=") == 1)
    assert asyncio.all_tasks() == before
    with pytest.raises(StoreUnavailable):
        await one.acquire(["k"])


async def test_closing_while_redis_is_away_does_not_wait_for_it(server: RedisServer) -> None:
    async with replicas_over(server) as frail:
        server.port = free_port()
        one = await frail.start()
        async with asyncio.timeout(SLACK_SECONDS):
            await one.close()
