-- Takes out a member that is leaving and owns nothing any more, or marks all of a name as cordoned. Answers whether there was one.
--
-- KEYS: fleet, members. ARGV: channel, 'left', incarnation; or channel, 'cordon', host, '1' or '0'.

local members = read_members(KEYS[2])
local has_changed = end_members(KEYS[2], members, millis(redis.call('TIME')), function(life, row)
    return ARGV[2] == 'left' and life == ARGV[3] and row.leaving == '1'
end)
local is_there = '0'
if ARGV[2] == 'cordon' then
    for life, row in pairs(members) do
        if row.name == ARGV[3] then
            is_there = '1'
            if row.cordoned ~= ARGV[4] then
                row.cordoned = ARGV[4]
                redis.call('HSET', KEYS[2], life, cjson.encode(row))
                has_changed = true
            end
        end
    end
end
if has_changed then
    members_changed(KEYS[1], ARGV[1])
end
return { is_there }
