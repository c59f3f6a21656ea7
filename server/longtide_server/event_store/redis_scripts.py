"""The changes of a history in Redis, each as one Lua script over the keys `meta`, `ids` and `log` of one owner."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Script:
    """A script and what it is known by once Redis has seen it."""

    text: str

    @property
    def digest(self) -> str:
        """As EVALSHA wants it."""
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


WRITE = Script("""
-- ARGV: event_id, time, packed event, for each event.
-- Answers {rewrites, position before, position after, how many are new, their places from 0 when not all are},
-- or {the name of another owner} when the history is part of that one's.
local meta = redis.call('HMGET', KEYS[1], 'merged_into', 'rewrites', 'position', 'deleted_s', 'last_s')
if meta[1] then return {meta[1]} end
local before = tonumber(meta[3] or 0)
local deleted_s, last_s = tonumber(meta[4] or -1), tonumber(meta[5] or -1)
local position, new, last_text = before, {}, nil
for at = 1, #ARGV, 3 do
  local time_s = tonumber(ARGV[at + 1])
  if time_s > deleted_s and redis.call('SADD', KEYS[2], ARGV[at]) == 1 then
    position = position + 1
    redis.call('XADD', KEYS[3], position .. '-0', 'e', ARGV[at + 2])
    new[#new + 1] = (at - 1) / 3
    if time_s > last_s then last_s, last_text = time_s, ARGV[at + 1] end
  end
end
if position > before then redis.call('HSET', KEYS[1], 'position', position) end
if last_text then redis.call('HSET', KEYS[1], 'last_s', last_text) end
local answer = {tonumber(meta[2] or 0), before, position, #new}
if #new < #ARGV / 3 then
  for _, place in ipairs(new) do answer[#answer + 1] = place end
end
return answer
""")

MARK = Script("""
-- ARGV: the owner that the history becomes part of. Answers whose it is now.
local merged_into = redis.call('HGET', KEYS[1], 'merged_into')
if merged_into then return merged_into end
redis.call('HSET', KEYS[1], 'merged_into', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'rewrites', 1)
return ARGV[1]
""")

CLEAR = Script("""
-- Lets go of events that were moved to another owner.
return redis.call('DEL', KEYS[2], KEYS[3])
""")

DELETE = Script("""
-- ARGV: a time until which events are not taken any more. Answers {how many events went, that time or a later one}.
local meta = redis.call('HMGET', KEYS[1], 'deleted_s', 'last_s')
local until_text = ARGV[1]
for _, other in ipairs({meta[1] or '-1', meta[2] or '-1'}) do
  if tonumber(other) > tonumber(until_text) then until_text = other end
end
local gone = redis.call('XLEN', KEYS[3])
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[1], 'merged_into', 'last_s')
redis.call('HSET', KEYS[1], 'deleted_s', until_text)
redis.call('HINCRBY', KEYS[1], 'rewrites', 1)
return {gone, until_text}
""")

EXPIRE = Script("""
-- ARGV: position, event_id, for each event that is to go. Answers how many went.
local gone = 0
for at = 1, #ARGV, 2 do
  if redis.call('XDEL', KEYS[3], ARGV[at] .. '-0') == 1 then
    redis.call('SREM', KEYS[2], ARGV[at + 1])
    gone = gone + 1
  end
end
if gone > 0 then redis.call('HINCRBY', KEYS[1], 'rewrites', 1) end
return gone
""")
