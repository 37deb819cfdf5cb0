SELECT v.key, v.value, v.format
FROM {s}.storage v
WHERE v.shard = $1 AND v.interface = $2 AND v.instance = $3 AND v.key >= $4 AND {end}
ORDER BY v.key
LIMIT $5
