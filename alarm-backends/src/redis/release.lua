-- Gives up those shards that one life of a host owns. Their epochs stay. KEYS: own of each shard. ARGV: incarnation, channel.

local mine = {}
for i, key in ipairs(KEYS) do
    local own = redis.call('HMGET', key, 'owner', 'ended')
    mine[i] = own[1] == ARGV[1] and not own[2]
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
