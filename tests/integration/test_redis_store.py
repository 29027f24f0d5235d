"""The Redis store against a real server: outages, freezes, TLS, sockets, refusals."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio.connection import AbstractConnection

from proxy.backends.redis_config import RedisConfig
from proxy.clock import SystemClock
from proxy.errors import StoreUnavailable
from proxy.stores.base import Put
from proxy.stores.redis import RedisStore
from tests.fakes import RoundTrips
from tests.integration.redis_server import (
    RedisServer,
    free_port,
    make_certificate,
    redis_server,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio

LATER = 4_000_000_000.0
READ_SECONDS = 0.2
# What a call may take beyond its own deadline on a machine that is busy with other things.
SLACK_SECONDS = 1.5


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


Make = Callable[..., RedisStore]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[RedisStore] = []

    def new(url: str, ca_file: str | None = None) -> RedisStore:
        store = RedisStore(
            RedisConfig(url, ca_file=ca_file, retry_seconds=0.05),
            clock=SystemClock(),
            timeout_seconds=READ_SECONDS,
            write_timeout_seconds=READ_SECONDS,
        )
        made.append(store)
        return store

    yield new
    for store in made:
        await store.close()


@pytest.fixture
async def store(server: RedisServer, make: Make) -> RedisStore:
    store = make(server.url)
    await store.open()
    return store


def key_value(number: int) -> Put:
    return Put(f"k{number}", b"v%d" % number, LATER)


async def get(store: RedisStore, key: str) -> bytes | None:
    (value,) = await store.get_many([key])
    return value


async def timed_get(store: RedisStore, number: int) -> tuple[bytes | str | None, float]:
    began = time.monotonic()
    try:
        value: bytes | str | None = await get(store, f"k{number}")
    except StoreUnavailable:
        value = "unavailable"
    return value, time.monotonic() - began


async def until_available(store: RedisStore) -> None:
    await until(lambda: store.available)


async def until_shut(store: RedisStore) -> None:
    async def is_shut() -> bool:
        await timed_get(store, 0)
        return not store.available

    await until(is_shut)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, logger="magic_proxy"):
        yield lambda: [
            record.getMessage().split(",")[0].split(" (")[0] for record in caplog.records
        ]


DOWN = "redis: does not work"
BACK = "redis: works again"


async def test_B50_a_server_that_is_killed_costs_misses_until_it_is_back(
    server: RedisServer, store: RedisStore, lines: Callable[[], list[str]]
) -> None:
    await store.put_many([key_value(i) for i in range(100)])
    server.kill()
    for _ in range(5):
        for value, seconds in await asyncio.gather(*(timed_get(store, i) for i in range(100))):
            assert value == "unavailable"
            assert seconds < READ_SECONDS + SLACK_SECONDS
    assert not store.available
    server.start()
    await until_available(store)
    assert await get(store, "k1") is None
    await store.put_many([key_value(1)])
    assert await get(store, "k1") == b"v1"
    assert lines() == [DOWN, BACK]


async def test_B50_a_server_that_is_frozen_costs_misses_until_it_thaws(
    server: RedisServer, store: RedisStore, lines: Callable[[], list[str]]
) -> None:
    await store.put_many([key_value(i) for i in range(300)])
    server.pause()
    for _ in range(4):
        for value, seconds in await asyncio.gather(*(timed_get(store, i) for i in range(300))):
            assert value == "unavailable"
            assert seconds < READ_SECONDS + SLACK_SECONDS
    assert not store.available
    with pytest.raises(StoreUnavailable):
        await store.put_many([key_value(1)])
    server.resume()
    await until_available(store)
    values = await asyncio.gather(*(get(store, f"k{i}") for i in range(300)))
    assert values == [b"v%d" % i for i in range(300)]
    assert lines() == [DOWN, BACK]


async def test_B50_an_open_circuit_answers_at_once(server: RedisServer, store: RedisStore) -> None:
    """None of a thousand calls waits for anything: they are done before the loop turns."""
    server.pause()
    await until_shut(store)
    turned = False

    def turn() -> None:
        nonlocal turned
        turned = True

    asyncio.get_running_loop().call_soon(turn)
    for number in range(1_000):
        with pytest.raises(StoreUnavailable):
            await get(store, f"k{number}")
    with pytest.raises(StoreUnavailable):
        await store.put_many([key_value(1)])
    with pytest.raises(StoreUnavailable):
        await store.delete_many(["k1"])
    assert not turned
    server.resume()


async def test_B50_an_outage_with_calls_under_way_all_the_time(
    server: RedisServer, store: RedisStore, lines: Callable[[], list[str]]
) -> None:
    """Readers run through kill, restart, freeze and thaw; each value is its key's own."""
    await store.put_many([key_value(i) for i in range(50)])
    ended = asyncio.Event()
    hits = 0

    async def read(seed: int) -> None:
        nonlocal hits
        chance = random.Random(seed)
        while not ended.is_set():
            number = chance.randrange(50)
            value, seconds = await timed_get(store, number)
            assert value in (b"v%d" % number, None, "unavailable")
            assert seconds < READ_SECONDS + SLACK_SECONDS
            hits += value == b"v%d" % number
            await asyncio.sleep(0.001)  # the pace: while the store is shut, no look-up waits

    readers = [asyncio.ensure_future(read(seed)) for seed in range(30)]

    async def until_hits() -> None:
        before = hits
        await until(lambda: hits > before + 50)

    await until_hits()
    server.pause()
    await until_shut(store)
    server.resume()
    await until_available(store)
    await until_hits()
    server.kill()
    await until_shut(store)
    server.start()
    await until_available(store)
    await store.put_many([key_value(i) for i in range(50)])
    await until_hits()
    ended.set()
    await asyncio.gather(*readers)
    assert lines() == [DOWN, BACK, DOWN, BACK]


