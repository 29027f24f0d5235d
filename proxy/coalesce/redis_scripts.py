"""What lies where in Redis, and the scripts that change it, each at one blow.

A lease is a hash with an expiry: `token`, `followed` once somebody waits for its end, `live` once
somebody wants its records. Where it ended with an entry, `stored` lies in its place for a while:
who looked for the entry before may have missed it.

Records are a stream per lease, which exists only if it was followed. Its entries have the number of
their first record as `n`, then each record as `r`; the last entry has the number of all records,
and as `end` how it ended. Every key has an expiry.
"""

from typing import Final

from proxy.backends.redis_guard import RedisScript

# KEYS: the fence, then a lease each. ARGV: how long a lease and how long the fence lasts, in ms.
# Returns the token of the leases that were free, the holder's token of each, or nil, and 1 for each
# that was free with an entry stored lately, else 0.
# The token grows with the server's clock where Redis forgot the fence, with the fence where the
# clock stepped back.
ACQUIRE: Final = RedisScript("""
local clock = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[1]) or 0)
local token = string.format('%.0f', math.max(clock[1] * 1000000 + clock[2], last + 1))
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
local holders, lately = {}, {}
for i = 2, #KEYS do
  local holder = redis.call('HGET', KEYS[i], 'token')
  lately[i - 1] = 0
  if holder then
    redis.call('HSET', KEYS[i], 'followed', 1)
  else
    lately[i - 1] = redis.call('HDEL', KEYS[i], 'stored')
    redis.call('HSET', KEYS[i], 'token', token)
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
  end
  holders[i - 1] = holder
end
return {token, holders, lately}
""")

# KEYS: lease and stream in turns. ARGV: how long a lease and how long a stream lasts, in ms, then a
# token each. Returns for each lease 0 if it is lost, 1 if it is kept, 2 if its records are wanted.
RENEW: Final = RedisScript("""
local found = {}
for i = 1, #KEYS, 2 do
  local lease = redis.call('HMGET', KEYS[i], 'token', 'live')
  local n = (i + 1) / 2
  found[n] = 0
  if lease[1] == ARGV[n + 2] then
    redis.call('PEXPIRE', KEYS[i], ARGV[1])
    found[n] = 1
    if lease[2] then
      redis.call('PEXPIRE', KEYS[i + 1], ARGV[2])
      found[n] = 2
    end
  end
end
return found
""")

# KEYS: lease and stream in turns. ARGV: how long a stream lasts after its end, and how long it is
# known that there is an entry, in ms, then for each lease its token, how many records there were,
# and the end.
RELEASE: Final = RedisScript("""
for i = 1, #KEYS, 2 do
  local at = (i - 1) / 2 * 3 + 3
  local lease = redis.call('HMGET', KEYS[i], 'token', 'followed')
  if lease[1] == ARGV[at] then
    redis.call('DEL', KEYS[i])
    if ARGV[at + 2] == 'stored' then
      redis.call('HSET', KEYS[i], 'stored', 1)
      redis.call('PEXPIRE', KEYS[i], ARGV[2])
    end
    if lease[2] then
      redis.call('XADD', KEYS[i + 1], '*', 'n', ARGV[at + 1], 'end', ARGV[at + 2])
      redis.call('PEXPIRE', KEYS[i + 1], ARGV[1])
    end
  end
end
""")

# KEYS: the doorbell of a reader, then the leases whose records are wanted. ARGV: how long the
# doorbell lasts, in ms, then a token each.
JOIN: Final = RedisScript("""
for i = 2, #KEYS do
  if redis.call('HGET', KEYS[i], 'token') == ARGV[i] then
    redis.call('HSET', KEYS[i], 'followed', 1, 'live', 1)
  end
end
redis.call('XADD', KEYS[1], 'MAXLEN', 1, '*', 'r', '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
""")

# KEYS: leases. ARGV: a token each. Returns for each lease 1 while it is held under that token.
CHECK: Final = RedisScript("""
local held = {}
for i, key in ipairs(KEYS) do
  held[i] = redis.call('HGET', key, 'token') == ARGV[i] and 1 or 0
end
return held
""")


class Names:
    """The keys under one prefix; a scan of entries (`{prefix}v1:…`) meets none of them."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.fence = f"{prefix}fence"
        self.probe = f"{prefix}lease-probe"
        self.wanted = f"{prefix}wanted"
        """The topic on which followers say whose records they want."""

    def lease(self, key: str) -> str:
        return f"{self._prefix}lease:{key}"

    def flight(self, key: str, token: int) -> str:
        return f"{self._prefix}flight:{key}:{token}"

    def doorbell(self, reader: str) -> str:
        return f"{self._prefix}doorbell:{reader}"
