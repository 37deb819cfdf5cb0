-- Puts messages into the inbox of a shard, unless one of the same identity is there. Answers '1' or '0' for each.
--
-- KEYS: inbox, inbox.order, inbox.progress. ARGV: channel, shard, then identity and row of each message.
--
-- A message is stored as: layout (1), arrival (8), row. Arrival is milliseconds since 1970, sign bit flipped, in two halves
-- because a double holds no 64 bits.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local arrived = struct.pack('>I4I4', 2147483648 + math.floor(now / 4294967296), now % 4294967296)

redis.call('ZCARD', KEYS[2])
redis.call('HLEN', KEYS[3])
local answer, seen, rows, members = {}, {}, {}, {}
for i = 3, #ARGV, 2 do
    local id = ARGV[i]
    if seen[id] or redis.call('HEXISTS', KEYS[1], id) == 1 then
        answer[#answer + 1] = '0'
    else
        seen[id] = true
        answer[#answer + 1] = '1'
        rows[#rows + 1] = id
        rows[#rows + 1] = '\1' .. arrived .. ARGV[i + 1]
        members[#members + 1] = 0
        members[#members + 1] = arrived .. id
    end
end
for first = 1, #rows, 4000 do
    local last = math.min(first + 3999, #rows)
    redis.call('HSET', KEYS[1], unpack(rows, first, last))
    redis.call('ZADD', KEYS[2], unpack(members, first, last))
end
if #rows > 0 then
    -- Only a hint: a user who may not publish may post all the same.
    redis.pcall('PUBLISH', ARGV[1], ARGV[2])
end
return answer
