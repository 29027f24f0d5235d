"""Purges between replicas over a real Redis, and between workers over one file: who hears, and when.

Each replica here is what a process has: copies in its own memory, and the purges that it knows.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy.backends.channel import Channel
from proxy.backends.redis_channel import RedisChannel
from proxy.backends.redis_config import RedisConfig
from proxy.clock import Clock, SystemClock
from proxy.core.codec import decode, encode, peek_expiry
from proxy.core.entry import Entry, Form
from proxy.core.marks import EVERYTHING, Verdict
from proxy.core.selectors import Selector
from proxy.engine.generations import Generations
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put, Store
from proxy.stores.disk import DiskStore
from proxy.stores.marks import MarkLog
from proxy.stores.marks_combined import CombinedMarkLog
from proxy.stores.marks_disk import DiskMarkLog
from proxy.stores.marks_redis import RedisMarkLog
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore
from proxy.stores.tiered import TieredStore
from proxy.tasks import TaskGroup
from tests.integration.redis_server import RedisServer, redis_server
from tests.unit.engine.kit import Witness
from tests.waiting import until

pytestmark = pytest.mark.anyio

PREFIX = "p:"
KEY = f"{PREFIX}v1:chat:-:{'0a' * 32}"
TAG = Selector(tag="a")
POLL_SECONDS = 0.3
NEVER_SECONDS = 3600.0
# The promise is a second; what a machine that is busy with other things may add.
WITHIN_SECONDS = 1.0
SLACK_SECONDS = 1.5


class LossyChannel:
    """A channel that listens, but on which every message gets lost while `lossy`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.lossy = True
        self.lost = 0

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        def filtered(message: bytes) -> None:
            if self.lossy:
                self.lost += 1
            else:
                heard(message)

        self._channel.subscribe(topic, filtered)

    def when_connected(self, callback: Callable[[], None]) -> None:
        self._channel.when_connected(callback)

    async def publish(self, topic: str, message: bytes) -> None:
        await self._channel.publish(topic, message)

    async def open(self) -> None:
        await self._channel.open()

    async def close(self) -> None:
        await self._channel.close()


@dataclass
class Replica:
    """Memory in front of a shared store, and the purges."""

    clock: Clock
    store: Store
    log: MarkLog
    channel: Channel | None
    generations: Generations
    tasks: TaskGroup

    async def open(self) -> "Replica":
        await self.store.open()
        if self.channel is not None:
            await self.channel.open()
        await self.generations.open()
        return self

    async def close(self) -> None:
        await self.generations.close()
        if self.channel is not None:
            await self.channel.close()
        await self.store.close()
        await self.tasks.cancel()

    def answer(self, generation: int | None = None) -> Entry:
        """What a call that began now, or at that generation, stores."""
        began = self.generations.current if generation is None else generation
        now = self.clock.wall()
        return Entry(
            KEY, "m", "r", now, now + 60.0, now + 60.0, Form.JSON, 200, (), None, b"{}",
            tags=("a",), generation=began,
        )  # fmt: skip

    async def put(self, entry: Entry) -> None:
        await self.store.put_many([Put(KEY, encode(entry), entry.expires_at)])

    async def serves(self) -> bool:
        """Whether a request for the key is a hit; down is a miss."""
        try:
            (value,) = await self.store.get_many([KEY])
        except StoreUnavailable:
            return False
        return value is not None and self.generations.verdict(decode(value, KEY)) is Verdict.LIVE

    async def has_a_copy(self) -> bool:
        """Whether the memory of this replica holds the key."""
        return self.store.get_now(KEY) is not None


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


NewReplica = Callable[..., Replica]


@pytest.fixture
async def replica(server: RedisServer, tmp_path: Path) -> AsyncIterator[NewReplica]:
    made: list[Replica] = []

    def new(
        *, lossy: bool = False, poll_seconds: float = NEVER_SECONDS, disk: str | None = None
    ) -> Replica:
        clock, tasks = SystemClock(), TaskGroup()
        config = RedisConfig(server.url, retry_seconds=0.05)
        channel: Channel = RedisChannel(
            config, clock=clock, retry_seconds=0.02, longest_retry_seconds=0.1
        )
        if lossy:
            channel = LossyChannel(channel)
        log: MarkLog = RedisMarkLog(config, channel=channel, key_prefix=PREFIX, clock=clock)
        tiers: list[Store] = [MemoryStore(max_bytes=1024 * 1024, clock=clock)]
        if disk is not None:
            path = tmp_path / disk
            log = CombinedMarkLog(log, DiskMarkLog(path, clock=clock))
            tiers.append(DiskStore(path, clock=clock, max_bytes=1 << 20, read_timeout_seconds=60.0))
        tiers.append(RedisStore(config, clock=clock, timeout_seconds=1.0))
        store = TieredStore(tiers, expires_at_of=peek_expiry)
        generations = Generations(log, clock, tasks, Witness(), poll_seconds=poll_seconds)
        made.append(Replica(clock, store, log, channel, generations, tasks))
        return made[-1]

    yield new
    for each in made:
        await each.close()


async def both_with_a_copy(one: Replica, other: Replica) -> None:
    """An answer that one has stored, and that both hold in memory."""
    await one.put(one.answer())
    assert await one.serves()
    await until(other.serves)
    assert await other.has_a_copy()


async def seconds_until_gone(replica: Replica, since: float) -> float:
    async def gone() -> bool:
        return not await replica.serves()

    await until(gone)
    return time.monotonic() - since


