-- Some of the names that have been no member's for so long, each with the number of its last start and the time since when it is none's. Names that
-- have no such time yet are given one.
--
-- KEYS: fleet, lives, started, members, gone. ARGV: how long in ms, the most names, the most lives to look at.
--
-- Hosts of the release before note nobody as gone, so a time may be of before such a host was there. They do change the number of members:
-- as long as they do, and for that long after it, no name is told.

local fleet = redis.call('HMGET', KEYS[1], 'members', 'members.noted', 'members.unnoted', 'looked')
local members, now = read_members(KEYS[4]), millis(redis.call('TIME'))
local number, unnoted = fleet[1] or '0', tonumber(fleet[3])
local now_text = string.format('%.0f', now)

if (fleet[2] or '0') ~= number then
    unnoted = now
    redis.call('HSET', KEYS[1], 'members.noted', number, 'members.unnoted', now_text)
end

local is_member = {}
for _, row in pairs(members) do
    if type(row.name) == 'string' then
        is_member[row.name] = true
        redis.call('ZREM', KEYS[5], row.name)
    end
end

-- Whatever is kept of a name, one of its lives is there.
local page = redis.call('HSCAN', KEYS[2], fleet[4] or '0', 'COUNT', ARGV[3])
redis.call('HSET', KEYS[1], 'looked', page[1])
for i = 2, #page[2], 2 do
    local host = string.match(page[2][i], '^%d+ (.*)$')
    if host and not is_member[host] then
        redis.call('ZADD', KEYS[5], 'NX', now_text, host)
    end
end

local answer, age = { number }, tonumber(ARGV[1])
if not unnoted or now - unnoted >= age then
    local last = string.format('%.0f', now - age)
    local names = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', last, 'WITHSCORES', 'LIMIT', 0, ARGV[2])
    for i = 1, #names, 2 do
        answer[#answer + 1] = names[i]
        answer[#answer + 1] = redis.call('HGET', KEYS[3], names[i]) or '0'
        answer[#answer + 1] = names[i + 1]
    end
end
return answer
