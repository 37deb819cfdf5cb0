-- What the store knows of one life of a host.
--
-- KEYS: fleet, lives, started. ARGV: incarnation.

local id = redis.call('HGET', KEYS[1], 'id')
local life = redis.call('HGET', KEYS[2], ARGV[1])
local started = life and redis.call('HGET', KEYS[3], string.match(life, '^%d+ (.*)$'))
local time = redis.call('TIME')
return { id or '', life or '', started or '', time[1], time[2] }
