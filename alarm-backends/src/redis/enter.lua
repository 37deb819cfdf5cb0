-- Lets one life of a host claim shards, and says which shards any life of that host may ever have owned.
--
-- KEYS: fleet, lives, started, claimed by this host, past lives of this host, members, gone.
-- ARGV: incarnation, host, 'start' or 'running', shard count, hash version, ID of the store as the caller knows it or '',
--       ID for a new store, '1' if the store must exist, the record of the steps that the caller knows: step, the least
--       step that a program must know after it, release; lease in ms, channel, what the host says of itself: address, build, '1' if it is
--       leaving, '1' if its fleet is live, version of the placement;
--       the number of this life as the caller knows it, '' if it has not entered; then the shards wanted.
--
-- The fleet's hash has the same record (steps.rs), from step 2 on. What a step adds beside it is added here, or, for a shard,
-- where the shard is granted. A life that has entered goes on, whatever others bring the store to.
--
-- Births count upwards over the whole fleet: a start ends all lives of its name that were born before it. They are numbers
-- of starts, so a double holds them exactly.

local fleet = redis.call('HMGET', KEYS[1], 'shards', 'hash', 'id', 'step', 'needs', 'release', 'dropped')
local life = redis.call('HGET', KEYS[2], ARGV[1])
local started = redis.call('HGET', KEYS[3], ARGV[2])
redis.call('SCARD', KEYS[4])
redis.call('LLEN', KEYS[5])
local members = read_members(KEYS[6])
local time = redis.call('TIME')
local now = millis(time)

if ARGV[6] ~= '' and ARGV[6] ~= fleet[3] then
    return { 'lost', fleet[3] or '' }
end
if not life and ARGV[19] ~= '' then
    return { tonumber(ARGV[19]) <= (tonumber(fleet[7]) or 0) and 'replaced' or 'gone' }
end
if not fleet[3] and ARGV[8] == '1' then
    return { 'empty' }
end
local step, needs = tonumber(fleet[4] or fleet[5] or 1), tonumber(fleet[5] or 1)
if not life and (not step or not needs or needs < 1 or needs > step or needs > tonumber(ARGV[9])) then
    return { 'unfit', fleet[4], fleet[5], fleet[6] }
end
if fleet[3] and (fleet[1] ~= ARGV[4] or fleet[2] ~= ARGV[5]) then
    return { 'mismatch', fleet[1], fleet[2] }
end
local birth = life and tonumber(string.match(life, '^%d+'))
if birth and started and tonumber(started) > birth then
    return { 'replaced' }
end

for life, row in pairs(members) do
    local is_own = life == ARGV[1] or (ARGV[3] == 'start' and row.name == ARGV[2])
    if not is_own and not is_over(row, now) and row.live ~= ARGV[17] then
        return { 'placement' }
    end
end

if not fleet[3] then
    redis.call('HSET', KEYS[1], 'shards', ARGV[4], 'hash', ARGV[5], 'id', ARGV[7])
end
if not fleet[3] or (step and step < tonumber(ARGV[9])) then
    redis.call('HSET', KEYS[1], 'step', ARGV[9], 'needs', ARGV[10], 'release', ARGV[11])
end
if ARGV[17] == '1' and (needs or 1) < 3 then
    -- Programs that know only lists would claim by one.
    redis.call('HSET', KEYS[1], 'needs', '3')
end
if ARGV[3] == 'start' or not birth then
    birth = redis.call('HINCRBY', KEYS[1], 'births', 1)
    redis.call('HSET', KEYS[2], ARGV[1], string.format('%.0f', birth) .. ' ' .. ARGV[2])
end
if ARGV[3] == 'start' then
    redis.call('HSET', KEYS[3], ARGV[2], string.format('%.0f', birth))
end
if not life then
    -- Past lives are kept to be told that they are past; after so many more, nobody asks.
    redis.call('RPUSH', KEYS[5], ARGV[1])
    if redis.call('LLEN', KEYS[5]) > 64 then
        drop_life(KEYS[1], KEYS[2], redis.call('LPOP', KEYS[5]))
    end
end
local has_ended = end_members(KEYS[6], KEYS[7], members, now, function(life, row)
    return ARGV[3] == 'start' and life ~= ARGV[1] and row.name == ARGV[2]
end)
local says = { address = ARGV[14], build = ARGV[15], leaving = ARGV[16], live = ARGV[17], placement = ARGV[18] }
local says_new = note_member(KEYS[6], members, ARGV[1], ARGV[2], now, tonumber(ARGV[12]), says)
if has_ended or says_new then
    members_changed(KEYS[1], ARGV[13])
end
for first = 20, #ARGV, 1000 do
    redis.call('SADD', KEYS[4], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end

local answer = { 'entered', fleet[3] or ARGV[7], string.format('%.0f', birth), fleet[3] and '' or 'created', time[1], time[2] }
answer_members(answer, KEYS[1], members)
if ARGV[3] == 'start' then
    for _, shard in ipairs(redis.call('SMEMBERS', KEYS[4])) do
        answer[#answer + 1] = shard
    end
end
return answer
