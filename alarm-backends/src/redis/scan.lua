-- Some rows in the order of their members, and whether there may be more.
--
-- KEYS: order, rows, and for messages their progress. Without rows only the members are answered.
-- ARGV: from and to (as ZRANGEBYLEX takes them), the most rows, the most bytes (of which the first row may have more), how many bytes of a
--       member stand in front of the field of its row.

local most, most_bytes, strip = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, most)
local answer, bytes = { #members == most and '1' or '0' }, 0
if not KEYS[2] then
    for i = 1, #members do
        answer[#answer + 1] = members[i]
        answer[#answer + 1] = false
        answer[#answer + 1] = false
    end
    return answer
end
for first = 1, #members, 20 do
    local fields = {}
    for i = first, math.min(first + 19, #members) do
        fields[#fields + 1] = string.sub(members[i], strip + 1)
    end
    local rows = redis.call('HMGET', KEYS[2], unpack(fields))
    local progress = KEYS[3] and redis.call('HMGET', KEYS[3], unpack(fields))
    for i = 1, #fields do
        bytes = bytes + #(rows[i] or '')
        if bytes > most_bytes and #answer > 1 then
            answer[1] = '1'
            return answer
        end
        answer[#answer + 1] = members[first + i - 1]
        answer[#answer + 1] = rows[i]
        answer[#answer + 1] = progress and progress[i] or false
    end
end
return answer
