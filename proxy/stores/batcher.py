"""Merges the look-ups of one loop turn, so that many requests share one round trip."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

Fetch: TypeAlias = Callable[[Sequence[str]], Awaitable[list[bytes | None]]]
_Asked: TypeAlias = tuple[Sequence[str], "asyncio.Future[list[bytes | None]]"]

# One reply holds the others of its batch up: with answers of 2 to 60 KB this keeps it small.
BATCH_KEYS: Final = 64
# Of one long look-up: all at once, they would wait for each other until the last are too late, and
# those of other callers with them.
_BATCHES_AT_ONCE: Final = 8


class Batcher:
    """Collects what is asked until the loop turns, then fetches it in batches of `batch_keys`.

    A batch runs in a task of its own: a caller that goes away takes nothing from the others.
    What `fetch` raises, each caller of that batch gets. A look-up longer than a few batches ends
    with the first that fails, and after `longest_seconds`.
    """

    def __init__(
        self,
        fetch: Fetch,
        tasks: TaskGroup,
        *,
        batch_keys: int = BATCH_KEYS,
        longest_seconds: float = math.inf,
    ) -> None:
        self._longest_seconds = longest_seconds
        self._fetch = fetch
        self._tasks = tasks
        self._batch_keys = batch_keys
        self._asked: list[_Asked] = []

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values in the order of `keys`.

        Of a long look-up that fails in part, the failed part is None: what was found still counts.
        """
        if not keys:
            return []
        size = self._batch_keys
        if len(keys) <= size:
            return await self._ask(keys)
        loop = asyncio.get_running_loop()
        until = loop.time() + self._longest_seconds
        values: list[bytes | None] = [None] * len(keys)
        failures: list[BaseException] = []
        answered = 0
        for begin in range(0, len(keys), size * _BATCHES_AT_ONCE):
            if failures or loop.time() >= until:
                break
            places = range(begin, min(begin + size * _BATCHES_AT_ONCE, len(keys)), size)
            asked = [self._ask(keys[at : at + size]) for at in places]
            for at, part in zip(
                places, await asyncio.gather(*asked, return_exceptions=True), strict=True
            ):
                if isinstance(part, BaseException):
                    failures.append(part)
                else:
                    answered += 1
                    values[at : at + len(part)] = part
        if failures and not answered:
            raise failures[0]
        return values

    def _ask(self, keys: Sequence[str]) -> "asyncio.Future[list[bytes | None]]":
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[bytes | None]] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._flush)
        self._asked.append((keys, answer))
        return answer

    def _flush(self) -> None:
        asked, self._asked = self._asked, []
        batch: list[_Asked] = []
        keys = 0
        for ask in asked:
            if batch and keys + len(ask[0]) > self._batch_keys:
                self._start(batch)
                batch, keys = [], 0
            batch.append(ask)
            keys += len(ask[0])
        self._start(batch)

    def _start(self, batch: list[_Asked]) -> None:
        self._tasks.start(self._serve(batch), name="store-lookup")

    async def _serve(self, batch: list[_Asked]) -> None:
        keys = [key for asked, _ in batch for key in asked]
        try:
            values = await self._fetch(keys)
        except asyncio.CancelledError:
            _fail(batch, StoreUnavailable("the store is closed"))
            raise
        except StoreUnavailable as error:
            _fail(batch, error)
            return
        except Exception:  # boundary: nobody may wait for an answer that will not come
            _fail(batch, StoreUnavailable("the look-up failed"))
            raise
        at = 0
        for asked, answer in batch:
            if not answer.done():
                answer.set_result(values[at : at + len(asked)])
            at += len(asked)


def _fail(batch: list[_Asked], error: StoreUnavailable) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(StoreUnavailable(error.message))
