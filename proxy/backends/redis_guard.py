"""Commands to one Redis that nobody waits for longer than they are worth.

Each call has a deadline. Failures in a row open the circuit: from then on calls raise
StoreUnavailable at once, and a probe in the background finds out when to come back, so that no
request pays for it.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from proxy.backends.circuit import Circuit
from proxy.backends.redis_dial import Command
from proxy.backends.redis_link import RedisLink
from proxy.clock import Clock
from proxy.core.breaker import Breaker
from proxy.errors import StoreUnavailable
from proxy.tasks import TaskGroup

_PROBE_SECONDS: Final = 1.0


class RedisScript:
    """A Lua script, sent whole only to a server that does not know it yet."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class GuardedRedis:
    """A link to one server behind a circuit; `what` names it in messages and log lines.

    `probe` is the command that tells whether the server does what is asked of it here: where
    writes matter, a write. Raises ValueError for a URL that can't be used.
    """

    def __init__(
        self,
        what: str,
        url: str,
        *,
        clock: Clock,
        max_connections: int,
        connect_timeout_seconds: float = 1.0,
        ca_file: str | None = None,
        failure_threshold: int = 3,
        retry_seconds: float = 1.0,
        probe: Command = ("PING",),
    ) -> None:
        self._what = what
        self._clock = clock
        self._probe = probe
        self._link = RedisLink(
            url,
            max_connections=max_connections,
            connect_timeout_seconds=connect_timeout_seconds,
            ca_file=ca_file,
        )
        breaker = Breaker(failure_threshold=failure_threshold, retry_seconds=retry_seconds)
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
        """The replies, within `seconds`; raises StoreUnavailable, also for an error reply."""
        self.admit()
        return await self.ask_anyway(commands, seconds)

    async def ask_anyway(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """The same, also while the circuit is open: for what nobody waits for."""
        replies = await self._exchange(commands, seconds)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._refused(reply)
        self._circuit.succeeded()
        return replies

    async def run(
        self,
        script: RedisScript,
        keys: Sequence[str],
        arguments: Sequence[str | bytes | int],
        seconds: float,
    ) -> Any:
        """What the script returns, within `seconds`, also while the circuit is open.

        A caller for whom somebody waits calls `admit` first.
        """
        rest = (len(keys), *keys, *arguments)
        began = self._clock.monotonic()
        (reply,) = await self._exchange([("EVALSHA", script.sha, *rest)], seconds)
        if isinstance(reply, NoScriptError):
            left = max(seconds - (self._clock.monotonic() - began), 0.0)
            (reply,) = await self._exchange([("EVAL", script.source, *rest)], left)
        if isinstance(reply, ResponseError):
            raise self._refused(reply)
        self._circuit.succeeded()
        return reply

    def admit(self) -> None:
        """Raise StoreUnavailable at once while the circuit is open."""
        # Not Circuit.admit: the probe of a half-open circuit is the watch's alone.
        if not self.available:
            what = "closed" if self._closed else "the circuit is open"
            raise StoreUnavailable(f"{self._what}: {what}")

    def failed(self, reason: object) -> StoreUnavailable:
        """Count a failure; the error to raise."""
        if self._circuit.failed(reason):
            self._watch()
        return StoreUnavailable(f"{self._what}: {reason}")

    async def close(self) -> None:
        """Safe to call twice."""
        self._closed = True
        await self._tasks.cancel()
        await self._link.close()

    async def _exchange(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        try:
            async with asyncio.timeout(seconds):
                return await self._link.ask(commands)
        except TimeoutError:
            raise self.failed(f"no reply within {seconds:g} s") from None
        except Exception as error:  # boundary: redis-py stumbles over a broken server in many ways
            raise self.failed(str(error) or type(error).__name__) from error

    def _refused(self, reply: ResponseError) -> StoreUnavailable:
        if isinstance(reply, ReadOnlyError):
            # Demoted: the name may lead to the new primary by now.
            self._tasks.start(self._link.drop_idle(), name="redis-fail-over")
        return self.failed(str(reply))

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
            await self.ask_anyway([self._probe], _PROBE_SECONDS)
        except StoreUnavailable:
            return False
        return True
