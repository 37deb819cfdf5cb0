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
--       The counts are one text: how many alarms are put and how many removed, then for each other kind its number, from 2, and the same two,
--       all with a space between.
--
-- A script that fails midway keeps what it has written. So of each batch everything that can be refused is found out first: owner,
-- sequence, the type of each key, each alarm's present revision. What is written then cannot fail any more, but the first of it, which is
-- refused as a whole.
--
-- Numbers of 64 bits come as text or as bytes: Lua's own are doubles. Text is never compared by `<`, which follows the
-- server's locale.
--
-- Every call makes all functions and tables anew, and what a function takes from around it costs most: so what any batch needs is written out in
-- the loop at the end, functions take everything as arguments, and what few batches need is made when the first of them comes. Most batches put a
-- single alarm, so nothing is called for none, and for one without a list.

local KEYS, ARGV, call, pcall = KEYS, ARGV, redis.call, redis.pcall
local sub, type, unpack, min = string.sub, type, unpack, math.min
local INCARNATION, SEQ, SEQ_FIELD = ARGV[1], ARGV[3], 'seq:' .. ARGV[2]
-- More arguments than this do not fit on Lua's stack.
local MOST = 4000

-- Tells whether decimal `a` is smaller than decimal `b`; neither has leading zeros, nor more than twenty digits.
local function is_smaller(a, b)
    if #a ~= #b then
        return #a < #b
    end
    local a_high, b_high = tonumber(a:sub(1, 10)), tonumber(b:sub(1, 10))
    if a_high ~= b_high then
        return a_high < b_high
    end
    return (tonumber(a:sub(11)) or 0) < (tonumber(b:sub(11)) or 0)
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
local function lookup(most, command, key, first, count)
    if count <= most then
        return redis.pcall(command, key, unpack(ARGV, first, first + count - 1))
    end
    local found = {}
    for from = 0, count - 1, most do
        local some = redis.pcall(command, key, unpack(ARGV, first + from, first + math.min(from + most, count) - 1))
        if some.err then
            return some
        end
        for i = 1, #some do
            found[from + i] = some[i]
        end
    end
    return found
end

local function change(most, command, key, list, first, count)
    local last = first + count - 1
    for from = first, last, most do
        redis.call(command, key, unpack(list, from, math.min(from + most - 1, last)))
    end
end

local function wrong_type(key)
    return { 'wrongtype', key, redis.call('TYPE', key).ok }
end

-- What a stored alarm is: layout (1), revision (16), due (8), row. Its place among the due is due and identity. What is neither of a newer version
-- nor an alarm is written over.
local function read_alarm(value)
    local layout, row = value:byte(1), value:byte(26)
    if layout and ((layout > 1 and layout < 32) or (layout == 1 and row and row > 1 and row < 32)) then
        return 'newer'
    end
    return layout == 1 and row and 'alarm'
end

-- Checks and writes of the other kinds of rows.
local function make_others(most, lookup, change, wrong_type)
    -- The refusal if a key is of another type than one that has a size by this command.
    local function check(size, key)
        return type(redis.pcall(size, key)) ~= 'number' and wrong_type(key)
    end

    local progress, progress_count, taken, taken_ids, taken_count = {}, 0, {}, {}, 0

    local function check_messages(key, put, removed, at)
        local ARRIVED = KEYS[key + 1]
        local found = lookup(most, 'ZMSCORE', ARRIVED, at, put + removed)
        local refused = check('HLEN', KEYS[key]) or found.err and wrong_type(ARRIVED) or check('HLEN', KEYS[key + 2])
        if refused then
            return refused
        end
        progress_count, taken_count = 0, 0
        for i = 1, put do
            if found[i] then
                progress[progress_count + 1] = ARGV[at + i - 1]:sub(9)
                progress[progress_count + 2] = ARGV[at + put + removed + i - 1]
                progress_count = progress_count + 2
            end
        end
        for i = put + 1, put + removed do
            if found[i] then
                local member = ARGV[at + i - 1]
                taken_count = taken_count + 1
                taken[taken_count], taken_ids[taken_count] = member, member:sub(9)
            end
        end
    end

    local function write_messages(key)
        local INBOX, ARRIVED, PROGRESS = KEYS[key], KEYS[key + 1], KEYS[key + 2]
        change(most, 'HSET', PROGRESS, progress, 1, progress_count)
        change(most, 'ZREM', ARRIVED, taken, 1, taken_count)
        change(most, 'HDEL', INBOX, taken_ids, 1, taken_count)
        change(most, 'HDEL', PROGRESS, taken_ids, 1, taken_count)
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
        change(most, 'HSET', KEYS[key], fields, 1, 2 * put)
        change(most, 'ZADD', KEYS[key + 1], members, 1, 2 * put)
        change(most, 'HDEL', KEYS[key], ARGV, at + put, removed)
        change(most, 'ZREM', KEYS[key + 1], ARGV, at + put, removed)
    end

    -- For each of these kinds that a text names: how to check and to write it, the numbers of rows put and of rows removed, and where its keys and
    -- its arguments begin behind those of the alarms.
    local function read(text)
        local kinds = { keys = 0, arguments = 0 }
        for number, put, removed in string.gmatch(text, '(%d) (%d+) (%d+)') do
            put, removed = tonumber(put), tonumber(removed)
            local is_message = number == '2'
            kinds[#kinds + 1] = {
                check = is_message and check_messages or check_rows,
                write = is_message and write_messages or write_rows,
                put = put,
                removed = removed,
                key = kinds.keys,
                at = kinds.arguments,
            }
            kinds.keys = kinds.keys + (is_message and 3 or 2)
            kinds.arguments = kinds.arguments + 2 * put + removed
        end
        return kinds
    end

    -- Batches are much alike, so what a text says is kept.
    local known = {}
    return function(text)
        local kinds = known[text] or read(text)
        known[text] = kinds
        return kinds
    end
