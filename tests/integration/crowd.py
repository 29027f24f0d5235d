"""Many clients that ask at once, in a thread with a loop of their own, and what each one gets."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp

from tests.integration.contract import CHAT_PATH
from tests.waiting import eventually

T = TypeVar("T")


class Client:
    """One request. `size` grows as the body arrives; `error` says how it broke off, if it did."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.size = 0
        self.error: Exception | None = None
        self.done = threading.Event()
        self._chunks: list[bytes] = []
        self._asking: asyncio.Task[None] | None = None

    @property
    def body(self) -> bytes:
        """What has arrived."""
        return b"".join(self._chunks)

    @property
    def cache_status(self) -> str:
        return self.headers["cache-status"]

    @property
    def collapsed(self) -> bool:
        """Whether the answer is one that another has asked for."""
        return "collapsed" in self.cache_status

    async def ask(
        self,
        session: aiohttp.ClientSession,
        url: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
    ) -> None:
        """Ask, and read to the end."""
        self._asking = asyncio.current_task()
        try:
            async with session.post(url, json=body, headers=headers) as answer:
                self.status, self.headers = answer.status, answer.headers
                async for chunk in answer.content.iter_any():
                    self._chunks.append(chunk)
                    self.size += len(chunk)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.error = error
        finally:
            self.done.set()


class Crowd:
    """Starts clients; `close` ends those that are still waiting."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="crowd", daemon=True)
        self._thread.start()
        self._session = self.do(self._open())
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(
        self,
        base_url: str,
        body: Mapping[str, Any],
        count: int = 1,
        *,
        key: str = "sk-test",
        headers: Mapping[str, str] | None = None,
    ) -> list[Client]:
        """So many requests, which begin as this returns."""
        clients = [Client() for _ in range(count)]
        sent = {"authorization": f"Bearer {key}", "accept-encoding": "identity", **(headers or {})}

        async def start() -> None:
            for client in clients:
                asking = client.ask(self._session, base_url + CHAT_PATH, body, sent)
                task = self._loop.create_task(asking)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        self.do(start())
        return clients

    def leave(self, client: Client) -> None:
        """This client goes away."""
        assert client._asking is not None
        self._loop.call_soon_threadsafe(client._asking.cancel)
        assert client.done.wait(10)

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done on the loop of the clients."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self.do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=60.0),
            trust_env=False,
        )

    async def _end(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()


def all_done(clients: list[Client], timeout: float = 30.0) -> list[Client]:
    """The clients, when each has its answer to the end."""
    eventually(lambda: all(client.done.is_set() for client in clients), timeout)
    assert [client.error for client in clients if client.error is not None] == []
    return clients


@contextmanager
def crowd_of_clients() -> Iterator[Crowd]:
    """Clients for one test."""
    crowd = Crowd()
    try:
        yield crowd
    finally:
        crowd.close()
