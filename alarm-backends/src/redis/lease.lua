-- Extends the lease of one life of a host on each shard that it owns, and takes those that it wants and that are free.
--
-- KEYS: own and inbox order of each shard.
-- ARGV: incarnation, host, birth, 'start' or 'running', lease in ms, the time at which this claim was let in, '' of a renewal; then for each shard
--       '' if it is not wanted; else the epoch under which this life has given it up, '0' if it has not.
--
-- A claim that comes here three days after it was let in is granted nothing, and leaves no birth number: before long what is kept of its name may be
-- forgotten (names.rs), and nothing else here would tell that a later life has been there since. Servers' clocks may differ by as much.
--
-- Milliseconds since 1970 and births are whole numbers below 2^53, which a double holds exactly. Epochs and sequence numbers
-- are only passed on, as text.

local incarnation, host, birth, start = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == 'start'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local is_late = now - (tonumber(ARGV[6]) or now) > 3 * 86400000
local lease_until = string.format('%.0f', now + tonumber(ARGV[5]))

-- Everything is read before anything is written: a read of a key of the wrong type ends the script.
local shards = {}
for i = 1, #KEYS, 2 do
    local own = {}
    local fields = redis.call('HGETALL', KEYS[i])
    for j = 1, #fields, 2 do
        own[fields[j]] = fields[j + 1]
    end
    own.has_inbox = redis.call('ZCARD', KEYS[i + 1]) > 0
    shards[#shards + 1] = own
end

local function grant(key, own)
    redis.call('HINCRBY', key, 'epoch', 1)
    for field in pairs(own) do
        if field == 'ended' or string.sub(field, 1, 4) == 'seq:' then
            redis.call('HDEL', key, field)
            own[field] = nil
        end
    end
    own.clean = own.owner and '0' or '1'
    own.epoch = redis.call('HGET', key, 'epoch')
    own.owner, own.host = incarnation, host
    redis.call('HSET', key, 'owner', incarnation, 'host', host, 'clean', own.clean, 'until', lease_until)
end

local answer = { time[1], time[2] }
for i, own in ipairs(shards) do
    local key = KEYS[2 * i - 1]
    local started = own['start:' .. host]
    local remaining = own.owner and (tonumber(own['until']) or 0) - now or 0
    local state = 'other'
    if (started and tonumber(started) > birth) or (own.owner == incarnation and own.ended) then
        state = 'replaced'
    else
        local is_own_past = start and own.owner and own.owner ~= incarnation and own.host == host
        if start and not is_late then
            redis.call('HSET', key, 'start:' .. host, ARGV[3])
        end
        local wanted, is_mine = ARGV[6 + i], own.owner == incarnation
        if is_mine and wanted ~= own.epoch then
            state = 'mine'
            redis.call('HSET', key, 'until', lease_until)
        elseif wanted ~= '' and not is_late and (is_mine or remaining <= 0 or is_own_past) then
            state = 'mine'
            grant(key, own)
        elseif is_own_past then
            redis.call('HSET', key, 'ended', '1')
        end
    end
    -- Most are the asker's: each of these is one text.
    local is_mine = state == 'mine'
    local one = is_mine and { own.epoch or '0', own.clean or '0', own.has_inbox and '1' or '0' } or {
        state,
        own.epoch or '0',
        own.clean or '0',
        own.owner or '',
        own.host or '',
        string.format('%.0f', math.max(remaining, 0)),
        own.has_inbox and '1' or '0',
    }
    for field, value in pairs(own) do
        if string.sub(field, 1, 4) == 'seq:' then
            one[#one + 1] = string.sub(field, 5)
            one[#one + 1] = value
        end
    end
    answer[#answer + 1] = is_mine and table.concat(one, ' ') or one
end
return answer
