"""What every coalescer does, over all of them: the contract of `proxy.coalesce.base.Coalescer`."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, closing
from pathlib import Path

import pytest

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.coalesce import redis_following
from proxy.coalesce.base import Coalescer, FlightEnd, Followed, Lease
from proxy.coalesce.disk import DiskCoalescer
from proxy.coalesce.redis import RedisCoalescer
from proxy.errors import StoreUnavailable
from tests.coalescing import FakeCoalescer, FakeMedium
from tests.contract.coalescers import LEASE_SECONDS, Medium, follow, lead, story
from tests.integration.redis_server import RedisServer, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio

KINDS = ("fake", "disk", "redis")
LIVE = pytest.mark.parametrize("kind", ["fake", "redis"], indirect=True)  # a disk tells of ends
TIMED = pytest.mark.parametrize("kind", ["disk", "redis"], indirect=True)  # the fake knows no time
# Where a lease has to run out, and none has to be kept while the machine does other things.
SHORT_SECONDS = 0.25
SHORT = pytest.mark.parametrize("lease_seconds", [SHORT_SECONDS], ids=["short"])
# The same, where a lease has to be there for a moment.
BRIEF = pytest.mark.parametrize("lease_seconds", [0.4], ids=["brief"])
PATIENT_SECONDS = 5.0  # on a machine that is busy with other things


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy with other things may hold up a reply of Redis for a second."""
    monkeypatch.setattr(redis_following, "_REPLY_SECONDS", PATIENT_SECONDS)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def lease_seconds() -> float:
    return LEASE_SECONDS


@pytest.fixture
async def medium(
    kind: str, lease_seconds: float, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Medium]:
    async with AsyncExitStack() as stack:
        if kind == "fake":
            yield _fake(stack)
        elif kind == "disk":
            yield _disk(stack, tmp_path / "cache.sqlite3", lease_seconds)
        else:
            yield _redis(stack, request.getfixturevalue("server"), lease_seconds)


def _fake(stack: AsyncExitStack) -> Medium:
    shared = FakeMedium()

    async def worker() -> Coalescer:
        made = FakeCoalescer(shared)
        await made.open()
        stack.push_async_callback(made.close)
        return made

    async def kill(worker: Coalescer) -> None:
        assert isinstance(worker, FakeCoalescer)
        shared.die(worker)

    return Medium(True, worker, kill, shared.go_down, shared.come_back, lambda: list(shared.held))


def _disk(stack: AsyncExitStack, path: Path, lease_seconds: float) -> Medium:
    aside = path.with_name("aside")

    async def worker() -> Coalescer:
        made = DiskCoalescer(
            path,
            clock=SystemClock(),
            lease_seconds=lease_seconds,
            timeout_seconds=PATIENT_SECONDS,
            retry_seconds=0.02,
        )
        await made.open()
        stack.push_async_callback(made.close)
        return made

    async def kill(worker: Coalescer) -> None:
        assert isinstance(worker, DiskCoalescer)
        await worker._tasks.cancel()
        await worker._writer.close()

    def left() -> list[str]:
        with closing(sqlite3.connect(path)) as file:
            return [key for (key,) in file.execute("SELECT key FROM leases WHERE key <> ''")]

    def break_down() -> None:
        """As when the volume is unmounted."""
        aside.mkdir()
        for part in path.parent.glob(f"{path.name}*"):
            part.rename(aside / part.name)
        path.mkdir()

    return Medium(False, worker, kill, break_down, path.rmdir, left)


def _redis(stack: AsyncExitStack, server: RedisServer, lease_seconds: float) -> Medium:
    server.command("FLUSHALL")
    config = RedisConfig(server.url, retry_seconds=0.02)

    async def worker() -> Coalescer:
        channel = RedisChannel(config, clock=SystemClock(), retry_seconds=0.02)
        made = RedisCoalescer(
            config,
            clock=SystemClock(),
            channel=channel,
            key_prefix="p:",
            lease_seconds=lease_seconds,
            timeout_seconds=PATIENT_SECONDS,
            linger_seconds=0.0,
        )
        await made.open()
        await channel.open()
        stack.push_async_callback(channel.close)
        stack.push_async_callback(made.close)
        return made

    async def kill(worker: Coalescer) -> None:
        assert isinstance(worker, RedisCoalescer)
        await worker._tasks.cancel()
        await worker._redis.close()

    def left() -> list[str]:
        words = server.command("KEYS", "p:lease:*").decode().split("\r\n")
        return [word for word in words if word.startswith("p:lease:")]

    def mend() -> None:
        server.stop()
        server.start()

    return Medium(True, worker, kill, server.kill, mend, left)


