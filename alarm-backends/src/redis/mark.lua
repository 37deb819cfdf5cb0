-- Takes out a member that is leaving and owns nothing any more, or marks one as cordoned if the number of the last change of members is the one that
-- was seen. Answers whether one was marked.
--
-- KEYS: fleet, members, lives, started, gone. ARGV: channel, 'left', incarnation; or channel, 'cordon', incarnation, '1' or '0', number seen.

local _, host, _, is_last = read_life(KEYS[3], KEYS[4], ARGV[3])
local members = read_members(KEYS[2])
local row = members[ARGV[3]]
local has_left = ARGV[2] == 'left' and row and row.leaving == '1'
local has_changed = end_members(KEYS[2], KEYS[5], members, millis(redis.call('TIME')), function(id)
    return has_left and id == ARGV[3]
end)
if has_left and is_last then
    -- As if a later life had started: no claim or renewal of this one that was held back brings it back.
    redis.call('HSET', KEYS[4], host, string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'births', 1)))
end
row = members[ARGV[3]]
-- Whoever ended just now has not been seen to.
local is_marked = ARGV[2] == 'cordon' and row and not has_changed and (redis.call('HGET', KEYS[1], 'members') or '0') == ARGV[5]
if is_marked then
    row.cordoned = ARGV[4]
    redis.call('HSET', KEYS[2], ARGV[3], cjson.encode(row))
    has_changed = true
end
if has_changed then
    members_changed(KEYS[1], ARGV[1])
end
return { is_marked and '1' or '0' }
