-- For each page its first rows strictly after a key, each page along the index.
SELECT p.page, i.interface, i.instance, i.id, i.arrived, i.due, i.attempt, i.crashes, i.started, i.last_error, i.headers,
    i.body, i.format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[])
    WITH ORDINALITY
    AS p (shard, arrived, interface, instance, is_message, id, most, page)
CROSS JOIN LATERAL (
    SELECT * FROM {s}.inbox i
    WHERE i.shard = p.shard AND (i.arrived, i.interface, i.instance, i.id) > (p.arrived, p.interface, p.instance, p.id)
    ORDER BY i.arrived, i.interface, i.instance, i.id
    LIMIT p.most
) i
