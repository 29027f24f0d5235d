"""The board over Redis: one hash, and a message to all after each change.

Its fields are `upstream:digest`, their values `number cool_until probe_at rejections reason`, with
times in milliseconds of the server's clock; 0 is none, and a `probe_at` of -1 says that the key was
rejected and is taken again. `#` is the highest number. It expires when nobody has posted for a day,
and what is that old is taken out by whoever posts. What was used is told in messages alone.
"""

import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import orjson

from proxy.backends.channel import Channel
from proxy.backends.redis_config import RedisConfig
from proxy.backends.redis_guard import GuardedRedis, RedisScript
from proxy.clock import Clock
from proxy.upstream.allowance import Use
from proxy.upstream.board import LONGEST_SECONDS, Posts, Read, Uses, added
from proxy.upstream.pooled_key import KeyNews

_MAX_CONNECTIONS: Final = 1
_MOST_USES: Final = 10_000  # that wait to be read
_KEPT_MS: Final = round(LONGEST_SECONDS * 1000)
_NUMBER: Final = b"#"
_RESTORED: Final = -1

_COMMON: Final = """
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local number = tonumber(redis.call('HGET', key, '#') or 0)
"""

# How long to keep, when it was sent by this clock or a bit later (0: not known), then name,
# cooling, retired, rejections, restored and reason by turns. A server that was frozen runs it late.
_POST: Final = RedisScript(
    _COMMON
    + """
local kept, sent = tonumber(ARGV[1]), tonumber(ARGV[2])
local late = sent > 0 and math.max(now - sent, 0) or 0
local function parts(value)
  local number, cool, probe, rejections, reason =
    string.match(value, '^(%d+) (%d+) (-?%d+) (%d+) (.*)$')
  return tonumber(number or 0), tonumber(cool or 0), tonumber(probe or 0),
    tonumber(rejections or 0), reason
end
for at = 3, #ARGV, 6 do
  local name, reason = ARGV[at], ARGV[at + 5]
  local cooling, retired = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  local _, cool, probe, rejections, was = parts(redis.call('HGET', key, name) or '')
  if cooling > late then
    cool = math.max(cool, now + cooling - late)
  elseif retired == 0 and ARGV[at + 4] == '0' then
    reason = was or reason
  end
  if retired > 0 then
    probe = math.max(probe, now + math.max(retired - late, 1))
    rejections = math.max(rejections, tonumber(ARGV[at + 3]))
  elseif ARGV[at + 4] == '1' then
    probe, rejections = -1, 0
  end
  number = math.max(number + 1, now)
  redis.call('HSET', key, name,
    string.format('%.0f %.0f %.0f %.0f %s', number, cool, probe, rejections, reason))
end
redis.call('HSET', key, '#', string.format('%.0f', number))
local all = redis.call('HGETALL', key)
for at = 1, #all, 2 do
  local changed, cool, probe = parts(all[at + 1])
  if all[at] ~= '#' and math.max(cool, probe) < now and changed < now - kept then
    redis.call('HDEL', key, all[at])
  end
end
redis.call('PEXPIRE', key, kept)
redis.pcall('PUBLISH', key, string.format('%.0f', number))  -- who may not, is read by others
return 1
"""
)

# The number of the last reading: nothing, or the number, the time, and all that stands there.
_READ: Final = RedisScript(
    _COMMON
    + """
if number == tonumber(ARGV[1]) then return false end
return {string.format('%.0f', number), string.format('%.0f', now), redis.call('HGETALL', key)}
"""
)


