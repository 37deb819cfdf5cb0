-- For each page its first keys strictly after one, each page along the index, in the shape of rows.
SELECT p.page, i.found, i.interface, i.instance, i.id, i.arrived, i.arrived AS due, 0::bigint AS attempt, 0::bigint AS crashes,
    false AS started, NULL::text AS last_error, '[]'::bytea AS headers, ''::bytea AS body, 1::smallint AS format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[], $8::bigint[])
    WITH ORDINALITY
    AS p (shard, arrived, interface, instance, is_message, id, most, bytes, page)
CROSS JOIN LATERAL (
    SELECT i.*, count(*) OVER () AS found
    FROM (
        SELECT i.interface, i.instance, i.id, i.arrived FROM {s}.inbox i
        WHERE i.shard = p.shard AND (i.arrived, i.interface, i.instance, i.id) > (p.arrived, p.interface, p.instance, p.id)
        ORDER BY i.arrived, i.interface, i.instance, i.id
        LIMIT p.most
    ) i
    ORDER BY i.arrived, i.interface, i.instance, i.id
) i