async def test_B50_a_server_that_was_down_at_the_start_is_found_later(
    make: Make, lines: Callable[[], list[str]]
) -> None:
    server = RedisServer()
    store = make(server.url)
    await store.open()
    await until_shut(store)
    server.start()
    try:
        await until_available(store)
        await store.put_many([key_value(1)])
        assert await get(store, "k1") == b"v1"
        assert lines() == [DOWN, BACK]
    finally:
        server.kill()


async def test_B50_the_circuit_opens_without_traffic_when_the_server_is_down_at_the_start(
    make: Make,
) -> None:
    store = make(f"redis://127.0.0.1:{free_port()}")
    await store.open()

    await until(lambda: not store.available)


async def test_B50_a_refused_connection_is_told_at_once() -> None:
    url = f"redis://127.0.0.1:{free_port()}"
    store = RedisStore(RedisConfig(url), clock=SystemClock(), timeout_seconds=600.0)
    async with asyncio.timeout(20.0):
        with pytest.raises(StoreUnavailable):
            await store.get_many(["a"])
    await store.close()


async def test_B51_a_late_reply_never_reaches_another_key(
    server: RedisServer, store: RedisStore
) -> None:
    """Calls that ran out of time, or were cancelled, leave replies on the wire behind them."""
    await store.put_many([key_value(i) for i in range(400)])
    for round_number in range(4):
        server.pause()
        calls = [asyncio.ensure_future(get(store, f"k{i}")) for i in range(200)]
        await until(lambda: server.unread() > 0)
        for call in calls[::2]:
            call.cancel()
        if round_number % 2:
            await asyncio.gather(*calls, return_exceptions=True)
        server.resume()
        values = await asyncio.gather(*calls, return_exceptions=True)
        for number, value in enumerate(values):
            assert isinstance(value, BaseException) or value == b"v%d" % number
        await until_available(store)
        numbers = range(200, 400)
        values = await asyncio.gather(*(get(store, f"k{i}") for i in numbers))
        assert values == [b"v%d" % i for i in numbers]


