-- Inserts one message in the caller's own transaction, unless one with its ID is there, and nudges whoever watches when that
-- commits. No shard: no host of this store has ever started, or it hashes IDs in another way.
WITH fleet AS (
    SELECT div($1::text::numeric * f.shard_count, 18446744073709551616)::integer AS shard, {s}.now_ms() AS now
    FROM {s}.fleet f WHERE f.hash_version = $2
), inserted AS (
    INSERT INTO {s}.inbox (shard, interface, instance, id, arrived, due, headers, body)
        SELECT f.shard, $3, $4, coalesce($5, gen_random_uuid()::text), f.now, f.now, $6, $7 FROM fleet f
        ON CONFLICT (shard, interface, instance, id) DO NOTHING
        RETURNING pg_notify('{channel}', shard::text)::text
)
SELECT (SELECT f.shard FROM fleet f) AS shard, EXISTS(SELECT FROM inserted) AS inserted
