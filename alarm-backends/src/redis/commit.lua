-- Applies one batch to one shard, if the writer owns it and has not written this batch before.
--
-- KEYS: own, alarms, alarms.due, alarms.ids, inbox, inbox.order, inbox.progress, dead, dead.order, storage, storage.order.
-- ARGV: incarnation, epoch, lane, seq, the last seq of this lane that was acknowledged for the shard ('' if none),
--       eight counts, then as many of each:
--       alarms put: identity, value          alarms removed: identity, revision
--       messages put: member, progress       messages removed: member
--       dead letters put: member, value      dead letters removed: member
--       values put: identity, value          values removed: identity
--
-- A script that fails midway keeps what it has written. So everything that can be refused is found out first: owner,
-- sequence, the type of each key, each alarm's present revision. What is written last cannot fail any more.
--
-- Numbers of 64 bits come as text or as bytes: Lua's own are doubles. Text is never compared by `<`, which follows the
-- server's locale.

local OWN, ALARMS, DUE, IDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local INBOX, ARRIVED, PROGRESS = KEYS[5], KEYS[6], KEYS[7]
local DEAD, DIED, STORAGE, STORED = KEYS[8], KEYS[9], KEYS[10], KEYS[11]
-- More arguments than this do not fit on Lua's stack.
local MOST = 4000

-- Whether decimal `a` is smaller than decimal `b`; neither has leading zeros, nor more than twenty digits.
local function is_smaller(a, b)
    if #a ~= #b then
        return #a < #b
    end
    local a_high, b_high = tonumber(string.sub(a, 1, 10)), tonumber(string.sub(b, 1, 10))
    if a_high ~= b_high then
        return a_high < b_high
    end
    return (tonumber(string.sub(a, 11)) or 0) < (tonumber(string.sub(b, 11)) or 0)
end

-- Whether the 16 bytes of `a` from `i` are a greater number than those of `b` from `j`.
local function is_greater(a, i, b, j)
    local a1, a2, a3, a4 = struct.unpack('>I4I4I4I4', a, i)
    local b1, b2, b3, b4 = struct.unpack('>I4I4I4I4', b, j)
    if a1 ~= b1 then
        return a1 > b1
    elseif a2 ~= b2 then
        return a2 > b2
    elseif a3 ~= b3 then
        return a3 > b3
    end
    return a4 > b4
end

