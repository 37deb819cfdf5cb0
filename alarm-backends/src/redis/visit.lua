-- Removes what shards know of the starts of some hosts, up to a start of each. Answers which of these hosts own one of the shards.
--
-- KEYS: own of each shard. ARGV: for each host its name and the number of that start.

local fields = { 'owner', 'host' }
for i = 1, #ARGV, 2 do
    fields[#fields + 1] = 'start:' .. ARGV[i]
end
local shards = {}
for i, key in ipairs(KEYS) do
    shards[i] = redis.call('HMGET', key, unpack(fields))
end
local owners, answer = {}, {}
for i, own in ipairs(shards) do
    if own[1] and own[2] then
        owners[own[2]] = true
    end
    for j = 1, #ARGV, 2 do
        local field = 2 + (j + 1) / 2
        local start = tonumber(own[field])
        if start and start <= tonumber(ARGV[j + 1]) then
            redis.call('HDEL', KEYS[i], fields[field])
        end
    end
end
for i = 1, #ARGV, 2 do
    if owners[ARGV[i]] then
        answer[#answer + 1] = ARGV[i]
    end
end
return answer
