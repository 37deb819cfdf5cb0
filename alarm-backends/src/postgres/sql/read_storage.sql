-- The first rows of a range of one instance. A row comes if it is the first, or all up to and with it have no more than so many bytes; `found` is
-- how many there were before that. What is left out is not fetched: its length is in its row.
SELECT v.found, v.key, v.value, v.format
FROM (
    SELECT v.*, count(*) OVER () AS found, row_number() OVER nth AS nth,
        sum(octet_length(v.value)) OVER nth AS total
    FROM (
        SELECT * FROM {s}.storage v
        WHERE v.shard = $1 AND v.interface = $2 AND v.instance = $3 AND v.key >= $4 AND {end}
        ORDER BY v.key
        LIMIT $5
    ) v
    WINDOW nth AS (ORDER BY v.key ROWS UNBOUNDED PRECEDING)
) v
WHERE v.nth = 1 OR v.total <= $6
ORDER BY v.key
