-- Members: the hosts that hold a lease, each with what it says of itself, in one hash by incarnation. A row is an object in JSON whose values are
-- texts, so that a later version can add to it and nothing is lost in between; one that cannot be read is left alone. The number of the
-- last change is in the fleet's hash. Names that were a member's are in a sorted set by the time at which they were one last (stale.lua).
--
-- This stands before each script that changes them.

local function read_members(key)
    local rows, fields = {}, redis.call('HGETALL', key)
    for i = 1, #fields, 2 do
        local is_read, row = pcall(cjson.decode, fields[i + 1])
        if is_read and type(row) == 'table' then
            rows[fields[i]] = row
        end
    end
    return rows
end

-- A life as it was recorded, its host, the number of that host's last life, and whether it is that one.
local function read_life(lives, starts, id)
    local life = redis.call('HGET', lives, id)
    local birth, host
    if life then
        birth, host = string.match(life, '^(%d+) (.*)$')
    end
    local started = host and redis.call('HGET', starts, host)
    return life, host, started, birth and not (started and tonumber(started) > tonumber(birth))
end

local function is_over(row, now)
    return (tonumber(row['until']) or 0) <= now
end

-- Takes out those whose lease is over, and those that `ends` names, and notes since when they are gone; whether there was one.
local function end_members(key, gone, rows, now, ends)
    local has_ended = false
    for life, row in pairs(rows) do
        if is_over(row, now) or (ends and ends(life, row)) then
            redis.call('HDEL', key, life)
            if type(row.name) == 'string' then
                redis.call('ZADD', gone, string.format('%.0f', now), row.name)
            end
            rows[life] = nil
            has_ended = true
        end
    end
    return has_ended
end

-- Notes what a host says of itself: address, build, whether it is leaving, whether its fleet is live, version of the placement; each a text.
-- Whoever has said that it leaves is leaving to its end: what says otherwise was sent before, and came late.
local function note_member(key, rows, life, host, now, lease, says)
    local row = rows[life]
    local is_new = not row
    row = row or { name = host, since = string.format('%.0f', now), cordoned = '0' }
    says.leaving = row.leaving == '1' and '1' or says.leaving
    for field, value in pairs(says) do
        is_new = is_new or row[field] ~= value
        row[field] = value
    end
    row['until'] = string.format('%.0f', now + lease)
    rows[life] = row
    redis.call('HSET', key, life, cjson.encode(row))
    return is_new
end

local function members_changed(fleet, channel)
    local number = redis.call('HINCRBY', fleet, 'members', 1)
    -- Behind a change by a host of a release that notes nobody as gone this stays behind.
    if number == (tonumber(redis.call('HGET', fleet, 'members.noted')) or 0) + 1 then
        redis.call('HSET', fleet, 'members.noted', string.format('%.0f', number))
    end
    -- Only a hint: a user who may not publish may be a host all the same.
    redis.pcall('PUBLISH', channel, 'fleet')
end

-- Adds the number of the last change, and each member with its row.
local function answer_members(answer, fleet, rows)
    answer[#answer + 1] = redis.call('HGET', fleet, 'members') or '0'
    answer[#answer + 1] = tostring(0)
    local count, at = 0, #answer
    for life, row in pairs(rows) do
        answer[#answer + 1] = life
        answer[#answer + 1] = cjson.encode(row)
        count = count + 1
    end
    answer[at] = tostring(count)
end

-- Drops the record of a life. The greatest number of one whose record was dropped stays: a life that comes back without a record is a past one if
-- it was born by then, and else the store has lost it.
local function drop_life(fleet, lives, id)
    local life = redis.call('HGET', lives, id)
    local birth = life and tonumber(string.match(life, '^%d+'))
    if birth and birth > (tonumber(redis.call('HGET', fleet, 'dropped')) or 0) then
        redis.call('HSET', fleet, 'dropped', string.format('%.0f', birth))
    end
    redis.call('HDEL', lives, id)
end

local function millis(time)
    return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
