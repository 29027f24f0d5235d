"""The leases as Redis has them; each call is one round trip for many."""

from collections.abc import Sequence
from typing import Any, Final

from proxy.backends.redis_guard import Argument, GuardedRedis, RedisScript
from proxy.coalesce.held import HeldLease, Leaving
from proxy.coalesce.redis_records import Recording
from proxy.coalesce.redis_scripts import ACQUIRE, RELEASE, RENEW, Names
from proxy.errors import StoreUnavailable

_FENCE_MS: Final = 24 * 3600 * 1000
_STREAM_SECONDS: Final = 30.0
_PATIENCE_SECONDS: Final = 1.0  # for what nobody waits for
_LATELY_MS: Final = 2000  # longer than a look-up takes, and the step from there to a lease


class RedisLeases:
    """A `LeaseTable`, and what was said under each lease."""

    def __init__(self, redis: GuardedRedis, names: Names, *, lease_seconds: float) -> None:
        self._redis = redis
        self._names = names
        self._lease_ms = round(lease_seconds * 1000)
        self._lately_ms = min(_LATELY_MS, self._lease_ms)
        self._stream_ms = round(max(_STREAM_SECONDS, 2 * lease_seconds) * 1000)

    async def acquire(self, keys: Sequence[str]) -> tuple[int, list[int | None], list[bool]]:
        """The token of those that were free, and for each the token of who holds it, or None.

        Then, for each, whether it was free with an entry stored lately. The outcome is for the
        caller to count. Raises StoreUnavailable.
        """
        names = [self._names.fence, *map(self._names.lease, keys)]
        times = [self._lease_ms, _FENCE_MS]
        reply = await self._redis.attempt(ACQUIRE, names, times, _PATIENCE_SECONDS)
        try:
            token, holders, lately = reply
            if not len(holders) == len(lately) == len(keys):
                raise self._unexpected(reply)
            held_by = [None if each is None else int(each) for each in holders]
            return int(token), held_by, [each == 1 for each in lately]
        except (TypeError, ValueError):
            raise self._unexpected(reply) from None

    async def renew(self, leases: Sequence[HeldLease]) -> Sequence[int]:
        tokens = [lease.token for lease in leases]
        times = [self._lease_ms, self._stream_ms]
        reply = await self._patiently(RENEW, self._keys(leases), [*times, *tokens])
        match reply:
            case [*kept] if len(kept) == len(leases):
                return kept
            case _:
                raise self._redis.failed(self._unexpected(reply))

    async def release(self, leaving: Sequence[Leaving]) -> None:
        told: list[Argument] = [self._stream_ms, self._lately_ms]
        for lease, end in leaving:
            told += [lease.token, lease.records, end.value]
        keys = self._keys([lease for lease, _ in leaving])
        await self._patiently(RELEASE, keys, told)

    def recording(self, key: str, token: int) -> Recording:
        """Where the records of a lease go."""
        stream = self._names.flight(key, token)
        return Recording(self._redis, stream, self._stream_ms, _PATIENCE_SECONDS)

    async def _patiently(
        self, script: RedisScript, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        try:
            return await self._redis.attempt(script, keys, arguments, _PATIENCE_SECONDS)
        except StoreUnavailable as error:
            self._redis.failed(error)  # a success does not count: it may have been far too slow
            raise

    def _keys(self, leases: Sequence[HeldLease]) -> list[str]:
        names = self._names
        pairs = ((names.lease(each.key), names.flight(each.key, each.token)) for each in leases)
        return [name for pair in pairs for name in pair]

    def _unexpected(self, reply: Any) -> StoreUnavailable:
        return StoreUnavailable(f"redis leases: {type(reply).__name__} is not what was asked for")
