-- For each page its first rows strictly after a key, each page along the index.
SELECT p.page, a.interface, a.instance, a.id, a.due, a.scheduled_at, a.rev_epoch, a.rev_counter, a.attempt, a.crashes,
    a.started, a.last_error, a.meta, a.format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[])
    WITH ORDINALITY
    AS p (shard, due, interface, instance, is_message, id, most, page)
CROSS JOIN LATERAL (
    SELECT * FROM {s}.alarm a
    WHERE a.shard = p.shard AND (a.due, a.interface, a.instance, a.id) > (p.due, p.interface, p.instance, p.id)
    ORDER BY a.due, a.interface, a.instance, a.id
    LIMIT p.most
) a
