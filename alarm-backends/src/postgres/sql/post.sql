-- Inserts messages that are not there yet, tells which those were, and nudges whoever watches. Equal nudges of a transaction
-- are one.
INSERT INTO {s}.inbox (shard, interface, instance, id, arrived, due, headers, body)
    SELECT m.shard, m.interface, m.instance, m.id, t.now, t.now, m.headers, m.body
    FROM (SELECT {s}.now_ms() AS now OFFSET 0) t, unnest($1::{s}.message_new[]) m
    ON CONFLICT (shard, interface, instance, id) DO NOTHING
    RETURNING shard, interface, instance, id, pg_notify('{channel}', shard::text)::text
