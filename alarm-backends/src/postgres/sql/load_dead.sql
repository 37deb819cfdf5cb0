-- For each page its first rows strictly after a key, each page along the index. A row comes if it is the first, or all up to and with it have no
-- more than so many bytes; `found` is how many there were before that. What is left out is not fetched: its length is in its row.
SELECT p.page, d.found, d.interface, d.instance, d.id, d.died_at, d.is_message, d.reason, d.due, d.scheduled_at, d.rev_epoch,
    d.rev_counter, d.arrived, d.headers, d.attempt, d.crashes, d.started, d.last_error, d.body, d.format
FROM unnest($1::integer[], $2::bigint[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::bigint[], $8::bigint[]) WITH ORDINALITY
    AS p (shard, died_at, interface, instance, is_message, id, most, bytes, page)
CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT d.*, count(*) OVER () AS found, row_number() OVER nth AS nth,
            sum(octet_length(d.body) + octet_length(coalesce(d.headers, '')) + octet_length(d.reason)
            + octet_length(coalesce(d.last_error, ''))) OVER nth AS total
        FROM (
            SELECT * FROM {s}.dead d
            WHERE d.shard = p.shard
            AND (d.died_at, d.interface, d.instance, d.is_message, d.id) > (p.died_at, p.interface, p.instance, p.is_message, p.id)
            ORDER BY d.died_at, d.interface, d.instance, d.is_message, d.id
            LIMIT p.most
        ) d
        WINDOW nth AS (ORDER BY d.died_at, d.interface, d.instance, d.is_message, d.id ROWS UNBOUNDED PRECEDING)
    ) d
    WHERE d.nth = 1 OR d.total <= p.bytes
    ORDER BY d.died_at, d.interface, d.instance, d.is_message, d.id
) d
