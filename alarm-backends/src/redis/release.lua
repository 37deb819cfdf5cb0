-- Gives up those shards that one life of a host owns. Their epochs stay. KEYS: own of each shard. ARGV: incarnation.

local mine = {}
for i, key in ipairs(KEYS) do
    local own = redis.call('HMGET', key, 'owner', 'ended')
    mine[i] = own[1] == ARGV[1] and not own[2]
end
for i, key in ipairs(KEYS) do
    if mine[i] then
        redis.call('HDEL', key, 'owner', 'host', 'until', 'clean')
    end
end
return {}
