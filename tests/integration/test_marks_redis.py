"""The log of purges in a real Redis: outages, refusals, rubbish, and what it leaves alone."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.core.selectors import Mark, Selector
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put
from proxy.stores.marks_redis import RedisMarkLog
from proxy.stores.redis import RedisStore
from tests.integration.redis_server import RedisServer, redis_server
from tests.waiting import until

pytestmark = pytest.mark.anyio

A = Selector(tag="a")
SECONDS = 0.3
# What a call may take beyond its own deadline on a machine that is busy with other things.
SLACK_SECONDS = 1.5

Make = Callable[..., RedisMarkLog]


class DeafChannel:
    """A `Channel` on which nothing arrives; `connect` says that it was connected again."""

    def __init__(self) -> None:
        self.connected: list[Callable[[], None]] = []

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        return

    def when_connected(self, callback: Callable[[], None]) -> None:
        self.connected.append(callback)

    async def publish(self, topic: str, message: bytes) -> None:
        return

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    def connect(self) -> None:
        for callback in self.connected:
            callback()


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture
async def make(server: RedisServer) -> AsyncIterator[Make]:
    made: list[RedisMarkLog] = []

    def new(channel: DeafChannel | None = None, most: int = 10_000) -> RedisMarkLog:
        log = RedisMarkLog(
            RedisConfig(server.url, retry_seconds=0.05),
            channel=channel or DeafChannel(),
            key_prefix="p:",
            clock=SystemClock(),
            timeout_seconds=SECONDS,
            most=most,
        )
        made.append(log)
        return log

    yield new
    for log in made:
        await log.close()


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, logger="magic_proxy"):
        yield lambda: [record.getMessage().split(" (")[0] for record in caplog.records]


DOWN = "redis purges: does not work, and is left alone for a while"
BACK = "redis purges: works again"


async def add(log: RedisMarkLog, selector: Selector = A) -> Mark:
    return await log.add(selector, soft=False, stored_before=None, known=0)


async def readable(log: RedisMarkLog) -> bool:
    try:
        await log.read(0)
    except StoreUnavailable:
        return False
    return True


async def test_B54_a_scan_for_entries_does_not_meet_the_marks(
    server: RedisServer, make: Make
) -> None:
    await add(make())
    store = RedisStore(RedisConfig(server.url), clock=SystemClock(), timeout_seconds=5.0)
    await store.put_many([Put("p:v1:chat:-:x", b"1", 4_000_000_000.0)])
    assert [key async for key in store.scan("p:v1:")] == ["p:v1:chat:-:x"]
    await store.close()


async def test_B54_marks_never_expire(server: RedisServer, make: Make) -> None:
    await add(make())
    assert server.command("TTL", "p:marks") == b":-1\r\n"


async def test_a_mark_is_told_on_the_topic_of_its_name(server: RedisServer, make: Make) -> None:
    channel = RedisChannel(RedisConfig(server.url), clock=SystemClock())
    heard: list[bytes] = []
    channel.subscribe("p:marks", heard.append)
    await channel.open()
    mark = await add(make())
    await until(lambda: heard == [b"%d" % mark.number])
    await channel.close()


async def test_two_prefixes_on_one_server_are_strangers(server: RedisServer, make: Make) -> None:
    await add(make())
    other = RedisMarkLog(
        RedisConfig(server.url), channel=DeafChannel(), key_prefix="q:", clock=SystemClock()
    )
    reading = await other.read(0)
    assert reading is not None
    assert reading.new == []
    await other.close()


async def test_B50_a_redis_that_is_down_costs_no_time_and_is_found_again(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    log = make()
    server.kill()

    async def given_up() -> bool:
        with pytest.raises(StoreUnavailable):
            await add(log)
        return lines() == [DOWN]

    await until(given_up)
    began = time.monotonic()
    for _ in range(1_000):
        with pytest.raises(StoreUnavailable, match="the circuit is open"):
            await add(log)
    assert time.monotonic() - began < SLACK_SECONDS
    server.start()
    await until(lambda: readable(log))
    assert (await add(log)).number > 0
    assert lines() == [DOWN, BACK]


async def test_B50_a_redis_that_hangs_is_not_waited_for(server: RedisServer, make: Make) -> None:
    log = make()
    await add(log)
    server.pause()
    for ask in (lambda: add(log), lambda: log.read(0), lambda: log.keep([Mark(1, A)])):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"no reply within 0\.3 s"):
            await ask()
        assert time.monotonic() - began < SECONDS + SLACK_SECONDS
    server.resume()
    await until(lambda: readable(log))
    assert (await add(log)).number > 0


async def test_B50_a_redis_without_room_takes_no_purge_but_is_read(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    log, other = make(), make()
    mark = await add(log)
    server.command("CONFIG", "SET", "maxmemory", "1")
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match="redis purges: OOM"):
            await add(log)
        with pytest.raises(StoreUnavailable, match="redis purges: OOM"):
            await log.keep([Mark(mark.number + 1, A)])
        await log.read(mark.number)
    reading = await other.read(mark.number + 7)  # which it can't note, but the next purge will
    assert reading is not None
    assert reading.new == [mark]
    assert lines() == []
    server.command("CONFIG", "SET", "maxmemory", "0")
    assert (await add(log)).number > mark.number


async def test_B55_a_replica_takes_no_purge_and_works_when_it_is_promoted(
    server: RedisServer, make: Make
) -> None:
    log = make()
    mark = await add(log)
    server.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match="read only replica"):
        await add(log)
    reading = await log.read(mark.number)
    assert reading is not None
    assert reading.new == [mark]
    server.command("REPLICAOF", "NO", "ONE")
    assert (await add(log)).number > mark.number


async def test_B50_what_is_not_ours_under_the_name_is_said_and_not_touched(
    server: RedisServer, make: Make, lines: Callable[[], list[str]]
) -> None:
    log = make()
    server.command("SET", "p:marks", "somebody else's")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
            await log.read(0)
    await asyncio.sleep(0)
    assert lines() == [DOWN]
    assert server.command("GET", "p:marks").endswith(b"somebody else's\r\n")
    server.command("DEL", "p:marks")
    await until(lambda: readable(log))


async def test_B50_scores_that_are_no_numbers_are_a_failure_and_no_more(
    server: RedisServer, make: Make
) -> None:
    log = make()
    server.command("ZADD", "p:marks", "inf", "{}")
    with pytest.raises(StoreUnavailable, match="not of the form"):
        await log.read(0)
    server.command("ZREM", "p:marks", "{}")
    assert await log.read(0) is not None


async def test_B54_after_a_reconnection_all_is_read_again(server: RedisServer, make: Make) -> None:
    """Behind the same name may be a replica now, which had not got the last marks."""
    channel = DeafChannel()
    log = make(channel)
    told: list[int] = []
    await log.open(lambda: told.append(1))
    early, late = await add(log, A), await add(log, Selector(tag="b"))
    await log.read(late.number)
    server.command("ZREM", "p:marks", '{"tag":"b"}')
    newest = await add(log, Selector(tag="c"))
    channel.connect()
    assert told == [1]
    reading = await log.read(newest.number)
    assert reading is not None
    assert reading.held == [early, newest]
    await log.keep([late])
    reading = await make().read(0)
    assert reading is not None
    assert set(reading.new) == {early, late, newest}


async def test_B54_a_server_that_is_behind_what_is_known_is_read_whole_by_all(
    server: RedisServer, make: Make
) -> None:
    """As a replica is that took over before it had the last mark."""
    log, other = make(), make()
    early = await add(log, A)
    await other.read(0)
    late = await add(log, Selector(tag="b"))
    await log.read(late.number)
    server.command("ZREM", "p:marks", '{"tag":"b"}')
    server.command("ZADD", "p:marks", str(early.number), "number")
    reading = await log.read(late.number)
    assert reading is not None
    assert reading.held == [early]
    reading = await other.read(early.number)
    assert reading is not None
    assert reading.held == [early]
    assert (await add(other)).number > late.number


async def test_B56_ten_thousand_marks_are_read_without_holding_up_the_loop(
    server: RedisServer, make: Make
) -> None:
    log = make()
    marks = [Mark(i + 1, Selector(tag=f"tag {i}", model="m")) for i in range(10_000)]
    await log.keep(marks)
    other = make()
    reading = await other.read(0)
    assert reading is not None
    assert set(reading.new) == set(marks)
    began = time.monotonic()
    mark = await add(log, Selector(tag="one more"))
    reading = await other.read(10_000)
    assert reading is not None
    assert mark in reading.new
    assert len(reading.new) <= 2, "the news alone, and perhaps what the oldest folded into"
    assert time.monotonic() - began < SLACK_SECONDS
