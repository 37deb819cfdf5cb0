-- The members: all whose lease is not over. Nothing is changed; the next host that claims or renews takes out the others, and counts that.
--
-- KEYS: fleet, members.

local time = redis.call('TIME')
local members, now = read_members(KEYS[2]), millis(time)
for life, row in pairs(members) do
    if is_over(row, now) then
        members[life] = nil
    end
end
local answer = { time[1], time[2] }
answer_members(answer, KEYS[1], members)
return answer
