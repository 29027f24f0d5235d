"""The purge marks of all replicas, in one sorted set of a Redis.

Members are the texts of the marks, scores their numbers; beside them stand `number`, the highest
ever given, and `epoch`, the number at which the set was begun or repaired: a reader that knows
another epoch reads all of it. It is one key, so that it is lost whole or not at all, and it never
expires.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from proxy.backends.channel import Channel
from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_guard import GuardedRedis, RedisScript
from proxy.clock import Clock
from proxy.core.marks import MOST_MARKS
from proxy.core.selectors import Mark, Selector
from proxy.errors import StoreUnavailable
from proxy.stores.marks import Hearing, Reading
from proxy.stores.marks_text import EPOCH_NAME, NUMBER_NAME, mark_of, mark_text

_MAX_CONNECTIONS: Final = 2
_UNKNOWN: Final = -1
_INLINE_MARKS: Final = 500  # more are read in a thread: they would hold up the loop for a while
_BATCH_MARKS: Final = 500

_COMMON: Final = """
local key, most = KEYS[1], tonumber(ARGV[1])
local function score(name) return tonumber(redis.call('ZSCORE', key, name) or 0) end
local number, epoch = score('number'), score('epoch')

-- What to answer where it was not written: an error of a replica, the words of one without room.
local function write(score, name)
  local reply = redis.pcall('ZADD', key, score, name)
  if type(reply) ~= 'table' or not reply.err then return nil end
  return string.find(reply.err, 'READONLY') and reply or reply.err
end

local function settle()
  local everything = score('{}')
  local excess = redis.call('ZCARD', key) - 2 - most
  if excess > 0 then
    local rank = excess + math.floor(most / 10) + 2  -- `epoch` and `{}` may stand before
    local oldest = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')
    everything = math.max(everything, tonumber(oldest[2]))
  end
  if everything > 0 then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', everything)
    redis.call('ZADD', key, everything, '{}')
  end
  redis.call('ZADD', key, number, 'number', epoch, 'epoch')
  redis.pcall('PUBLISH', key, string.format('%.0f', number))  -- who may not, is read by others
end
"""

# most, known, text: the new mark's number, or why it is not taken.
_ADD: Final = RedisScript(
    _COMMON
    + """
local known, time = tonumber(ARGV[2]), redis.call('TIME')
local new = math.max(number + 1, known + 1, time[1] * 1000 + math.floor(time[2] / 1000))
local refusal = write(new, ARGV[3])
if refusal then return refusal end
if number == 0 or number < known then epoch = new end
number = new
settle()
return number
"""
)

# most, known, and the number and epoch of the last reading: nothing, or what stands there now.
_READ: Final = RedisScript(
    _COMMON
    + """
local known, seen = tonumber(ARGV[2]), tonumber(ARGV[3])
local whole = epoch ~= tonumber(ARGV[4])
if number < known then
  number, epoch, whole = known, known, true
  local refusal = write(number, 'number') or write(epoch, 'epoch')
  if type(refusal) == 'table' then return refusal end
elseif number == seen and not whole then
  return false
end
local from = whole and '-inf' or string.format('(%.0f', seen)
local marks = redis.call('ZRANGEBYSCORE', key, from, '+inf', 'WITHSCORES')
return {whole and 1 or 0, string.format('%.0f', number), string.format('%.0f', epoch), marks}
"""
)

# most, then numbers and texts by turns: 1, or why they are not taken.
_KEEP: Final = RedisScript(
    _COMMON
    + """
local highest, everything = number, score('{}')
local added, repaired = false, number == 0
for at = 2, #ARGV, 2 do
  local given, text = tonumber(ARGV[at]), ARGV[at + 1]
  if given > everything and given > score(text) then
    local refusal = write(given, text)
    if refusal then return refusal end
    added, repaired = true, repaired or given <= number
    highest = math.max(highest, given)
  end
end
if not added then return 1 end
if repaired then
  highest = math.max(highest, number + 1)
  epoch = highest
