"""The changes of a history in Redis, each as one Lua script over the keys `meta`, `ids` and `log` of one owner.

And the one of what was recommended, over the counts and a note that they have been added.
"""

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
-- ARGV: a time until which events are not taken, whatever the history says; then event_id, time, packed event for each.
-- Answers {rewrites, position and last id before, position and last id after, how many are new, their places from 0
-- when not all are}, or {the name of another owner, until when events are not taken} when the history is that one's.
local meta = redis.call('HMGET', KEYS[1], 'merged_into', 'rewrites', 'position', 'last', 'deleted_s', 'last_s')
local deleted_text = ARGV[1]
if meta[5] and tonumber(meta[5]) > tonumber(deleted_text) then deleted_text = meta[5] end
if meta[1] then return {meta[1], deleted_text} end
local deleted_s, last_s = tonumber(deleted_text), tonumber(meta[6] or -1)
local before = tonumber(meta[3] or 0)
local position, last, new, last_text = before, meta[4] or '', {}, nil
for at = 2, #ARGV, 3 do
  local time_s = tonumber(ARGV[at + 1])
  if time_s > deleted_s and redis.call('SADD', KEYS[2], ARGV[at]) == 1 then
    position, last = position + 1, ARGV[at]
    redis.call('XADD', KEYS[3], position .. '-0', 'e', ARGV[at + 2])
    new[#new + 1] = (at - 2) / 3
    if time_s > last_s then last_s, last_text = time_s, ARGV[at + 1] end
  end
end
if position > before then redis.call('HSET', KEYS[1], 'position', position, 'last', last) end
if last_text then redis.call('HSET', KEYS[1], 'last_s', last_text) end
local answer = {tonumber(meta[2] or 0), before, meta[4] or '', position, last, #new}
if #new < (#ARGV - 1) / 3 then
  for _, place in ipairs(new) do answer[#answer + 1] = place end
end
return answer
""")

MARK = Script("""
-- ARGV: the owner that the history becomes part of; whose it must be now, or nothing when it must be its own.
-- Answers whether it is done.
local merged_into = redis.call('HGET', KEYS[1], 'merged_into') or ''
if merged_into == ARGV[1] then return 1 end
if merged_into ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'merged_into', ARGV[1])
redis.call('HINCRBY', KEYS[1], 'rewrites', 1)
return 1
""")

DELETE = Script("""
-- ARGV: a time until which events are not taken any more; whose the history must be, or nothing when it is its own.
-- Answers {how many events went, that time or a later one}, or nothing when the history is somebody else's.
local meta = redis.call('HMGET', KEYS[1], 'deleted_s', 'last_s', 'merged_into')
if (meta[3] or '') ~= ARGV[2] then return {} end
local until_text = ARGV[1]
for _, other in ipairs({meta[1] or '-1', meta[2] or '-1'}) do
  if tonumber(other) > tonumber(until_text) then until_text = other end
end
local gone = redis.call('XLEN', KEYS[3])
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('HDEL', KEYS[1], 'merged_into', 'last_s', 'last')
redis.call('HSET', KEYS[1], 'deleted_s', until_text)
redis.call('HINCRBY', KEYS[1], 'rewrites', 1)
return {gone, until_text}
""")

EXPIRE = Script("""
-- ARGV: position, event_id, for each event that is to go, because it is too old or was moved. Answers how many went.
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

ADD_SHOWN = Script("""
-- ARGV: for how many seconds to remember that this was done; then name, count, for each count to add to.
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', ARGV[1]) then return 0 end
for at = 2, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[at], ARGV[at + 1]) end
return 1
""")
