-- For each page its first rows strictly after a key, each page along the index.
SELECT p.page, d.interface, d.instance, d.id, d.died_at, d.is_message, d.reason, d.due, d.scheduled_at, d.rev_epoch,
    d.rev_counter, d.arrived, d.headers, d.attempt, d.crashes, d.started, d.last_error, d.body, d.format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[]) WITH ORDINALITY
    AS p (shard, died_at, interface, instance, is_message, id, most, page)
CROSS JOIN LATERAL (
    SELECT * FROM {s}.dead d
    WHERE d.shard = p.shard
    AND (d.died_at, d.interface, d.instance, d.is_message, d.id) > (p.died_at, p.interface, p.instance, p.is_message, p.id)
    ORDER BY d.died_at, d.interface, d.instance, d.is_message, d.id
    LIMIT p.most
) d