end
number = highest
settle()
return 1
"""
)
_PROBE: Final = "return redis.call('ZCARD', KEYS[1])"


class RedisMarkLog:
    """Under `{key_prefix}marks`, which is also the topic of `channel` on which marks are told.

    The channel is opened and closed by whoever made it. Needs Redis 6.2. Raises ValueError for a
    URL that can't be used.
    """

    hearing = Hearing.TOLD

    def __init__(
        self,
        config: RedisConfig,
        *,
        channel: Channel,
        key_prefix: str,
        clock: Clock,
        timeout_seconds: float = 1.0,
        most: int = MOST_MARKS,
    ) -> None:
        self._channel = channel
        self._key = f"{key_prefix}marks"
        self._timeout_seconds = timeout_seconds
        self._most = most
        self._redis = GuardedRedis(
            "redis purges",
            config,
            clock=clock,
            max_connections=_MAX_CONNECTIONS,
            probe=("EVAL", _PROBE, 1, self._key),
        )
        self._seen = 0
        self._epoch = _UNKNOWN
        self._whole = True  # the next reading

    async def open(self, heard: Callable[[], None]) -> None:
        def connected() -> None:
            self._whole = True  # it may be another server, that has not got all
            heard()

        self._channel.subscribe(self._key, lambda _: heard())
        self._channel.when_connected(connected)

    async def add(
        self, selector: Selector, *, soft: bool, stored_before: float | None, known: int
    ) -> Mark:
        text = mark_text(selector, soft=soft, stored_before=stored_before)
        self._redis.admit()
        number = await self._run(_ADD, known, text)
        if not isinstance(number, int):
            raise self._unexpected(number)
        return Mark(number, selector, soft, stored_before)

    async def read(self, known: int) -> Reading | None:
        # Also while the circuit is open: nobody waits, and what comes back is noticed at once.
        epoch = _UNKNOWN if self._whole else self._epoch
        self._whole = False
        try:
            return await self._read(known, epoch)
        except BaseException:  # cancellation too: what was new may be lost
            self._whole = True
            raise

    async def keep(self, marks: Sequence[Mark]) -> None:
        try:
            await self._keep(marks)
        except BaseException:  # cancellation too: some may be lacking
            self._whole = True
            raise

    async def close(self) -> None:
        await self._redis.close()

    async def _read(self, known: int, epoch: int) -> Reading | None:
        reply = await self._run(_READ, known, self._seen, epoch)
        if reply is None:
            return None
        try:
            whole, self._seen, self._epoch, marks = await _parsed(reply)
        except ValueError:
            raise self._unexpected(reply) from None
        return Reading(marks, held=marks if whole else None)

    async def _keep(self, marks: Sequence[Mark]) -> None:
        for at in range(0, len(marks), _BATCH_MARKS):
            arguments: list[str | int] = []
            for mark in marks[at : at + _BATCH_MARKS]:
                text = mark_text(mark.selector, soft=mark.soft, stored_before=mark.stored_before)
                arguments += (mark.number, text)
            reply = await self._run(_KEEP, *arguments)
            if reply != 1:
                raise self._unexpected(reply)

    async def _run(self, script: RedisScript, *arguments: str | int) -> Any:
        return await self._redis.run(
            script, [self._key], [self._most, *arguments], self._timeout_seconds
        )

    def _unexpected(self, reply: object) -> StoreUnavailable:
        if isinstance(reply, bytes):  # it works, but has no room: no case for the circuit
            return StoreUnavailable(f"redis purges: {reply.decode(errors='replace')}")
        return self._redis.failed("the reply is not of the form that was asked for")


async def _parsed(reply: object) -> tuple[bool, int, int, list[Mark]]:
    """Whether it is whole, number, epoch, marks. Raises ValueError for another reply."""
    match reply:
        case [int(whole), bytes(number), bytes(epoch), list(pairs)] if len(pairs) % 2 == 0:
            pass
        case _:
            raise ValueError("not a reading")
    if len(pairs) > 2 * _INLINE_MARKS:
        marks = await asyncio.to_thread(_marks, pairs)
    else:
        marks = _marks(pairs)
    return bool(whole), _number(number), _number(epoch), marks


def _marks(pairs: Sequence[bytes]) -> list[Mark]:
    own = (NUMBER_NAME.encode(), EPOCH_NAME.encode())
    return [
        mark_of(text, _number(score))
        for text, score in zip(pairs[::2], pairs[1::2], strict=True)
        if text not in own
    ]


def _number(score: bytes) -> int:
    try:
        return int(float(score))
    except OverflowError:  # infinite: somebody else's
        raise ValueError("not a number of ours") from None
