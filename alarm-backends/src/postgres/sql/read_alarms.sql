SELECT a.interface, a.instance, a.id, a.due, a.scheduled_at, a.rev_epoch, a.rev_counter, a.attempt, a.crashes, a.started,
    a.last_error, a.meta, a.format
FROM {s}.alarm a
WHERE a.shard = $1 AND a.interface = $2 AND a.instance = $3 AND a.id >= $4 AND {end}
ORDER BY a.id
LIMIT $5
