-- The requests of wrk: one question, said over and over, or never twice the same.
--
--   wrk ... -s load.lua URL -- MODE FIRST COUNT FILE
--
-- same      one request, byte for byte: number FIRST
-- spelled   one request, its white space never the same twice; FIRST spellings were sent before
-- cycled    COUNT different requests, again and again, neighbours far apart; FIRST were asked before
-- distinct  a new request each time, from FIRST on
--
-- FILE has the body in three lines (see question.py): the white space stands between the first two,
-- the number between the last two. The last line written is a JSON object of what happened.

-- A prime that divides no COUNT: each number comes once in a round.
local STRIDE = 7919

-- 24 characters of white space that spell the number.
local function blanks(value)
  local parts = {}
  for place = 1, 24 do
    parts[place] = value % 2 == 0 and " " or "\t"
    value = math.floor(value / 2)
  end
  return table.concat(parts)
end

function init(args)
  local mode, first, count = args[1], tonumber(args[2]), tonumber(args[3])
  local file = assert(io.open(args[4], "rb"))
  local before, between, after = file:read("*l", "*l", "*l")
  file:close()

  -- By hand: wrk.format writes the headers in an order that differs from one run to the next.
  local length = #before + 24 + #between + 8 + #after
  local head = "POST " .. wrk.path .. " HTTP/1.1\r\nhost: " .. wrk.host .. ":" .. wrk.port
    .. "\r\ncontent-type: application/json\r\nauthorization: Bearer sk-bench\r\ncontent-length: "
    .. length .. "\r\n\r\n" .. before
  local plain = blanks(0)
  local function made(topic, space)
    return head .. space .. between .. string.format("%08d", topic) .. after
  end

  local same, asked = made(first, plain), 0
  local ways = {
    same = function() return same end,
    spelled = function() return made(0, blanks(first + asked)) end,
    cycled = function() return made((first + asked) * STRIDE % count, plain) end,
    distinct = function() return made(first + asked, plain) end,
  }
  local way = ways[mode]
  request = function()
    asked = asked + 1
    return way()
  end
end

function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"seconds":%f,"bytes":%d,"not_2xx":%d,"failed":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, failed.status,
    failed.connect + failed.read + failed.write + failed.timeout,
    latency:percentile(50), latency:percentile(99)))
end