end

-- Arguments of the commands that write the alarms of a batch, as far as they are counted there: the next batch writes over them.
local rows, due, ids, undue, gone = {}, {}, {}, {}, {}
local counts, put, removed, others, read_others
local answers, key, at, last_at = {}, 1, 4, #ARGV

while at <= last_at do
    if ARGV[at + 2] ~= counts then
        counts = ARGV[at + 2]
        local rest
        put, removed, rest = string.match(counts, '^(%d+) (%d+)(.*)$')
        put, removed, others = tonumber(put), tonumber(removed), nil
        if rest ~= '' then
            read_others = read_others or make_others(MOST, lookup, change, wrong_type)
            others = read_others(rest)
        end
    end
    local alarms, first = put + removed, at + 3
    local OWN, ALARMS, DUE, IDS = KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3]
    local other_key, other_at = key + (alarms > 0 and 4 or 1), first + 2 * alarms
    local answer

    local own, acknowledged = pcall('HMGET', OWN, 'epoch', 'owner', 'ended', SEQ_FIELD), ARGV[at + 1]
    local last = own[4]
    if own.err then
        answer = wrong_type(OWN)
    elseif own[1] ~= ARGV[at] or own[2] ~= INCARNATION or own[3] then
        answer = { 'fenced', own[1] or '0', own[2] or '' }
    elseif acknowledged ~= '' and last ~= acknowledged and (not last or is_smaller(last, acknowledged)) then
        answer = { 'lost', last or '' }
    elseif last == SEQ then
        answer = 1
    elseif last and is_smaller(SEQ, last) then
        answer = { 'stale', last }
    end

    local row_count, id_count, undue_count, gone_count = 0, 0, 0, 0
    if not answer and alarms > 0 then
        local olds = alarms == 1 and pcall('HMGET', ALARMS, ARGV[first]) or lookup(MOST, 'HMGET', ALARMS, first, alarms)
        if olds.err then
            answer = wrong_type(ALARMS)
        elseif type(pcall('ZCARD', DUE)) ~= 'number' then
            answer = wrong_type(DUE)
        end
        for i = 1, answer and 0 or alarms do
            local old, id, value = olds[i], ARGV[first + i - 1], ARGV[first + alarms + i - 1]
            local stored = old and read_alarm(old)
            if stored == 'newer' then
                answer = { 'newer', id }
                break
            elseif i > put then
                -- The value is the revision that is removed.
                if stored and not is_greater(old, 2, value, 1) then
                    gone_count, undue_count = gone_count + 1, undue_count + 1
                    gone[gone_count], undue[undue_count] = id, sub(old, 18, 25) .. id
                end
            elseif not (stored and is_greater(old, 2, value, 2)) then
                local place = sub(value, 18, 25) .. id
                rows[row_count + 1], rows[row_count + 2] = id, value
                due[row_count + 1], due[row_count + 2] = '0', place
                row_count = row_count + 2
                local old_place = stored and sub(old, 18, 25) .. id
                if not stored then
                    ids[id_count + 1], ids[id_count + 2] = '0', id
                    id_count = id_count + 2
                elseif old_place ~= place then
                    undue_count = undue_count + 1
                    undue[undue_count] = old_place
                end
            end
        end
        -- Else nothing is written there, or first of all.
        if not answer and gone_count > 0 and type(pcall('ZCARD', IDS)) ~= 'number' then
            answer = wrong_type(IDS)
        end
    end
    for i = 1, others and not answer and #others or 0 do
        local kind = others[i]
        answer = answer or kind.check(other_key + kind.key, kind.put, kind.removed, other_at + kind.at)
    end
    if not answer and id_count > 0 and type(pcall('ZADD', IDS, unpack(ids, 1, min(id_count, MOST)))) ~= 'number' then
        answer = wrong_type(IDS)
    end

    -- From here on nothing is refused.
    if not answer then
        call('HSET', OWN, SEQ_FIELD, SEQ)
        -- Old places go before new ones come: the two may be equal.
        if undue_count > 0 then
            change(MOST, 'ZREM', DUE, undue, 1, undue_count)
        end
        if gone_count > 0 then
            change(MOST, 'HDEL', ALARMS, gone, 1, gone_count)
            change(MOST, 'ZREM', IDS, gone, 1, gone_count)
        end
        if row_count == 2 then
            call('HSET', ALARMS, rows[1], rows[2])
            call('ZADD', DUE, '0', due[2])
        elseif row_count > 0 then
            change(MOST, 'HSET', ALARMS, rows, 1, row_count)
            change(MOST, 'ZADD', DUE, due, 1, row_count)
            change(MOST, 'ZADD', IDS, ids, MOST + 1, id_count - MOST)
        end
        for i = 1, others and #others or 0 do
            local kind = others[i]
            kind.write(other_key + kind.key, kind.put, kind.removed, other_at + kind.at)
        end
        answer = 1
    end

    answers[#answers + 1] = answer
    key, at = other_key + (others and others.keys or 0), other_at + (others and others.arguments or 0)
end
return answers
