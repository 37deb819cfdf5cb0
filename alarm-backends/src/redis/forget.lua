-- Forgets a name, unless anything has been seen of it since it was told as stale. A name that owns a shard is seen now.
--
-- KEYS: fleet, lives, started, gone, claimed by this host, past lives of this host.
-- ARGV: the number of members then, name, the number of its last start, the time since when it is gone, '1' if it owns a shard.

local number = redis.call('HGET', KEYS[1], 'members') or '0'
local started = redis.call('HGET', KEYS[3], ARGV[2]) or '0'
local gone = redis.call('ZSCORE', KEYS[4], ARGV[2])
local past = redis.call('LRANGE', KEYS[6], 0, -1)
if number ~= ARGV[1] or started ~= ARGV[3] or gone ~= ARGV[4] then
    return '0'
end
if ARGV[5] == '1' then
    redis.call('ZADD', KEYS[4], string.format('%.0f', millis(redis.call('TIME'))), ARGV[2])
    return '0'
end
for _, life in ipairs(past) do
    drop_life(KEYS[1], KEYS[2], life)
end
redis.call('HDEL', KEYS[3], ARGV[2])
redis.call('DEL', KEYS[5], KEYS[6])
redis.call('ZREM', KEYS[4], ARGV[2])
return '1'