async def test_B51_a_connection_with_an_unread_reply_is_closed(
    server: RedisServer, store: RedisStore
) -> None:
    await store.put_many([key_value(1)])
    (connection,) = store._redis.link._idle
    server.pause()
    asking = asyncio.ensure_future(store._redis.link.ask([("GET", "k1")]))
    await until(lambda: server.unread() > 0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    server.resume()
    assert not connection.is_connected
    assert connection not in store._redis.link._idle
    assert store._redis.link._open == 0


async def test_B51_a_connection_on_which_something_unasked_arrived_is_closed(
    server: RedisServer, store: RedisStore
) -> None:
    await store.put_many([key_value(1)])
    (connection,) = store._redis.link._idle
    await connection.send_command("GET", "k1")
    await until_data(connection)
    assert await get(store, "none") is None
    assert await get(store, "k1") == b"v1"


async def until_data(connection: AbstractConnection) -> None:
    await until(connection.can_read)


async def test_a_server_that_closed_the_idle_connections_costs_nothing(
    server: RedisServer, store: RedisStore, lines: Callable[[], list[str]]
) -> None:
    await store.put_many([key_value(1)])
    (connection,) = store._redis.link._idle
    server.command("CLIENT", "KILL", "TYPE", "normal")
    await until_data(connection)
    assert await get(store, "k1") == b"v1"
    assert lines() == []


async def test_connections_are_no_more_than_allowed(server: RedisServer) -> None:
    store = RedisStore(
        RedisConfig(server.url), clock=SystemClock(), max_connections=3, write_timeout_seconds=10.0
    )
    await store.open()
    await asyncio.gather(*(store.put_many([key_value(i)]) for i in range(100)))
    clients = server.command("CLIENT", "LIST", "TYPE", "normal").count(b"name=")
    assert clients <= 3 + 1  # and the one that asks
    await store.close()
    assert store._redis.link._open == 0


async def test_B50_what_is_too_large_to_be_read_in_time_is_not_kept(server: RedisServer) -> None:
    store = RedisStore(RedisConfig(server.url), clock=SystemClock(), max_value_bytes=1000)
    await store.open()
    expires_at = SystemClock().wall() + 60
    await store.put_many([Put("k", b"x" * 1000, expires_at), Put("other", b"y", expires_at)])
    assert await get(store, "k") == b"x" * 1000

    await store.put_many([Put("k", b"x" * 1001, expires_at), Put("other", b"z", expires_at)])

    assert await get(store, "k") is None, "nor does the answer stay that it replaces"
    assert await get(store, "other") == b"z"
    await store.close()


async def test_look_ups_of_one_turn_share_one_round_trip(server: RedisServer) -> None:
    trips = RoundTrips()
    store = RedisStore(
        RedisConfig(server.url), clock=SystemClock(), timeout_seconds=READ_SECONDS, observer=trips
    )
    await store.put_many([key_value(i) for i in range(60)])
    await asyncio.gather(*(get(store, f"k{i}") for i in range(60)))
    stats = server.command("INFO", "commandstats")
    assert b"cmdstat_mget:calls=1," in stats
    assert b"cmdstat_get:" not in stats
    assert trips.taken == [("redis", 60)]
    await store.close()


async def test_B50_a_server_out_of_memory_fails_writes_and_spares_reads(
    server: RedisServer, store: RedisStore, lines: Callable[[], list[str]]
) -> None:
    await store.put_many([key_value(1)])
    server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.command("CONFIG", "SET", "maxmemory", "1")
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match=r"OOM|memory"):
            await store.put_many([key_value(2)])
        assert await get(store, "k1") == b"v1"
    assert store.available
    server.command("CONFIG", "SET", "maxmemory", "0")
    await store.put_many([key_value(2)])
    assert lines() == ["redis: takes no writes", "redis: takes writes again"]


async def test_B50_a_read_only_replica_fails_writes_and_spares_reads(
    server: RedisServer, store: RedisStore, lines: Callable[[], list[str]]
) -> None:
    await store.put_many([key_value(1)])
    server.command("REPLICAOF", "127.0.0.1", str(free_port()))
    for _ in range(10):
        with pytest.raises(StoreUnavailable):
            await store.put_many([key_value(2)])
        assert await get(store, "k1") == b"v1"
    server.command("REPLICAOF", "NO", "ONE")
    await store.put_many([key_value(2)])
    assert store.available
    assert lines() == ["redis: takes no writes", "redis: takes writes again"]


async def test_B51_a_key_of_another_type_is_a_miss_and_can_be_written(
    server: RedisServer, store: RedisStore
) -> None:
    server.command("LPUSH", "k1", "x")
    await store.put_many([key_value(2)])
    assert await store.get_many(["k1", "k2"]) == [None, b"v2"]
    await store.put_many([key_value(1)])
    assert await get(store, "k1") == b"v1"


async def test_an_entry_expires_when_the_wall_clock_says(
    server: RedisServer, store: RedisStore
) -> None:
    await store.put_many([Put("k1", b"1", LATER + 0.25)])
    assert server.command("PEXPIRETIME", "k1") == b":%d\r\n" % (LATER * 1000 + 250)


