"""Keeps the pools of one process in step with a board, in the background."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from proxy.clock import Clock
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup
from proxy.upstream.board import KeyBoard, Posts, Read
from proxy.upstream.key_lines import tell
from proxy.upstream.keypool import KeyPool
from proxy.upstream.pooled_key import KeyNews

_T = TypeVar("_T")

log = logging.getLogger("magic_proxy.upstream")

# Whatever happens meanwhile is one exchange; after a failure it is for the next poll, or news.
_PAUSE_SECONDS: Final = 0.1
# How often others are told what was used of keys with limits, if anything was.
_COUNT_SECONDS: Final = 0.25
# By so much a time differs from itself after it was on its way.
_NEARLY_SECONDS: Final = 1.0


class KeySharing:
    """Tells a board what this process learned of its keys, and its pools what others learned.

    Requests have no part in it: what they learn is noted in the pools, each key once however often
    it changes, and fetched from there. While the board is down each process goes by what it knows;
    when it is back, both sides are told everything that still holds.
    """

    def __init__(self, board: KeyBoard, clock: Clock) -> None:
        self._board = board
        self._clock = clock
        self._pools: Mapping[str, KeyPool] = {}
        self._woken = asyncio.Event()
        self._whole = True
        self._following = TaskGroup()

    def open(self) -> None:
        """Begin; a board that is down does not make this fail."""
        self._board.open(self._woken.set, self.tell_all)
        self._following.start(self._follow(), name="key-states-follow")
        self._following.start(self._poll(), name="key-states-poll")

    def follow(self, pools: Mapping[str, KeyPool]) -> None:
        """These are the pools from now on, by upstream; also to be called when keys were added."""
        for pool in pools.values():
            pool.on_news = self._woken.set
        self._pools = pools
        self.tell_all()

    def tell_all(self) -> None:
        """Either side may lack something: exchange all that holds."""
        self._whole = True
        self._woken.set()

    async def close(self) -> None:
        """Stop, and let go of the board; safe to call twice."""
        await self._following.cancel()
        await self._board.close()

    async def _follow(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._exchange()
            except StoreUnavailable:
                pass  # its circuit says so, once
            except Exception:  # boundary: whatever a board stumbles over, the next exchange is made
                log.exception("the states of keys could not be shared")
            await self._clock.sleep(_PAUSE_SECONDS)

    async def _poll(self) -> None:
        waited = 0.0
        while True:
            await self._clock.sleep(_COUNT_SECONDS)
            waited += _COUNT_SECONDS
            is_used = any(pool.has_uses for pool in self._pools.values())
            if is_used or waited >= self._board.poll_seconds:
                waited = 0.0
                self._woken.set()

    async def _exchange(self) -> None:
        whole, self._whole = self._whole, False
        try:
            # First what was learned here: a key that it restores is not to be retired by what the
            # board still says of it.
            await self._post_news()
            if uses := self._named(lambda pool: pool.uses()):
                await self._board.tell(uses)  # where this fails, others do not count it
            read = await self._board.read(whole=whole)
            self._take(read)
            if (whole or read.lost) and (lacking := self._lacking(read.posts)):
                await self._board.post(lacking)
        except BaseException:  # cancellation too: it is not done
            self._whole = self._whole or whole
            raise

    async def _post_news(self) -> None:
        now = self._clock.monotonic()
        if not (news := self._named(lambda pool: pool.news(now))):
            return
        try:
            await self._board.post(news)
        except BaseException:  # cancellation too: it may not be there
            for name, each in news.items():
                upstream, digest = _parts(name)
                if (pool := self._pools.get(upstream)) is not None:
                    pool.keep_news(digest, each)
            raise

    def _lacking(self, posts: Posts) -> Posts:
        """What holds here, and is not on the board."""
        now = self._clock.monotonic()
        standing = self._named(lambda pool: pool.standing(now))
        return {
            name: news
            for name, news in standing.items()
            if _is_longer(news, posts.get(name, KeyNews()))
        }

    def _named(self, of: Callable[[KeyPool], Mapping[str, _T]]) -> dict[str, _T]:
        """Of all pools, under the names that a board knows."""
        return {
            f"{upstream}:{digest}": each
            for upstream, pool in self._pools.items()
            for digest, each in of(pool).items()
        }

    def _take(self, read: Read) -> None:
        now = self._clock.monotonic()
        for name, news in read.posts.items():
            upstream, digest = _parts(name)
            if (pool := self._pools.get(upstream)) is not None:
                for transition in pool.learn(digest, news, now):
                    tell(upstream, transition, by_others=True)
        for name, use in read.uses.items():
            upstream, digest = _parts(name)
            if (pool := self._pools.get(upstream)) is not None:
                pool.others_used(digest, use, now)


def _parts(name: str) -> tuple[str, str]:
    """Upstream and digest."""
    upstream, _, digest = name.rpartition(":")
    return upstream, digest


def _is_longer(mine: KeyNews, posted: KeyNews) -> bool:
    return (
        mine.cooling_seconds > posted.cooling_seconds + _NEARLY_SECONDS
        or mine.retired_seconds > posted.retired_seconds + _NEARLY_SECONDS
    )
