-- The requests of wrk: 2 KB of chat, said over and over, or never twice the same.
--
--   wrk ... -s load.lua URL -- MODE FIRST COUNT
--
-- same      one request, byte for byte
-- spelled   one request, its white space never the same twice
-- cycled    COUNT different requests, FIRST and the following, again and again
-- distinct  a new request each time, from FIRST on
--
-- The last line written is a JSON object of what happened.

local CONTENT = string.rep("word ", 362)
local number, first, count, mode = 0, 0, 1, "same"

local function body(topic, space)
  return '{"model":"gpt-4o",' .. space .. '"temperature":0,"max_tokens":400,"messages":['
    .. '{"role":"system","content":"You are a helpful assistant that answers in prose."},'
    .. '{"role":"user","content":"' .. string.format("%08d", topic) .. " " .. CONTENT .. '"}]}'
end

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
  mode, first, count = args[1], tonumber(args[2]), tonumber(args[3])
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  wrk.headers["authorization"] = "Bearer sk-bench"
  local same = wrk.format(nil, nil, nil, body(first, blanks(0)))
  local cycle = {}
  if mode == "cycled" then
    for place = 0, count - 1 do
      cycle[place] = wrk.format(nil, nil, nil, body(first + place, blanks(0)))
    end
  end
  request = function()
    number = number + 1
    if mode == "same" then return same end
    if mode == "spelled" then return wrk.format(nil, nil, nil, body(first, blanks(number))) end
    if mode == "cycled" then return cycle[number % count] end
    return wrk.format(nil, nil, nil, body(first + number, blanks(0)))
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
