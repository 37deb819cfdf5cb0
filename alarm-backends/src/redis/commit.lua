-- Applies batches, each to one shard, if the writer owns the shard and has not written this batch before. Answers for each in the same order:
-- 1 if it is done, else why it is refused, which holds up no other.
--
-- KEYS: of each batch own, then of each kind of rows that it changes:
--       alarms, alarms.due, alarms.ids; inbox, inbox.order, inbox.progress; dead, dead.order; storage, storage.order.
-- ARGV: incarnation, lane, seq; then of each batch epoch, the last seq of this lane that was acknowledged for the shard ('' if none), counts;
--       then of each of these kinds the names of rows put, the names of those removed, the values of those put:
--       alarms: identity, value; and behind these the revisions of those removed
--       messages: member, progress
--       dead letters: member, value
--       values: identity, value
--       The counts are one text: for each of these kinds its number, from 1, how many rows are put and how many removed, all with a space
--       between.
--
-- A script that fails midway keeps what it has written. So of each batch everything that can be refused is found out first: owner,
-- sequence, the type of each key, each alarm's present revision. What is written then cannot fail any more.
--
-- Numbers of 64 bits come as text or as bytes: Lua's own are doubles. Text is never compared by `<`, which follows the
-- server's locale.

local KEYS, ARGV, call, pcall = KEYS, ARGV, redis.call, redis.pcall
local byte, sub = string.byte, string.sub
local INCARNATION, SEQ, SEQ_FIELD = ARGV[1], ARGV[3], 'seq:' .. ARGV[2]
-- More arguments than this do not fit on Lua's stack.
local MOST = 4000

-- Tells whether decimal `a` is smaller than decimal `b`; neither has leading zeros, nor more than twenty digits.
local function is_smaller(a, b)
    if #a ~= #b then
        return #a < #b
    end
    local a_high, b_high = tonumber(sub(a, 1, 10)), tonumber(sub(b, 1, 10))
    if a_high ~= b_high then
        return a_high < b_high
    end
    return (tonumber(sub(a, 11)) or 0) < (tonumber(sub(b, 11)) or 0)
end

-- Tells whether the 16 bytes of `a` from `i` are a greater number than those of `b` from `j`.
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

-- The answer of a command that only reads, about arguments; one with `err` if the key is of another type.
local function lookup(command, key, first, count)
    if count <= MOST then
        return pcall(command, key, unpack(ARGV, first, first + count - 1))
    end
    local found = {}
    for from = 0, count - 1, MOST do
        local some = lookup(command, key, first + from, math.min(MOST, count - from))
        if some.err then
            return some
        end
        for i = 1, #some do
            found[from + i] = some[i]
        end
    end
    return found
end

local function change(command, key, list, first, count)
    local last = first + count - 1
    for from = first, last, MOST do
        call(command, key, unpack(list, from, math.min(from + MOST - 1, last)))
    end
end

local function wrong_type(key)
    return { 'wrongtype', key, call('TYPE', key).ok }
end

-- The refusal if a key is of another type than one that has a size by this command.
local function check(size, key)
    return type(pcall(size, key)) ~= 'number' and wrong_type(key)
end

-- An alarm is stored as: layout (1), revision (16), due (8), row. Its place among the due is due and identity.
local LAYOUT, HEADER = 1, 25
local function is_newer(value)
    local layout, row = byte(value, 1), byte(value, HEADER + 1)
    return layout and ((layout > LAYOUT and layout < 32) or (layout == LAYOUT and row and row > 1 and row < 32))
end
local function is_alarm(value)
    return #value > HEADER and byte(value, 1) == LAYOUT
end

-- Arguments of the commands that write a batch, each with the number of those that are valid: the next batch writes over them.
local rows, row_count, due, due_count, ids, id_count = {}, 0, {}, 0, {}, 0
local undue, undue_count, gone, gone_count = {}, 0, {}, 0

local function check_alarms(key, put, removed, at)
    local olds = lookup('HMGET', KEYS[key], at, put + removed)
    local refused = olds.err and wrong_type(KEYS[key]) or check('ZCARD', KEYS[key + 1]) or check('ZCARD', KEYS[key + 2])
    if refused then
        return refused
    end
    row_count, due_count, id_count, undue_count, gone_count = 0, 0, 0, 0, 0
    for i = 1, put do
        local old, id, value = olds[i], ARGV[at + i - 1], ARGV[at + put + removed + i - 1]
        local place, is_kept = sub(value, 18, 25) .. id, false
        if old and is_newer(old) then
            return { 'newer', id }
        elseif old and is_alarm(old) then
            local old_place = sub(old, 18, 25) .. id
            is_kept = is_greater(old, 2, value, 2)
            if not is_kept and old_place ~= place then
                undue_count = undue_count + 1
                undue[undue_count] = old_place
            end
        else
            ids[id_count + 1], ids[id_count + 2] = '0', id
            id_count = id_count + 2
        end
        if not is_kept then
            rows[row_count + 1], rows[row_count + 2] = id, value
            row_count = row_count + 2
            due[due_count + 1], due[due_count + 2] = '0', place
            due_count = due_count + 2
        end
    end
    for i = put + 1, put + removed do
        local old, id, revision = olds[i], ARGV[at + i - 1], ARGV[at + put + removed + i - 1]
        if old and is_newer(old) then
            return { 'newer', id }
        elseif old and is_alarm(old) and not is_greater(old, 2, revision, 1) then
            gone_count, undue_count = gone_count + 1, undue_count + 1
            gone[gone_count] = id
            undue[undue_count] = sub(old, 18, 25) .. id
        end
    end
