"""The catalogue in Redis, each change and each reading of several keys as one Lua script.

KEYS are always `items`, a hash of records; `ids`, a sorted set of the items that are there, for pages; `changes`, a
sorted set of all items ever by the revision of their last change; and `meta`: the last revision, whose change it was,
and the declared sizes of vectors.

A revision is the microsecond of its change by Redis' clock, or one more than the revision before where that is greater.
After a failover that has lost changes, new ones so have revisions that nobody has seen. They are whole numbers below
2^53: Lua and sorted sets keep them exactly.
"""

from __future__ import annotations

from longtide_server.event_store.redis_scripts import Script

_NUMBERED = """
local function numbered(meta)
  local last, now = tonumber(meta or 0), redis.call('TIME')
  return math.max(last, tonumber(now[1]) * 1000000 + tonumber(now[2]) - 1)
end
"""

UPSERT = Script(
    _NUMBERED
    + """
-- ARGV for each item: its id, the revision that its last change must have or nothing, the sizes of its text and its
-- image vector (0: none), its record.
-- Answers {declared size of text vectors, of image vectors, then for each item 0: written, 2: its text vector is of
-- another size, 3: its image vector is, or where it has another revision {that, its record or nothing}}.
local meta = redis.call('HMGET', KEYS[4], 'revision', 'text_size', 'image_size')
local revision, last = numbered(meta[1]), nil
local text_size, image_size = tonumber(meta[2] or 0), tonumber(meta[3] or 0)
local answer = {0, 0}
for at = 1, #ARGV, 5 do
  local id, expected, text, image = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local outcome, found = 0, expected ~= '' and (redis.call('ZSCORE', KEYS[3], id) or '0')
  if found and found ~= expected then outcome = {found, redis.call('HGET', KEYS[1], id) or ''}
  elseif text > 0 and text_size > 0 and text ~= text_size then outcome = 2
  elseif image > 0 and image_size > 0 and image ~= image_size then outcome = 3
  else
    if text > 0 then text_size = text end
    if image > 0 then image_size = image end
    revision, last = revision + 1, id
    redis.call('HSET', KEYS[1], id, ARGV[at + 4])
    redis.call('ZADD', KEYS[2], 0, id)
    redis.call('ZADD', KEYS[3], string.format('%.0f', revision), id)
  end
  answer[#answer + 1] = outcome
end
if last then
  redis.call('HSET', KEYS[4], 'revision', string.format('%.0f', revision), 'last', last,
    'text_size', text_size, 'image_size', image_size)
end
answer[1], answer[2] = text_size, image_size
return answer
"""
)

DELETE = Script(
    _NUMBERED
    + """
-- ARGV: ids. Answers how many of the items were there.
local revision, last, gone = numbered(redis.call('HGET', KEYS[4], 'revision')), nil, 0
for _, id in ipairs(ARGV) do
  local was_there = redis.call('HDEL', KEYS[1], id) == 1
  if was_there or not redis.call('ZSCORE', KEYS[3], id) then
    revision, last = revision + 1, id
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[3], string.format('%.0f', revision), id)
    if was_there then gone = gone + 1 end
  end
end
if last then redis.call('HSET', KEYS[4], 'revision', string.format('%.0f', revision), 'last', last) end
if redis.call('HLEN', KEYS[1]) == 0 then redis.call('HDEL', KEYS[4], 'text_size', 'image_size') end
return gone
"""
)

READ = Script("""
-- ARGV: ids. Answers for each the revision of its last change, 0 where there is none, and its record or nothing.
local answer = {}
for _, id in ipairs(ARGV) do
  answer[#answer + 1] = redis.call('ZSCORE', KEYS[3], id) or '0'
  answer[#answer + 1] = redis.call('HGET', KEYS[1], id) or ''
end
return answer
""")

PAGE = Script("""
-- ARGV: where the page begins as ZRANGEBYLEX has it, how many items it may hold, how many bytes end it.
-- Answers {1 when others follow, then id and record of each}.
local size, most, bytes, answer = tonumber(ARGV[2]), tonumber(ARGV[3]), 0, {0}
for place, id in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], '+', 'LIMIT', 0, size + 1)) do
  if place > size or bytes >= most then
    answer[1] = 1
    break
  end
  local record = redis.call('HGET', KEYS[1], id)
  bytes = bytes + #record
  answer[#answer + 1] = id
  answer[#answer + 1] = record
end
return answer
""")

CHANGES = Script("""
-- ARGV: a revision, whose change it is, how many changes may be told, how many bytes end them.
-- Answers {1 when others follow, 1 when that revision is lost and these are the first changes of all, then for each id,
-- revision and record, which is empty when the item was deleted}.
local since, size, most, bytes, answer = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), 0, {0, 0}
if since ~= '0' then
  -- Whoever was changed then has that revision, or a later one. What is lost are the last changes.
  local found = redis.call('ZSCORE', KEYS[3], ARGV[2])
  if not found or tonumber(found) < tonumber(since) then since, answer[2] = '0', 1 end
end
local found = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. since, '+inf', 'WITHSCORES', 'LIMIT', 0, size + 1)
for at = 1, #found, 2 do
  if at > 2 * size or bytes >= most then
    answer[1] = 1
    break
  end
  local record = redis.call('HGET', KEYS[1], found[at]) or ''
  bytes = bytes + #record
  answer[#answer + 1] = found[at]
  answer[#answer + 1] = found[at + 1]
  answer[#answer + 1] = record
end
return answer
""")
