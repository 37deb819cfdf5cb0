-- The first rows of a range of one instance. A row comes if it is the first, or all up to and with it have no more than so many bytes; `found` is
-- how many there were before that. What is left out is not fetched: its length is in its row.
SELECT a.found, a.interface, a.instance, a.id, a.due, a.scheduled_at, a.rev_epoch, a.rev_counter, a.attempt, a.crashes, a.started,
    a.last_error, a.meta, a.format
FROM (
    SELECT a.*, count(*) OVER () AS found, row_number() OVER nth AS nth,
        sum(octet_length(a.meta) + octet_length(coalesce(a.last_error, ''))) OVER nth AS total
    FROM (
        SELECT * FROM {s}.alarm a
        WHERE a.shard = $1 AND a.interface = $2 AND a.instance = $3 AND a.id >= $4 AND {end}
        ORDER BY a.id
        LIMIT $5
    ) a
    WINDOW nth AS (ORDER BY a.id ROWS UNBOUNDED PRECEDING)
) a
WHERE a.nth = 1 OR a.total <= $6
ORDER BY a.id
