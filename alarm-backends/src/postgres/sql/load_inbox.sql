-- For each page its first rows strictly after a key, each page along the index. A row comes if it is the first, or all up to and with it have no
-- more than so many bytes; `found` is how many there were before that. What is left out is not fetched: its length is in its row.
SELECT p.page, i.found, i.interface, i.instance, i.id, i.arrived, i.due, i.attempt, i.crashes, i.started, i.last_error, i.headers,
    i.body, i.format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[], $8::bigint[])
    WITH ORDINALITY
    AS p (shard, arrived, interface, instance, is_message, id, most, bytes, page)
CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT i.*, count(*) OVER () AS found, row_number() OVER nth AS nth,
            sum(octet_length(i.body) + octet_length(i.headers) + octet_length(coalesce(i.last_error, ''))) OVER nth AS total
        FROM (
            SELECT * FROM {s}.inbox i
            WHERE i.shard = p.shard AND (i.arrived, i.interface, i.instance, i.id) > (p.arrived, p.interface, p.instance, p.id)
            ORDER BY i.arrived, i.interface, i.instance, i.id
            LIMIT p.most
        ) i
        WINDOW nth AS (ORDER BY i.arrived, i.interface, i.instance, i.id ROWS UNBOUNDED PRECEDING)
    ) i
    WHERE i.nth = 1 OR i.total <= p.bytes
    ORDER BY i.arrived, i.interface, i.instance, i.id
) i