local function lookup(command, key, fields)
    local found = {}
    for first = 1, #fields, MOST do
        local some = redis.call(command, key, unpack(fields, first, math.min(first + MOST - 1, #fields)))
        for i = 1, #some do
            found[first + i - 1] = some[i]
        end
    end
    return found
end

local function change(command, key, list)
    for first = 1, #list, MOST do
        redis.call(command, key, unpack(list, first, math.min(first + MOST - 1, #list)))
    end
end

local seq_field, seq = 'seq:' .. ARGV[3], ARGV[4]
local own = redis.call('HMGET', OWN, 'epoch', 'owner', 'ended', seq_field)
if own[1] ~= ARGV[2] or own[2] ~= ARGV[1] or own[3] then
    return { 'fenced', own[1] or '0', own[2] or '' }
end
local last = own[4]
if ARGV[5] ~= '' and (not last or is_smaller(last, ARGV[5])) then
    return { 'lost', last or '' }
end
if last == seq then
    return { 'done' }
end
if last and is_smaller(seq, last) then
    return { 'stale', last }
end

-- Each list of operations, as its items lie in ARGV.
local at = 14
local function take(count, width)
    local columns = {}
    for column = 1, width do
        columns[column] = {}
    end
    for i = 1, tonumber(count) do
        for column = 1, width do
            columns[column][i] = ARGV[at]
            at = at + 1
        end
    end
    return columns[1], columns[2]
end
local put_ids, put_values = take(ARGV[6], 2)
local removed_ids, removed_revisions = take(ARGV[7], 2)
local progressed, progress = take(ARGV[8], 2)
local handled = take(ARGV[9], 1)
local dead_put, dead_values = take(ARGV[10], 2)
local dead_removed = take(ARGV[11], 1)
local stored, stored_values = take(ARGV[12], 2)
local deleted = take(ARGV[13], 1)

for _, used in ipairs({
    { #put_ids + #removed_ids, ALARMS, DUE, IDS },
    { #progressed + #handled, INBOX, ARRIVED, PROGRESS },
    { #dead_put + #dead_removed, DEAD, DIED },
    { #stored + #deleted, STORAGE, STORED },
}) do
    if used[1] > 0 then
        for i = 2, #used do
            local key, found = used[i], redis.call('TYPE', used[i]).ok
            local wanted = (key == DUE or key == IDS or key == ARRIVED or key == DIED or key == STORED) and 'zset' or 'hash'
            if found ~= 'none' and found ~= wanted then
                return { 'wrongtype', key, found }
            end
        end
    end
end

-- An alarm is stored as: layout (1), revision (16), due (8), row. Its place among the due is due and identity.
local LAYOUT, HEADER = 1, 25
local function is_newer(value)
    local layout, row = string.byte(value, 1), string.byte(value, HEADER + 1)
    return layout and ((layout > LAYOUT and layout < 32) or (layout == LAYOUT and row and row > 1 and row < 32))
end
local function is_alarm(value)
    return #value > HEADER and string.byte(value, 1) == LAYOUT
end

local rows, due, ids, gone, undue, unlisted = {}, {}, {}, {}, {}, {}
for i, old in ipairs(lookup('HMGET', ALARMS, put_ids)) do
    local id, value = put_ids[i], put_values[i]
    local place = string.sub(value, 18, 25)
    local keep = false
    if old and is_newer(old) then
        return { 'newer', id }
    elseif old and is_alarm(old) then
        keep = is_greater(old, 2, value, 2)
        local old_place = string.sub(old, 18, 25)
        if not keep and old_place ~= place then
            undue[#undue + 1] = old_place .. id
        end
    else
        ids[#ids + 1] = 0
        ids[#ids + 1] = id
    end
    if not keep then
        rows[#rows + 1] = id
        rows[#rows + 1] = value
        due[#due + 1] = 0
        due[#due + 1] = place .. id
    end
end
for i, old in ipairs(lookup('HMGET', ALARMS, removed_ids)) do
    local id = removed_ids[i]
    if old and is_newer(old) then
        return { 'newer', id }
    elseif old and is_alarm(old) and not is_greater(old, 2, removed_revisions[i], 1) then
        gone[#gone + 1] = id
        undue[#undue + 1] = string.sub(old, 18, 25) .. id
    end
end

local progress_rows, taken, taken_ids = {}, {}, {}
for i, found in ipairs(lookup('ZMSCORE', ARRIVED, progressed)) do
    if found then
        progress_rows[#progress_rows + 1] = string.sub(progressed[i], 9)
        progress_rows[#progress_rows + 1] = progress[i]
    end
end
for i, found in ipairs(lookup('ZMSCORE', ARRIVED, handled)) do
    if found then
        taken[#taken + 1] = handled[i]
        taken_ids[#taken_ids + 1] = string.sub(handled[i], 9)
    end
end

local function pairs_of(keys, values)
    local fields, members = {}, {}
    for i, key in ipairs(keys) do
        fields[2 * i - 1], fields[2 * i] = key, values[i]
        members[2 * i - 1], members[2 * i] = 0, key
    end
    return fields, members
end
local dead_fields, dead_members = pairs_of(dead_put, dead_values)
local stored_fields, stored_members = pairs_of(stored, stored_values)

-- From here on nothing is refused. Old places go before new ones come: the two may be equal.
redis.call('HSET', OWN, seq_field, seq)
change('ZREM', DUE, undue)
change('HDEL', ALARMS, gone)
change('ZREM', IDS, gone)
change('HSET', ALARMS, rows)
change('ZADD', DUE, due)
change('ZADD', IDS, ids)
change('HSET', PROGRESS, progress_rows)
change('ZREM', ARRIVED, taken)
change('HDEL', INBOX, taken_ids)
change('HDEL', PROGRESS, taken_ids)
change('HSET', DEAD, dead_fields)
change('ZADD', DIED, dead_members)
change('HDEL', DEAD, dead_removed)
change('ZREM', DIED, dead_removed)
change('HSET', STORAGE, stored_fields)
change('ZADD', STORED, stored_members)
change('HDEL', STORAGE, deleted)
change('ZREM', STORED, deleted)
return { 'done' }
