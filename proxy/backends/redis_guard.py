"""Commands to one Redis that nobody waits for longer than they are worth.

Each call has a deadline. Failures in a row open the circuit: from then on calls raise
StoreUnavailable at once, and a probe in the background finds out when to come back, so that no
request pays for it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from proxy.backends.circuit import Circuit
from proxy.backends.deadline import deadline
from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_dial import Command
from proxy.backends.redis_link import RedisLink
from proxy.clock import Clock
from proxy.core.breaker import Breaker
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

Ask: TypeAlias = Callable[[Sequence[Command]], Awaitable[list[Any]]]
Argument: TypeAlias = str | bytes | int

_T = TypeVar("_T")


class RedisScript:
    """A Lua script, sent whole only to a server that does not know it yet."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, ask: Ask, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """What the script returns; an error reply comes back as an exception."""
        rest = (len(keys), *keys, *arguments)
        (reply,) = await ask([("EVALSHA", self._sha, *rest)])
        if isinstance(reply, NoScriptError):
            (reply,) = await ask([("EVAL", self._source, *rest)])
        return reply


class GuardedRedis:
    """A link to one server behind a circuit; `what` names it in messages and log lines.

    `probe` is the command that tells whether the server does what is asked of it here, within
    `probe_seconds`: where writes matter, a write. Raises ValueError for a URL that can't be used.
    """

    def __init__(
        self,
        what: str,
        config: RedisConfig,
        *,
        clock: Clock,
        max_connections: int,
        probe: Command = ("PING",),
        probe_seconds: float = 1.0,
    ) -> None:
        self._what = what
        self._clock = clock
        self._probe = probe
        self._probe_seconds = probe_seconds
        self.link = RedisLink(config, max_connections=max_connections)
        breaker = Breaker(
            failure_threshold=config.failure_threshold, retry_seconds=config.retry_seconds
        )
        self._circuit = Circuit(what, breaker, clock)
        self._tasks = TaskGroup()
        self._watched = False
        self._closed = False

    @property
    def available(self) -> bool:
        """False while the server is known to be down, or to refuse."""
        return self._circuit.closed and not self._closed

    async def open(self) -> None:
        """Look whether the server is there; if it is not, the circuit finds out later."""
        if not await self._is_well():
            self._watch()

    async def ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """The replies, within `seconds`, or StoreUnavailable, also for an error reply.

        At once while the circuit is open.
        """
        self.admit()
        return await self._ask(commands, seconds)

    async def exchange(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """The same, with error replies among the replies: what they mean is for the caller to say.

        Whether these were what was asked for is the caller's to count.
        """
        self.admit()
        try:
            return await self._within(seconds, self.link.ask(commands))
        except StoreUnavailable as error:
            raise self.failed(error) from error

    async def run(
        self,
        script: RedisScript,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        seconds: float,
    ) -> Any:
        """What the script returns, within `seconds`, or StoreUnavailable.

        Also while the circuit is open: where somebody waits, `admit` comes first.
        """
        try:
            reply = await self.attempt(script, keys, arguments, seconds)
        except StoreUnavailable as error:
            self.failed(error)
            raise
        self.succeeded()
        return reply

    async def attempt(
        self,
        script: RedisScript,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        seconds: float,
    ) -> Any:
        """The same, with an outcome that is for the caller to count."""
        reply = await self._within(seconds, script.run(self.link.ask, keys, arguments))
        self._refuse_errors([reply])
        return reply

    def admit(self) -> None:
        """Raise StoreUnavailable at once while the circuit is open."""
        # Not Circuit.admit: the probe of a half-open circuit is the watch's alone.
        if not self.available:
            raise self._unavailable("closed" if self._closed else "the circuit is open")

    def succeeded(self) -> None:
        """Count a call that came back well, and in time."""
        self._circuit.succeeded()

    def failed(self, reason: object) -> StoreUnavailable:
        """Count a failure; the error to raise."""
        text = str(reason).removeprefix(f"{self._what}: ")
        if self._circuit.failed(text):
            self._watch()
        return self._unavailable(text)

    def fail_over(self) -> None:
        """The server was demoted: the name may lead to the new primary by now."""
        self._tasks.start(self.link.drop_idle(), name="redis-fail-over")

    async def close(self) -> None:
        """Safe to call twice."""
        self._closed = True
        await self._tasks.cancel()
        await self.link.close()

    async def _ask(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        try:
            replies = await self._within(seconds, self.link.ask(commands))
            self._refuse_errors(replies)
        except StoreUnavailable as error:
            self.failed(error)
            raise
        self.succeeded()
        return replies

    async def _within(self, seconds: float, replies: Awaitable[_T]) -> _T:
        try:
            async with deadline(seconds):
                return await replies
        except TimeoutError:
            raise self._unavailable(f"no reply within {seconds:g} s") from None
        except Exception as error:  # boundary: redis-py stumbles over a broken server in many ways
            raise self._unavailable(str(error) or type(error).__name__) from error

    def _refuse_errors(self, replies: Sequence[object]) -> None:
        for reply in replies:
            if isinstance(reply, ReadOnlyError):
                self.fail_over()
            if isinstance(reply, ResponseError):
                raise self._unavailable(reply)

    def _unavailable(self, reason: object) -> StoreUnavailable:
        return StoreUnavailable(f"{self._what}: {reason}")

    def _watch(self) -> None:
        if not self._closed and not self._watched:
            self._watched = True
            self._tasks.start(self._find_out(), name="redis-watch")

    async def _find_out(self) -> None:
        """Probe, with growing pauses while the circuit is open, until the server does its work."""
        try:
            while True:
                await self._clock.sleep(self._circuit.seconds_to_retry)
                try:
                    self._circuit.admit()
                except StoreUnavailable:
                    continue
                if await self._is_well():
                    return
        finally:
            self._watched = False

    async def _is_well(self) -> bool:
        try:
            await self._ask([self._probe], self._probe_seconds)
        except StoreUnavailable:
            return False
        return True