@pytest.fixture
async def one(medium: Medium) -> Coalescer:
    return await medium.worker()


@pytest.fixture
async def other(medium: Medium) -> Coalescer:
    return await medium.worker()


async def wanted(lease: Lease) -> asyncio.Event:
    event = asyncio.Event()
    lease.when_wanted(event.set)
    return event


async def test_B40_the_first_leads_and_the_others_follow(one: Coalescer, other: Coalescer) -> None:
    lease = await lead(one)
    assert lease.key == "k"
    assert not lease.lost
    for worker in (one, other):
        followed = await follow(worker)
        assert (followed.key, followed.token) == ("k", lease.token)


async def test_B40_of_many_who_ask_at_once_one_leads(one: Coalescer, other: Coalescer) -> None:
    asked = [worker.acquire(["k"]) for worker in (one, other) for _ in range(50)]
    got = [each for (each,) in await asyncio.gather(*asked)]
    leases = [each for each in got if not isinstance(each, Followed)]
    assert len(leases) == 1
    assert {each.token for each in got} == {leases[0].token}


async def test_B40_many_keys_are_had_at_once(one: Coalescer, other: Coalescer) -> None:
    keys = [f"k{i}" for i in range(300)]
    await one.acquire(keys[::2])
    got = await other.acquire(keys)
    assert [each.key for each in got] == keys
    assert [isinstance(each, Followed) for each in got] == [i % 2 == 0 for i in range(300)]


async def test_no_keys_are_no_work(one: Coalescer) -> None:
    assert await one.acquire([]) == []


async def test_B40_a_key_that_was_released_is_free(one: Coalescer, other: Coalescer) -> None:
    lease = await lead(one)
    await lease.release(FlightEnd.STORED)
    await lead(other)


async def test_B40_who_acquires_next_is_told_that_an_entry_was_stored(
    one: Coalescer, other: Coalescer
) -> None:
    """It may have looked for the entry just before that."""
    first = await lead(one)
    assert not first.stored_lately
    await first.release(FlightEnd.STORED)
    second = await lead(other)
    assert second.stored_lately
    await second.release(FlightEnd.UNCACHEABLE)
    assert not (await lead(one, "l")).stored_lately


@pytest.mark.parametrize("end", [end for end in FlightEnd if end is not FlightEnd.STORED])
@pytest.mark.parametrize("is_followed", [True, False])
async def test_nothing_was_stored_lately_where_it_ended_otherwise(
    one: Coalescer, other: Coalescer, end: FlightEnd, is_followed: bool
) -> None:
    lease = await lead(one)
    if is_followed:
        await follow(other)
    await lease.release(end)
    assert not (await lead(other)).stored_lately


@pytest.mark.parametrize("is_followed", [True, False])
async def test_B40_of_many_keys_each_is_told_of_its_own(
    one: Coalescer, other: Coalescer, is_followed: bool
) -> None:
    keys = [f"k{i}" for i in range(6)]
    leases = [await lead(one, key) for key in keys]
    if is_followed:
        await other.acquire(keys)
    for lease in leases[::2]:
        await lease.release(FlightEnd.STORED)
    got = await other.acquire(keys)
    told = [not isinstance(each, Followed) and each.stored_lately for each in got]
    assert told == [True, False] * 3


