#!lua flags=allow-oom
-- The authority of a deployment: poll and purge in one. (docs/coherence.md says why each line is as it is.)
--
-- KEYS[1], a sorted set, is all of it, so that its loss is whole and it lies in one slot of a cluster:
--   score -2   'E' .. epoch (16 bytes) .. the server's replication id
--   score -1   'H' .. the highest LSN of a fence that was dropped, in decimal digits
--   score LSN  'h' or 's' (hides, marks stale) .. tag (8 bytes): its last purge
-- ARGV: an epoch to begin if one is needed; the epoch that the asker knows; what it has applied; fences to keep; changes
-- to answer at most; the channel of the doorbell; then the members to fence.
-- Answer: epoch, C, up to which LSN the changes reach, H, changes (member, LSN, member, LSN, …).
--
-- Without the flag no-writes a replica, or a primary that has lost its replicas (min-replicas-to-write), refuses even a
-- poll, as it must: it does not know what another primary has promised. With allow-oom purges work at maxmemory.
local key = KEYS[1]
local known, applied, keep, most = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local FIRST = 7 -- of the members in ARGV
local PRUNED_AT_ONCE = 200

local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local header = redis.call('ZRANGEBYSCORE', key, -2, -2)[1]
if not header or string.sub(header, 18) ~= server then
  -- Lost, or carried over to another server, which may have missed the last purges.
  redis.call('DEL', key)
  header = 'E' .. ARGV[1] .. server
  redis.call('ZADD', key, -2, header, -1, 'H0')
end
local epoch = string.sub(header, 2, 17)
local h = redis.call('ZRANGEBYSCORE', key, -1, -1)[1]
local horizon = tonumber(string.sub(h, 2))
local last = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
local c = math.max(horizon, tonumber(last[2]))

if #ARGV >= FIRST then
  c = c + 1
  for i = FIRST, #ARGV do redis.call('ZADD', key, c, ARGV[i]) end
  local over = math.min(redis.call('ZCARD', key) - 2 - keep, PRUNED_AT_ONCE)
  if over > 0 then
    local oldest = redis.call('ZRANGE', key, 2, 1 + over, 'WITHSCORES')
    local upto = tonumber(oldest[#oldest])
    if upto < c then -- the last purge always stays whole
      redis.call('ZREMRANGEBYSCORE', key, 1, upto)
      redis.call('ZREM', key, h)
      redis.call('ZADD', key, -1, 'H' .. string.format('%.0f', upto))
      horizon = upto
    end
  end
  if ARGV[6] ~= '' then redis.pcall('PUBLISH', ARGV[6], '') end
end

local from = known == epoch and '(' .. applied or '1'
local changes = redis.call('ZRANGEBYSCORE', key, from, '+inf', 'WITHSCORES', 'LIMIT', 0, most + 1)
local upto = c
if #changes > 2 * most then
  -- Cut between two purges, never inside one.
  local cut = changes[#changes]
  while #changes > 0 and changes[#changes] == cut do
    changes[#changes] = nil
    changes[#changes] = nil
  end
  if #changes == 0 then -- one purge of more tags than an answer holds is sent whole
    changes = redis.call('ZRANGEBYSCORE', key, cut, cut, 'WITHSCORES')
  end
  upto = tonumber(changes[#changes])
end
return { epoch, c, upto, horizon, changes }
