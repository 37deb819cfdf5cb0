-- For each page its first rows strictly after a key, each page along the index. A row comes if it is the first, or all up to and with it have no
-- more than so many bytes; `found` is how many there were before that. What is left out is not fetched: its length is in its row.
SELECT p.page, a.found, a.interface, a.instance, a.id, a.due, a.scheduled_at, a.rev_epoch, a.rev_counter, a.attempt, a.crashes,
    a.started, a.last_error, a.meta, a.format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[], $8::bigint[])
    WITH ORDINALITY
    AS p (shard, due, interface, instance, is_message, id, most, bytes, page)
CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT a.*, count(*) OVER () AS found, row_number() OVER nth AS nth,
            sum(octet_length(a.meta) + octet_length(coalesce(a.last_error, ''))) OVER nth AS total
        FROM (
            SELECT * FROM {s}.alarm a
            WHERE a.shard = p.shard AND (a.due, a.interface, a.instance, a.id) > (p.due, p.interface, p.instance, p.id)
            ORDER BY a.due, a.interface, a.instance, a.id
            LIMIT p.most
        ) a
        WINDOW nth AS (ORDER BY a.due, a.interface, a.instance, a.id ROWS UNBOUNDED PRECEDING)
    ) a
    WHERE a.nth = 1 OR a.total <= p.bytes
    ORDER BY a.due, a.interface, a.instance, a.id
) a