async def test_B54_a_purge_is_heard_by_the_other_replica_at_once(replica: NewReplica) -> None:
    one, other = await replica().open(), await replica().open()
    await both_with_a_copy(one, other)
    began = time.monotonic()
    await one.generations.add(TAG)
    assert not await one.serves(), "gone here when the purge returns"
    assert await seconds_until_gone(other, began) < WITHIN_SECONDS + SLACK_SECONDS
    assert await other.has_a_copy(), "B57: the copy is there, and not served"
    await until(lambda: one.generations.current == other.generations.current)
    await other.put(other.answer())
    assert await other.serves()


async def test_B54_a_purge_whose_message_gets_lost_is_found_by_polling(
    replica: NewReplica,
) -> None:
    one = await replica().open()
    other = await replica(lossy=True, poll_seconds=POLL_SECONDS).open()
    await both_with_a_copy(one, other)
    began = time.monotonic()
    await one.generations.add(TAG)
    assert await seconds_until_gone(other, began) < POLL_SECONDS + SLACK_SECONDS
    assert isinstance(other.channel, LossyChannel)
    await until(lambda: other.channel.lost > 0)  # type: ignore[union-attr]  # is one


async def test_B54_an_answer_under_way_on_another_replica_is_purged_too(
    replica: NewReplica,
) -> None:
    """Also where that replica has not heard, and stores after the purge."""
    one, other = await replica().open(), await replica(lossy=True).open()
    began_with = other.generations.current
    await one.generations.add(TAG)
    await other.put(other.answer(began_with))
    assert not await one.serves()
    await one.put(one.answer())
    assert await one.serves()


async def test_B57_a_purged_entry_does_not_come_back_from_the_shared_store(
    replica: NewReplica,
) -> None:
    """Nothing was deleted: a look-up promotes it into memory again, and it is still purged."""
    one = await replica().open()
    await one.put(one.answer())
    await one.generations.add(EVERYTHING)
    newcomer = await replica().open()
    assert not await newcomer.serves()
    assert await newcomer.has_a_copy()
    assert not await newcomer.serves()


async def test_B54_a_purge_while_redis_is_away_takes_effect_everywhere_when_it_is_back(
    replica: NewReplica, server: RedisServer
) -> None:
    one = await replica(poll_seconds=POLL_SECONDS).open()
    other = await replica(poll_seconds=POLL_SECONDS).open()
    await both_with_a_copy(one, other)
    server.kill()
    with pytest.raises(StoreUnavailable):
        await one.generations.add(TAG)
    assert not await one.serves()
    assert await other.serves(), "nobody could tell it"
    server.start()
    await seconds_until_gone(other, 0.0)
    await until(lambda: one.generations.current == other.generations.current > 0)
    await one.put(one.answer())
    assert await one.serves()


async def test_B54_a_redis_that_lost_everything_forgets_no_purge(
    replica: NewReplica, server: RedisServer
) -> None:
    one = await replica(poll_seconds=POLL_SECONDS).open()
    old = one.answer()
    mark = await one.generations.add(TAG)
    server.kill()
    server.start()

    async def given_back() -> bool:
        return server.command("ZSCORE", "p:marks", '{"tag":"a"}').endswith(
            f"{mark.number}\r\n".encode()
        )

    await until(given_back)
    newcomer = await replica().open()
    await newcomer.put(old)  # out of somebody's queue
    assert not await newcomer.serves()
    assert (await newcomer.generations.add(TAG)).number > mark.number


async def test_B54_either_log_may_be_lost_where_entries_are_on_disk_and_in_redis(
    replica: NewReplica, server: RedisServer
) -> None:
    one = await replica(disk="one.sqlite3").open()
    await one.put(one.answer())
    await one.generations.add(TAG)
    await one.close()
    server.kill()  # with all that it held; the disk still has the entry
    restarted = await replica(disk="one.sqlite3", poll_seconds=POLL_SECONDS).open()
    assert restarted.generations.current > 0
    assert not await restarted.serves()
    assert await restarted.has_a_copy()
    server.start()
    newcomer = replica(disk="two.sqlite3")
    await until(lambda: server.command("ZCARD", "p:marks") == b":3\r\n")
    await newcomer.open()
    await newcomer.put(newcomer.answer(0))
    assert not await newcomer.serves()


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[NewReplica]:
    made: list[Replica] = []

    def new() -> Replica:
        clock, tasks, path = SystemClock(), TaskGroup(), tmp_path / "cache.sqlite3"
        log = DiskMarkLog(path, clock=clock)
        tiers: list[Store] = [
            MemoryStore(max_bytes=1024 * 1024, clock=clock),
            DiskStore(path, clock=clock, max_bytes=1 << 20, read_timeout_seconds=60.0),
        ]
        store = TieredStore(tiers, expires_at_of=peek_expiry)
        generations = Generations(log, clock, tasks, Witness(), poll_seconds=NEVER_SECONDS)
        made.append(Replica(clock, store, log, None, generations, tasks))
        return made[-1]

    yield new
    for each in made:
        await each.close()


async def test_B54_workers_over_one_file_hear_of_a_purge_within_a_second(
    worker: NewReplica,
) -> None:
    one, other = await worker().open(), await worker().open()
    await both_with_a_copy(one, other)
    began = time.monotonic()
    await one.generations.add(TAG)
    assert not await one.serves()
    assert await seconds_until_gone(other, began) < WITHIN_SECONDS + SLACK_SECONDS
    restarted = await worker().open()
    assert not await restarted.serves()