@TIMED
@SHORT
async def test_that_it_was_stored_is_forgotten_after_a_while(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    await lease.release(FlightEnd.STORED)
    await until(lambda: not medium.left())
    assert not (await lead(other)).stored_lately


async def test_the_token_grows_with_every_lease_of_a_key(one: Coalescer, other: Coalescer) -> None:
    tokens = []
    for worker in (one, other, other, one) * 3:
        lease = await lead(worker)
        tokens.append(lease.token)
        await lease.release(FlightEnd.STORED)
    assert tokens == sorted(set(tokens))


@pytest.mark.parametrize("end", [end for end in FlightEnd if end is not FlightEnd.ABANDONED])
@pytest.mark.parametrize("live", [True, False])
async def test_B41_followers_learn_how_it_ended(
    one: Coalescer, other: Coalescer, end: FlightEnd, live: bool
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    following = asyncio.ensure_future(story(followed, live=live))
    await asyncio.sleep(0.01)
    await lease.release(end)
    assert await following == ([], end)


@pytest.mark.parametrize("live", [True, False])
async def test_B41_the_end_is_learnt_by_those_who_look_late(
    one: Coalescer, other: Coalescer, live: bool
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    await lease.release(FlightEnd.UNCACHEABLE)
    assert await story(followed, live=live) == ([], FlightEnd.UNCACHEABLE)


async def test_B41_the_end_is_learnt_although_another_leads_by_then(
    one: Coalescer, other: Coalescer
) -> None:
    """Else those who wait would queue up behind one uncacheable answer after another."""
    first = await lead(one)
    followed = await follow(other)
    await first.release(FlightEnd.UNCACHEABLE)
    second = await lead(one)
    assert await story(followed, live=True) == ([], FlightEnd.UNCACHEABLE)
    await second.release(FlightEnd.STORED)


@LIVE
async def test_B40_records_come_live_in_order_from_the_first(
    one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    records = [b"%d\r\n\0" % i for i in range(1000)]
    is_wanted = await wanted(lease)
    following = asyncio.ensure_future(story(followed, live=True))
    await is_wanted.wait()
    await lease.publish(records[:700])
    for record in records[700:]:
        await lease.publish([record])
    await lease.release(FlightEnd.STORED)
    assert await following == (records, FlightEnd.STORED)


@LIVE
async def test_B40_one_who_comes_later_gets_it_from_the_first_record_too(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    is_wanted = await wanted(lease)
    early = asyncio.ensure_future(story(await follow(other), live=True))
    await is_wanted.wait()
    await lease.publish([b"1", b"2"])
    late = asyncio.ensure_future(story(await follow(other), live=True))
    third = asyncio.ensure_future(story(await follow(await medium.worker()), live=True))
    ends = asyncio.ensure_future(story(await follow(other), live=False))
    await asyncio.sleep(0.02)
    await lease.publish([b"", b"3"])
    await lease.release(FlightEnd.STORED)
    for following in (early, late, third):
        assert await following == ([b"1", b"2", b"", b"3"], FlightEnd.STORED)
    assert await ends == ([], FlightEnd.STORED)


@TIMED
@SHORT
async def test_records_are_not_wanted_while_nobody_follows_live(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    is_wanted = await wanted(lease)
    following = asyncio.ensure_future(story(await follow(other), live=False))
    await asyncio.sleep(SHORT_SECONDS)  # long enough for messages and renewals to tell otherwise
    assert not is_wanted.is_set()
    await lease.release(FlightEnd.STORED)
    await following


@LIVE
async def test_whoever_asks_late_whether_records_are_wanted_is_told(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await asyncio.sleep(0.05)
    is_wanted = await wanted(lease)
    await is_wanted.wait()
    await lease.release(FlightEnd.STORED)
    await following


async def test_releasing_twice_is_fine_and_the_first_end_counts(
    one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    await asyncio.gather(lease.release(FlightEnd.FAILED), lease.release(FlightEnd.STORED))
    await lease.release(FlightEnd.UNCACHEABLE)
    assert await story(followed, live=True) == ([], FlightEnd.FAILED)


async def test_a_release_of_an_old_lease_leaves_the_new_one_alone(
    one: Coalescer, other: Coalescer
) -> None:
    old = await lead(one)
    await old.release(FlightEnd.STORED)
    new = await lead(other)
    await old.release(FlightEnd.FAILED)
    followed = await follow(one)
    assert followed.token == new.token


@TIMED
async def test_B41_a_lease_is_kept_as_long_as_its_holder_lives(
    one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    loop = asyncio.get_running_loop()
    enough = loop.time() + 1.25 * LEASE_SECONDS  # renewed three times
    while loop.time() < enough:
        followed = await follow(other)
        assert followed.token == lease.token
        await asyncio.sleep(0.05)
    assert not lease.lost


@BRIEF
@pytest.mark.parametrize("live", [True, False])
async def test_B41_a_leader_that_dies_is_followed_by_another(
    medium: Medium, one: Coalescer, other: Coalescer, live: bool
) -> None:
    lease = await lead(one)
    followed = await follow(other)
    following = asyncio.ensure_future(story(followed, live=live))
    await asyncio.sleep(0.05)
    await medium.kill(one)
    _, end = await following
    assert end is FlightEnd.ABANDONED
    taken = await lead(other)
    assert taken.token > lease.token


@SHORT
async def test_a_cancelled_acquire_leaves_no_lease(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    """Cancelled at every await in turn, until it needs no more of them."""
    for awaits in range(200):
        asked = asyncio.ensure_future(one.acquire([f"k{awaits}"]))
        for _ in range(awaits):
            await asyncio.sleep(0)
        if asked.done():
            (lease,) = await asked
            assert not isinstance(lease, Followed)
            await lease.release(FlightEnd.STORED)
            break
        asked.cancel()
        await asyncio.wait({asked})

    await until(lambda: not medium.left())


async def test_a_cancelled_release_is_a_release(one: Coalescer, other: Coalescer) -> None:
    lease = await lead(one)
    followed = await follow(other)
    releasing = asyncio.ensure_future(lease.release(FlightEnd.STORED))
    await asyncio.sleep(0)
    releasing.cancel()
    await lease.release(FlightEnd.STORED)  # whoever waits for the same is not cancelled with it
    assert await story(followed, live=False) == ([], FlightEnd.STORED)
    await lead(other)


async def test_a_cancelled_follower_leaves_nothing_and_takes_nothing_from_the_others(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    stays = asyncio.ensure_future(story(await follow(other), live=medium.live))
    followed = await follow(other)
    for awaits in range(30):
        leaves = asyncio.ensure_future(story(followed, live=medium.live))
        for _ in range(awaits):
            await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.wait({leaves})
    await lease.publish([b"1"])
    await lease.release(FlightEnd.STORED)
    records, end = await stays
    assert end is FlightEnd.STORED
    assert records == ([b"1"] if medium.live else [])


@LIVE
async def test_a_follower_may_leave_in_the_middle(medium: Medium, one: Coalescer) -> None:
    lease = await lead(one)
    followed = await follow(one)
    is_wanted = await wanted(lease)
    async with aclosing(followed.events(live=True)) as events:  # type: ignore[type-var]
        first = asyncio.ensure_future(anext(events))
        await is_wanted.wait()
        await lease.publish([b"1"])
        await first
    await lease.publish([b"2"])
    await lease.release(FlightEnd.STORED)


@BRIEF
async def test_no_task_is_left_when_nothing_is_held_or_followed(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    before = asyncio.all_tasks()
    leases = [await lead(one, f"k{i}") for i in range(10)]
    stories = [
        asyncio.ensure_future(story(await follow(other, f"k{i}"), live=medium.live))
        for i in range(10)
    ]
    for lease in leases:
        await lease.release(FlightEnd.STORED)
    await asyncio.gather(*stories)
    await until(lambda: asyncio.all_tasks() == before)
    await until(lambda: not medium.left())


async def test_B41_closing_abandons_what_is_held(one: Coalescer, other: Coalescer) -> None:
    lease = await lead(one)
    followed = await follow(other)
    following = asyncio.ensure_future(story(followed, live=False))
    await asyncio.sleep(0.01)
    await one.close()
    await one.close()
    assert (await following)[1] is FlightEnd.ABANDONED
    await lease.release(FlightEnd.STORED)  # too late, and no harm
    await lead(other)


async def test_B50_a_medium_that_is_down_is_said_to_be(
    medium: Medium, one: Coalescer, other: Coalescer
) -> None:
    lease = await lead(one)
    following = asyncio.ensure_future(story(await follow(other), live=True))
    await asyncio.sleep(0.02)
    medium.break_down()

    async def refuses() -> bool:
        try:
            await lead(other, "l")
        except StoreUnavailable:
            return True
        except AssertionError:  # not noticed yet
            return False
        return False

    try:
        await until(refuses)
        with pytest.raises(StoreUnavailable):
            await following
        if medium.live:
            with pytest.raises(StoreUnavailable):
                await lease.publish([b"1"])
        await lease.release(FlightEnd.STORED)
    finally:
        medium.mend()

    async def is_back() -> bool:
        try:
            await lead(other, "m")
        except StoreUnavailable:
            return False
        return True

    await until(is_back)