async def test_B50_wrong_credentials_cost_misses_and_one_line(
    make: Make, lines: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(options=["--requirepass", "right"]) as server:
        good = make(server.url.replace("127.0.0.1", ":right@127.0.0.1"))
        await good.open()
        await good.put_many([key_value(1)])
        assert await get(good, "k1") == b"v1"
        bad = make(server.url.replace("127.0.0.1", ":not-this-one@127.0.0.1"))
        await bad.open()
        await until_shut(bad)
        assert lines() == [DOWN]
        assert "not-this-one" not in caplog.text


RUBBISH = {
    "http": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "noise": b"\xff\x00garbage\r\n",
    "a-number": b":7\r\n",
    "a-shorter-list": b"*0\r\n",
    "half-a-reply": b"$99\r\nx",
    "a-number-for-a-value": b"*1\r\n:7\r\n",
    "an-error-for-a-value": b"*1\r\n-ERR no\r\n",
    "a-list-for-a-value": b"*1\r\n*1\r\n$1\r\nx\r\n",
    "a-redirection-to-nowhere": b"-MOVED\r\n",
}


@asynccontextmanager
async def rubbish_server(says: bytes) -> AsyncIterator[str]:
    """Answers whatever comes with `says`; the URL."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.read(65_536):
            writer.write(says)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@pytest.mark.parametrize("says", RUBBISH.values(), ids=RUBBISH.keys())
async def test_B50_rubbish_from_the_server_costs_misses_and_one_line(
    make: Make, lines: Callable[[], list[str]], says: bytes
) -> None:
    async with rubbish_server(says) as url:
        store = make(url)
        for _ in range(20):
            value, seconds = await timed_get(store, 0)
            assert value == "unavailable"
            assert seconds < READ_SECONDS + SLACK_SECONDS
        assert not store.available
        assert lines() == [DOWN]
        await store.close()


async def scanned(store: RedisStore) -> list[str]:
    return [key async for key in store.scan("")]


CALLS: dict[str, Callable[[RedisStore], Awaitable[object]]] = {
    "put": lambda store: store.put_many([key_value(1)]),
    "heads": lambda store: store.heads(["k1"], 100),
    "delete": lambda store: store.delete_many(["k1"]),
    "scan": scanned,
    "stats": lambda store: store.stats(),
}


@pytest.mark.parametrize("says", RUBBISH.values(), ids=RUBBISH.keys())
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_B50_rubbish_raises_the_declared_error_only(
    make: Make,
    says: bytes,
    call: Callable[[RedisStore], Awaitable[object]],
) -> None:
    async with rubbish_server(says) as url:
        store = make(url)
        if says == b":7\r\n" and call is CALLS["delete"]:
            assert await call(store) == 7  # no rubbish here
        else:
            with pytest.raises(StoreUnavailable):
                await call(store)
        await store.close()


async def test_B55_tls_with_its_own_authority(tmp_path: Path, make: Make) -> None:
    certificate = make_certificate(tmp_path)
    with redis_server(certificate=certificate) as server:
        assert server.url.startswith("rediss://")
        store = make(server.url, str(certificate.cert_file))
        await store.open()
        await store.put_many([key_value(i) for i in range(100)])
        values = await asyncio.gather(*(get(store, f"k{i}") for i in range(100)))
        assert values == [b"v%d" % i for i in range(100)]


async def test_B55_tls_of_an_unknown_authority_is_refused(
    tmp_path: Path, make: Make, lines: Callable[[], list[str]]
) -> None:
    with redis_server(certificate=make_certificate(tmp_path)) as server:
        store = make(server.url)
        await store.open()
        await until_shut(store)
        assert lines() == [DOWN]


async def test_B55_a_unix_socket(tmp_path: Path, make: Make) -> None:
    with redis_server(unix_socket=tmp_path / "redis.sock") as server:
        store = make(server.url)
        await store.open()
        await store.put_many([key_value(1)])
        assert await get(store, "k1") == b"v1"
        server.kill()
        await until_shut(store)
        server.start()
        await until_available(store)


async def test_a_database_number_is_honoured(server: RedisServer, make: Make) -> None:
    store = make(server.url.removesuffix("/0") + "/3")
    await store.open()
    await store.put_many([key_value(1)])
    assert b"db3:keys=1" in server.command("INFO", "keyspace")
    assert (await store.stats()).entries == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://127.0.0.1?nonsense=1"])
async def test_a_url_that_cant_be_used_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL"):
        RedisStore(RedisConfig(url), clock=SystemClock())


async def test_closing_ends_what_is_under_way(server: RedisServer, store: RedisStore) -> None:
    await store.put_many([key_value(1)])
    server.pause()
    calls = [asyncio.ensure_future(get(store, f"k{i}")) for i in range(100)]
    write = asyncio.ensure_future(store.put_many([key_value(2)]))
    # The write is sent on one connection, look-ups on others.
    await until(lambda: server.unread() > 1)
    await store.close()
    outcomes = await asyncio.gather(*calls, write, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert not store.available
    server.resume()
