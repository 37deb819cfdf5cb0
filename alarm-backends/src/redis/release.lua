-- Gives up those shards that one life of a host owns. Their epochs stay.
--
-- KEYS: own of each shard. ARGV: incarnation, channel, then for each shard the epoch that ends, '' if it is whichever it is owned under.

local mine = {}
for i, key in ipairs(KEYS) do
    local own = redis.call('HMGET', key, 'owner', 'ended', 'epoch')
    mine[i] = own[1] == ARGV[1] and not own[2] and (ARGV[2 + i] == '' or ARGV[2 + i] == own[3])
end
local has_released = false
for i, key in ipairs(KEYS) do
    if mine[i] then
        redis.call('HDEL', key, 'owner', 'host', 'until', 'clean')
        has_released = true
    end
end
if has_released then
    -- Only a hint, for who waits for one of them.
    redis.pcall('PUBLISH', ARGV[2], 'fleet')
end
return {}
