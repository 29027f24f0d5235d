"""Following through a real Redis: gaps, bounds, one connection, outages."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from proxy.coalesce import redis_following, redis_records
from proxy.coalesce.base import FlightEnd, FollowEvent, Landed, Lease, Published
from proxy.coalesce.redis import RedisCoalescer
from proxy.errors import FellBehind, StoreUnavailable
from tests.contract.coalescers import follow, lead, story
from tests.integration.redis_server import RedisServer, redis_server
from tests.unit.coalesce.replicas import PATIENT_SECONDS, Replicas, replicas_over
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things may hold up a reply of Redis for a second."""
    monkeypatch.setattr(redis_following, "_REPLY_SECONDS", PATIENT_SECONDS)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def replicas(shared_server: RedisServer) -> AsyncIterator[Replicas]:
    async with replicas_over(shared_server) as made:
        yield made


@pytest.fixture
async def frail() -> AsyncIterator[Replicas]:
    """Over a server that a test may harm."""
    with redis_server() as server:
        async with replicas_over(server) as made:
            yield made


@pytest.fixture
async def one(replicas: Replicas) -> RedisCoalescer:
    return await replicas.start()


@pytest.fixture
async def other(replicas: Replicas) -> RedisCoalescer:
    return await replicas.start()


async def when_wanted(lease: Lease) -> None:
    wanted = asyncio.Event()
    lease.when_wanted(wanted.set)
    await wanted.wait()


def stream_of(lease: Lease) -> str:
    return f"p:flight:{lease.key}:{lease.token}"


def readers(server: RedisServer) -> list[bytes]:
    """The connections that wait for news of streams."""
    clients = server.command("CLIENT", "LIST").splitlines()
    return [client.split()[0] for client in clients if b" cmd=xread " in client]