class RedisKeyBoard:
    """Under `{key_prefix}key_states`, which is also the topic of `channel`.

    The channel is opened and closed by whoever made it. Raises ValueError for a URL that can't be
    used.
    """

    poll_seconds = 5.0

    def __init__(
        self,
        config: RedisConfig,
        *,
        channel: Channel,
        key_prefix: str,
        clock: Clock,
        timeout_seconds: float = 1.0,
    ) -> None:
        self._channel = channel
        self._key = f"{key_prefix}key_states"
        self._timeout_seconds = timeout_seconds
        self._seen = 0
        self._clock = clock
        # The server's time beyond the clock's, or a bit more: it was read after it was asked for.
        self._ahead_ms: float | None = None
        self._origin = secrets.token_hex(8)
        self._heard_uses: deque[tuple[str, Use]] = deque(maxlen=_MOST_USES)
        self._redis = GuardedRedis(
            "redis key states",
            config,
            clock=clock,
            max_connections=_MAX_CONNECTIONS,
            probe=("HLEN", self._key),
        )

    def open(self, heard: Callable[[], None], connected: Callable[[], None]) -> None:
        def used(message: bytes) -> None:
            if uses := _uses(message, self._origin):
                self._heard_uses += uses
                heard()

        self._channel.subscribe(self._key, lambda _: heard())
        self._channel.subscribe(f"{self._key}:uses", used)
        self._channel.when_connected(connected)

    async def post(self, posts: Posts) -> None:
        ahead = self._ahead_ms
        sent = 0 if ahead is None else round(ahead + self._clock.monotonic() * 1000)
        words: list[str | bytes | int] = [_KEPT_MS, sent]
        for name, news in posts.items():
            words += [
                name,
                _milliseconds(news.cooling_seconds),
                _milliseconds(news.retired_seconds),
                news.rejections,
                int(news.restored),
                news.reason,
            ]
        await self._run(_POST, words)

    async def tell(self, uses: Uses) -> None:
        each = [(name, use.requests, use.tokens) for name, use in uses.items()]
        await self._channel.publish(f"{self._key}:uses", orjson.dumps([self._origin, *each]))

    async def read(self, *, whole: bool) -> Read:
        seen = 0 if whole else self._seen
        asked = self._clock.monotonic() * 1000
        reply = await self._run(_READ, [seen])
        uses = added(self._heard_uses)
        self._heard_uses.clear()
        if reply is None:
            return Read({}, uses=uses)
        try:
            number, now, fields = int(reply[0]), int(reply[1]), reply[2]
        except (TypeError, ValueError, IndexError):
            raise self._redis.failed("an unexpected reply") from None
        lost = number < self._seen
        self._seen, self._ahead_ms = number, now - asked
        since = 0 if lost else seen
        names = ((name, fields[at + 1]) for at, name in enumerate(fields) if at % 2 == 0)
        read = (_read(name, value, now, since) for name, value in names if name != _NUMBER)
        return Read(dict(filter(None, read)), lost, uses)

    async def close(self) -> None:
        await self._redis.close()

    async def _run(self, script: RedisScript, words: list[str | bytes | int]) -> Any:
        # Also while the circuit is open: nobody waits, and what comes back is noticed at once.
        return await self._redis.run(script, [self._key], words, self._timeout_seconds)


def _read(name: bytes, value: bytes, now: int, since: int) -> tuple[str, KeyNews] | None:
    """One field; None for what is known, and for what somebody else wrote."""
    try:
        changed, cool, probe, rejections, *reason = value.decode().split(" ", 4)
        if int(changed) <= since:
            return None
        return name.decode(), KeyNews(
            cooling_seconds=_seconds(int(cool) - now),
            retired_seconds=_seconds(int(probe) - now),
            rejections=int(rejections),
            restored=int(probe) == _RESTORED,
            reason="".join(reason),
        )
    except ValueError:
        return None


def _uses(message: bytes, own: str) -> list[tuple[str, Use]]:
    """What others used; nothing of one's own, and of what somebody else wrote."""
    try:
        origin, *uses = orjson.loads(message)
        read = [(str(name), Use(int(requests), int(tokens))) for name, requests, tokens in uses]
    except (TypeError, ValueError):
        return []
    return [] if origin == own else read


def _milliseconds(seconds: float) -> int:
    return round(min(seconds, LONGEST_SECONDS) * 1000)


def _seconds(milliseconds: int) -> float:
    return min(max(milliseconds / 1000.0, 0.0), LONGEST_SECONDS)
