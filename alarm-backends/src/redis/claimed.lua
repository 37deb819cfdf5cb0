-- The shards that any life of a host may ever have owned. KEYS: claimed by this host.

return redis.call('SMEMBERS', KEYS[1])