async def test_B40_records_reach_a_follower_as_they_come(
    one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    events = (await follow(other)).events(live=True)
    first = asyncio.ensure_future(anext(aiter(events)))
    await when_wanted(lease)
    await lease.publish([b"0"])
    assert await first == Published([b"0"])
    for i in range(1, 50):
        await lease.publish([b"%d" % i])
        assert await anext(aiter(events)) == Published([b"%d" % i])
    await lease.release(FlightEnd.STORED)
    assert [event async for event in events] == [Landed(FlightEnd.STORED)]


async def test_B43_records_that_are_gone_are_noticed_by_those_who_had_not_read_them(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    early = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    await lease.publish([b"0"])
    await lease.publish([b"1"])
    replicas.server.command("XTRIM", stream_of(lease), "MAXLEN", "1")
    late = asyncio.ensure_future(story(await follow(other), live=True))
    with pytest.raises(FellBehind):
        await late
    await lease.release(FlightEnd.STORED)
    assert await early == ([b"0", b"1"], FlightEnd.STORED)


async def test_B43_a_stream_that_is_gone_whole_is_noticed_at_its_end(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    ends = asyncio.ensure_future(story(followed, live=False))
    await lease.publish([b"0"])
    replicas.server.command("DEL", stream_of(lease))
    late = asyncio.ensure_future(story(followed, live=True))
    await asyncio.sleep(0.02)
    await lease.release(FlightEnd.STORED)
    with pytest.raises(FellBehind):
        await late
    assert await ends == ([], FlightEnd.STORED)


@pytest.mark.parametrize(("bound", "size"), [("_MOST_ENTRIES", 1), ("_MOST_BYTES", 100)])
async def test_B56_a_stream_is_bounded(
    replicas: Replicas,
    one: RedisCoalescer,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    size: int,
) -> None:
    monkeypatch.setattr(redis_records, bound, 300 * size)
    lease = await lead(one)
    for i in range(20):
        await lease.publish([b"%0100d" % i])  # as entries of their own
        for _ in range(49):
            await lease.publish([b"x" * 100])
    length = int(replicas.server.command("XLEN", stream_of(lease))[1:])
    assert 300 <= length <= 400  # Redis lets go of a hundred at a time


async def test_many_records_at_once_share_round_trips_and_entries(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    replicas.forget_calls()
    records = [b"%d" % i for i in range(5000)]
    await lease.publish(records)
    assert replicas.calls()["xadd"] == 40
    assert replicas.calls()["pexpire"] == 1
    await lease.publish([])
    assert replicas.calls()["xadd"] == 40
    await lease.release(FlightEnd.STORED)
    assert await following == (records, FlightEnd.STORED)


async def test_B43_a_follower_that_does_not_read_holds_up_nobody_and_holds_little(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    slow = (await follow(other)).events(live=True)
    first = asyncio.ensure_future(anext(aiter(slow)))
    await when_wanted(lease)
    quick_lease = await lead(one, "quick")
    quick = asyncio.ensure_future(story(await follow(other, "quick"), live=True))
    await when_wanted(quick_lease)
    record = b"x" * 50_000
    await lease.publish([b"0"])
    await first
    for _ in range(200):  # 10 MB
        await lease.publish([record])
    await quick_lease.publish([b"1"])
    await quick_lease.release(FlightEnd.STORED)
    assert await quick == ([b"1"], FlightEnd.STORED)
    await lease.release(FlightEnd.STORED)
    (stream,) = other._reader._streams.values()
    (place,) = stream.follows
    assert place._bytes < 5_000_000
    async with asyncio.timeout(5.0):  # reading on is told to the reader, not found out
        rest: list[FollowEvent] = [event async for event in slow]
    assert rest.pop() == Landed(FlightEnd.STORED)
    assert sum(len(event.records) for event in rest if isinstance(event, Published)) == 200


async def test_B40_one_who_joins_while_a_record_is_under_way_gets_all(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    early = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    await lease.publish([b"0"])
    late_followed = await follow(other)
    await until(lambda: len(readers(replicas.server)) == 1)
    late = asyncio.ensure_future(story(late_followed, live=True))
    await asyncio.sleep(0)  # it has joined; the read under way does not know of it
    replicas.server.command("XADD", stream_of(lease), "*", "n", "1", "r", "1")
    replicas.server.command("XADD", stream_of(lease), "*", "n", "2", "end", "stored")
    expected = ([b"0", b"1"], FlightEnd.STORED)
    assert [await early, await late] == [expected, expected]


async def test_B40_all_that_was_said_comes_before_the_end_of_a_lease_that_is_gone(
    one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    for i in range(200):
        await lease.publish([b"%d" % i])
    await lease.release(FlightEnd.STORED)
    assert await story(followed, live=True) == ([b"%d" % i for i in range(200)], FlightEnd.STORED)


async def test_all_that_is_followed_is_read_over_one_connection_without_polling(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    leases = [await lead(one, f"k{i}") for i in range(50)]
    followed = [await follow(other, f"k{i}") for i in range(50)]
    stories = [asyncio.ensure_future(story(each, live=True)) for each in followed]
    await asyncio.gather(*(when_wanted(lease) for lease in leases))
    await until(lambda: len(readers(replicas.server)) == 1)
    replicas.forget_calls()
    await asyncio.sleep(0.5)  # a poll would be seen within it
    calls = replicas.calls()
    assert sum(calls.get(name, 0) for name in ("xread", "evalsha", "hget")) <= 4
    for lease in leases:
        await lease.publish([lease.key.encode()])
        await lease.release(FlightEnd.STORED)
    ended = await asyncio.gather(*stories)
    assert ended == [([f"k{i}".encode()], FlightEnd.STORED) for i in range(50)]
    await until(lambda: not readers(replicas.server))


async def test_a_thousand_leases_that_end_together_are_learnt_together(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    keys = [f"k{i}" for i in range(1000)]
    leases = await one.acquire(keys)
    followed = await other.acquire(keys)
    stories = [asyncio.ensure_future(story(each, live=False)) for each in followed]  # type: ignore[arg-type]
    await until(lambda: len(readers(replicas.server)) == 1)
    replicas.forget_calls()
    await asyncio.gather(*(lease.release(FlightEnd.STORED) for lease in leases))  # type: ignore[union-attr]
    assert await asyncio.gather(*stories) == [([], FlightEnd.STORED)] * 1000
    assert replicas.calls()["xread"] < 20


async def test_the_connection_is_kept_a_while_for_the_next_follower(replicas: Replicas) -> None:
    one, other = await replicas.start(), await replicas.start(linger_seconds=60.0)
    await until(lambda: not readers(replicas.server))  # those of the tests before
    seen = set()
    for _ in range(3):
        lease = await lead(one)
        following = asyncio.ensure_future(story(await follow(other), live=False))
        await until(lambda: len(readers(replicas.server)) == 1)
        seen.update(readers(replicas.server))
        await lease.release(FlightEnd.STORED)
        await following
    assert len(seen) == 1


async def test_B50_a_connection_that_breaks_costs_a_follower_nothing(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    await lease.publish([b"0"])
    await until(lambda: len(readers(replicas.server)) == 1)
    replicas.server.command("CLIENT", "KILL", "TYPE", "normal")
    await until(lambda: len(readers(replicas.server)) == 1)
    await lease.publish([b"1"])
    await lease.release(FlightEnd.STORED)
    assert await following == ([b"0", b"1"], FlightEnd.STORED)


async def test_B50_a_redis_that_restarts_empty_ends_what_was_followed(frail: Replicas) -> None:
    one = await frail.start(lease_seconds=0.6)
    other = await frail.start(lease_seconds=0.6)
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    await lease.publish([b"0"])
    frail.server.kill()
    frail.server.start()
    try:
        _, end = await following
        assert end is FlightEnd.ABANDONED
    except StoreUnavailable:
        pass  # looked while it was away
    await until(lambda: lease.lost)
    await until(lambda: other.available)
    taken = await lead(other)
    assert taken.token > lease.token


async def test_B50_a_redis_that_goes_away_lets_its_followers_know(frail: Replicas) -> None:
    one, other = await frail.start(), await frail.start()
    lease = await lead(one)
    stories = [
        asyncio.ensure_future(story(await follow(other), live=live)) for live in (True, False)
    ]
    await when_wanted(lease)
    frail.server.kill()
    began = time.monotonic()
    for following in stories:
        with pytest.raises(StoreUnavailable):
            await following
    assert time.monotonic() - began < 2.0
    with pytest.raises(StoreUnavailable):
        await lease.publish([b"1"])
    await lease.release(FlightEnd.STORED)


async def test_B50_a_redis_that_hangs_lets_its_followers_know(
    frail: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_following, "_REPLY_SECONDS", 0.3)
    one = await frail.start(lease_seconds=1.0)
    other = await frail.start(lease_seconds=1.0)
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    await until(lambda: len(readers(frail.server)) == 1)
    frail.server.pause()
    with pytest.raises(StoreUnavailable):
        await following
    frail.server.resume()


async def test_B50_what_is_not_ours_in_the_stream_costs_the_following(
    replicas: Replicas, one: RedisCoalescer, other: RedisCoalescer
) -> None:
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await when_wanted(lease)
    replicas.server.command("XADD", stream_of(lease), "*", "odd", "1")
    with pytest.raises(StoreUnavailable):
        await following
    await lease.release(FlightEnd.STORED)


async def test_nothing_is_published_under_a_lease_that_is_over(
    replicas: Replicas, one: RedisCoalescer
) -> None:
    lease = await lead(one)
    await lease.release(FlightEnd.STORED)
    await lease.publish([b"1"])
    assert replicas.keys("p:flight:*") == []
