-- Uses every command that the other scripts write with, on a key that nothing else uses: a right that is missing shows
-- here, and not in the middle of a commit. Answers the fleet's record of the steps that have been made on its layout (steps.rs), if there is a fleet.
-- KEYS: probe, fleet.

local key = KEYS[1]
redis.call('DEL', key)
redis.call('HSET', key, 'a', '1')
redis.call('HINCRBY', key, 'a', 1)
redis.call('HGET', key, 'a')
redis.call('HMGET', key, 'a')
redis.call('HGETALL', key)
redis.call('HEXISTS', key, 'a')
redis.call('HLEN', key)
redis.call('HDEL', key, 'a')
redis.call('ZADD', key, 0, 'a')
redis.call('ZCARD', key)
redis.call('ZMSCORE', key, 'a')
redis.call('ZRANGEBYLEX', key, '-', '+', 'LIMIT', 0, 1)
redis.call('ZREM', key, 'a')
redis.call('SADD', key, 'a')
redis.call('SCARD', key)
redis.call('SMEMBERS', key)
redis.call('DEL', key)
redis.call('RPUSH', key, 'a')
redis.call('LLEN', key)
redis.call('LPOP', key)
redis.call('TYPE', key)
redis.call('TIME')
return redis.call('HMGET', KEYS[2], 'id', 'step', 'needs', 'release')