end

local function write_alarms(key)
    local ALARMS, DUE, IDS = KEYS[key], KEYS[key + 1], KEYS[key + 2]
    -- Old places go before new ones come: the two may be equal.
    change('ZREM', DUE, undue, 1, undue_count)
    change('HDEL', ALARMS, gone, 1, gone_count)
    change('ZREM', IDS, gone, 1, gone_count)
    change('HSET', ALARMS, rows, 1, row_count)
    change('ZADD', DUE, due, 1, due_count)
    change('ZADD', IDS, ids, 1, id_count)
end

local progress, progress_count, taken, taken_ids, taken_count = {}, 0, {}, {}, 0

local function check_messages(key, put, removed, at)
    local ARRIVED = KEYS[key + 1]
    local found = lookup('ZMSCORE', ARRIVED, at, put + removed)
    local refused = check('HLEN', KEYS[key]) or found.err and wrong_type(ARRIVED) or check('HLEN', KEYS[key + 2])
    if refused then
        return refused
    end
    progress_count, taken_count = 0, 0
    for i = 1, put do
        if found[i] then
            progress[progress_count + 1] = sub(ARGV[at + i - 1], 9)
            progress[progress_count + 2] = ARGV[at + put + removed + i - 1]
            progress_count = progress_count + 2
        end
    end
    for i = put + 1, put + removed do
        if found[i] then
            local member = ARGV[at + i - 1]
            taken_count = taken_count + 1
            taken[taken_count], taken_ids[taken_count] = member, sub(member, 9)
        end
    end
end

local function write_messages(key)
    local INBOX, ARRIVED, PROGRESS = KEYS[key], KEYS[key + 1], KEYS[key + 2]
    change('HSET', PROGRESS, progress, 1, progress_count)
    change('ZREM', ARRIVED, taken, 1, taken_count)
    change('HDEL', INBOX, taken_ids, 1, taken_count)
    change('HDEL', PROGRESS, taken_ids, 1, taken_count)
end

-- Dead letters, and values.
local fields, members = {}, {}

local function check_rows(key)
    return check('HLEN', KEYS[key]) or check('ZCARD', KEYS[key + 1])
end

local function write_rows(key, put, removed, at)
    for i = 1, put do
        local name = ARGV[at + i - 1]
        fields[2 * i - 1], fields[2 * i] = name, ARGV[at + put + removed + i - 1]
        members[2 * i - 1], members[2 * i] = '0', name
    end
    change('HSET', KEYS[key], fields, 1, 2 * put)
    change('ZADD', KEYS[key + 1], members, 1, 2 * put)
    change('HDEL', KEYS[key], ARGV, at + put, removed)
    change('ZREM', KEYS[key + 1], ARGV, at + put, removed)
end

local checks = { check_alarms, check_messages, check_rows, check_rows }
local writes = { write_alarms, write_messages, write_rows, write_rows }

-- For each kind of rows that a batch changes: the numbers of rows put and of rows removed, and where its keys and its arguments begin behind
-- those of the batch. Batches are much alike, so what a text says is kept.
local known_counts = {}
local function read_counts(text)
    local counts = known_counts[text]
    if counts then
        return counts
    end
    counts = { keys = 1, arguments = 3 }
    for number, put, removed in string.gmatch(text, '(%d) (%d+) (%d+)') do
        number, put, removed = tonumber(number), tonumber(put), tonumber(removed)
        counts[#counts + 1] = { number = number, put = put, removed = removed, key = counts.keys, at = counts.arguments }
        counts.keys = counts.keys + (number <= 2 and 3 or 2)
        counts.arguments = counts.arguments + 2 * put + (number == 1 and 2 or 1) * removed
    end
    known_counts[text] = counts
    return counts
end

local function apply(key, at, counts)
    local OWN, epoch, acknowledged = KEYS[key], ARGV[at], ARGV[at + 1]
    local own = pcall('HMGET', OWN, 'epoch', 'owner', 'ended', SEQ_FIELD)
    if own.err then
        return wrong_type(OWN)
    elseif own[1] ~= epoch or own[2] ~= INCARNATION or own[3] then
        return { 'fenced', own[1] or '0', own[2] or '' }
    end
    local last = own[4]
    if acknowledged ~= '' and last ~= acknowledged and (not last or is_smaller(last, acknowledged)) then
        return { 'lost', last or '' }
    elseif last == SEQ then
        return 1
    elseif last and is_smaller(SEQ, last) then
        return { 'stale', last }
    end
    for i = 1, #counts do
        local kind = counts[i]
        local refused = checks[kind.number](key + kind.key, kind.put, kind.removed, at + kind.at)
        if refused then
            return refused
        end
    end
    -- From here on nothing is refused.
    call('HSET', OWN, SEQ_FIELD, SEQ)
    for i = 1, #counts do
        local kind = counts[i]
        writes[kind.number](key + kind.key, kind.put, kind.removed, at + kind.at)
    end
    return 1
end

local answers, key, at = {}, 1, 4
while at <= #ARGV do
    local counts = read_counts(ARGV[at + 2])
    answers[#answers + 1] = apply(key, at, counts)
    key, at = key + counts.keys, at + counts.arguments
end
return answers
