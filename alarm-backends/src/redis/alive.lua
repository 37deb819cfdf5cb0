-- Answers what the store knows of one life of a host; and, if it renews, notes what it says of itself and tells who else holds a lease.
--
-- KEYS: fleet, lives, started, members, gone. ARGV: incarnation; to renew: lease in ms, channel, and what the host says of itself as in enter.lua.

local fleet = redis.call('HMGET', KEYS[1], 'id', 'dropped')
local life, host, started, is_last = read_life(KEYS[2], KEYS[3], ARGV[1])
local time = redis.call('TIME')
local answer = { fleet[1] or '', life or '', started or '', fleet[2] or '0', time[1], time[2] }
if #ARGV > 1 then
    local members, now = read_members(KEYS[4]), millis(time)
    local has_changed = end_members(KEYS[4], KEYS[5], members, now)
    if is_last then
        local says = { address = ARGV[4], build = ARGV[5], leaving = ARGV[6], live = ARGV[7], placement = ARGV[8] }
        has_changed = note_member(KEYS[4], members, ARGV[1], host, now, tonumber(ARGV[2]), says) or has_changed
    end
    if has_changed then
        members_changed(KEYS[1], ARGV[3])
    end
    answer_members(answer, KEYS[1], members)
end
return answer
