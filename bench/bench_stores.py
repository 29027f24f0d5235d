"""What a look-up and a write cost in each store, in CPU µs of this process (all its threads).

    python -m bench.bench_stores [--turns 3] [--redis redis://127.0.0.1:6379/0]

Variants that answer the same question run in turns (A B A B …); the figure is the median, with the
range. Without `--redis` a server is started on a free port, without persistence.
"""

import argparse
import asyncio
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis.asyncio as redis_py
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from bench.processes import redis
from proxy.backends.redis_config import RedisConfig
from proxy.backends.sqlite_file import open_file
from proxy.clock import SystemClock
from proxy.stores.base import Put, Store
from proxy.stores.disk import DiskStore
from proxy.stores.memory import MemoryStore
from proxy.stores.redis import RedisStore

KEYS = [f"magic_proxy:cache:1:chat:-:{number:064x}" for number in range(1_000)]
VALUE = bytes(range(256)) * 8  # 2 KB
LATER = 4_000_000_000.0
IN_FLIGHT = 32

Variant = Callable[[], Awaitable[int]]


async def concurrently(get: Callable[[str], Awaitable[object]]) -> int:
    """Each key once, by `IN_FLIGHT` readers; how many look-ups that were."""
    keys = iter(KEYS)

    async def read() -> None:
        for key in keys:
            assert await get(key) is not None

    await asyncio.gather(*(read() for _ in range(IN_FLIGHT)))
    return len(KEYS)


async def one_by_one(get: Callable[[str], Awaitable[object]]) -> int:
    for key in KEYS:
        assert await get(key) is not None
    return len(KEYS)


async def report(title: str, variants: dict[str, Variant], turns: int) -> None:
    print(f"\n{title}")
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    wall: dict[str, list[float]] = {name: [] for name in variants}
    for variant in variants.values():
        await variant()
    for _ in range(turns):
        for name, variant in variants.items():
            began, spent = time.perf_counter(), time.process_time()
            count = await variant()
            cpu[name].append((time.process_time() - spent) / count * 1e6)
            wall[name].append((time.perf_counter() - began) / count * 1e6)
    for name, figures in cpu.items():
        spread = f"{min(figures):.1f} to {max(figures):.1f}"
        middle = statistics.median(figures)
        print(
            f"  {name:44}{middle:8.1f} µs CPU ({spread}), {statistics.median(wall[name]):8.1f} µs"
        )


def getter(store: Store) -> Callable[[str], Awaitable[bytes | None]]:
    async def get(key: str) -> bytes | None:
        (value,) = await store.get_many([key])
        return value

    return get


async def memory(turns: int) -> None:
    store = MemoryStore(max_bytes=64 * 1024 * 1024, clock=SystemClock())
    puts = [Put(key, VALUE, LATER) for key in KEYS]
    await store.put_many(puts)

    async def hits() -> int:
        for _ in range(20):
            for key in KEYS:
                assert store.get_now(key) is not None
        return 20 * len(KEYS)

    async def writes() -> int:
        await store.put_many(puts)
        return len(KEYS)

    await report("memory, 2 KB", {"get_now": hits, "put": writes}, turns)


async def disk(turns: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "cache.sqlite3"
        store = DiskStore(path, clock=SystemClock(), max_bytes=1 << 30)
        await store.open()
        puts = [Put(key, VALUE, LATER) for key in KEYS]
        await store.put_many(puts)

        def plain(key: str) -> object:
            connection = connections.pop()
            query = "SELECT value, expires_at FROM entries WHERE key = ?"
            row = connection.execute(query, (key,)).fetchone()
            connections.append(connection)
            return row

        def connect() -> sqlite3.Connection:
            open_file(path, now=0.0).close()
            return sqlite3.connect(path, check_same_thread=False)

        connections = [connect() for _ in range(IN_FLIGHT)]

        async def in_this_thread() -> int:
            for key in KEYS:
                assert plain(key) is not None
            return len(KEYS)

        async def write() -> int:
            await asyncio.gather(*(store.put_many([put]) for put in puts))
            return len(puts)

        variants: dict[str, Variant] = {
            "get, one by one": lambda: one_by_one(getter(store)),
            "get, 32 in flight": lambda: concurrently(getter(store)),
            "asyncio.to_thread, one by one": lambda: one_by_one(
                lambda key: asyncio.to_thread(plain, key)
            ),
            "asyncio.to_thread, 32 in flight": lambda: concurrently(
                lambda key: asyncio.to_thread(plain, key)
            ),
            "SQLite on the event loop (the floor)": in_this_thread,
            "put, all at once": write,
        }
        await report("disk, 2 KB", variants, turns)
        for connection in connections:
            connection.close()
        await store.close()


async def over_redis(url: str, turns: int) -> None:
    store = RedisStore(
        RedisConfig(url), clock=SystemClock(), timeout_seconds=5.0, write_timeout_seconds=5.0
    )
    await store.open()
    puts = [Put(key, VALUE, LATER) for key in KEYS]

    async def write() -> int:
        await store.put_many(puts)
        return len(puts)

    clients = {
        protocol: redis_py.Redis.from_url(
            url, protocol=protocol, socket_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        for protocol in (2, 3)
    }

    def alone(key: str) -> Awaitable[object]:
        return store._redis.link.ask([("GET", key)])  # noqa: SLF001 - what a get without merging costs

    await write()
    variants: dict[str, Variant] = {
        "get, one by one": lambda: one_by_one(getter(store)),
        "get, 32 in flight (merged)": lambda: concurrently(getter(store)),
        "our link without merging, 32 in flight": lambda: concurrently(alone),
        "redis-py client, RESP2, 32 in flight": lambda: concurrently(clients[2].get),
        "redis-py client, RESP3, 32 in flight": lambda: concurrently(clients[3].get),
        "put, pipelined": write,
    }
    await report("redis, 2 KB", variants, turns)
    for client in clients.values():
        await client.aclose()
    await store.close()


@contextmanager
def redis_at(url: str | None) -> Iterator[str]:
    """The server that was named, or one of our own."""
    if url is not None:
        yield url
        return
    with redis() as server:
        yield f"redis://127.0.0.1:{server.port}/0"


def main() -> None:
    parser = argparse.ArgumentParser(description="Costs of the stores.")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--redis", default=None)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    asyncio.run(memory(options.turns))
    asyncio.run(disk(options.turns))
    with redis_at(options.redis) as url:
        asyncio.run(over_redis(url, options.turns))


if __name__ == "__main__":
    main()
