-- Makes a lane's fence row before its first transaction begins, so that whether that was committed can be asked of the row.
-- An incarnation that has ended gets none.
INSERT INTO {s}.fence (incarnation, lane, seq)
    SELECT h.incarnation, $2::integer, 0 FROM {s}.host h WHERE h.incarnation = $1::bigint AND NOT h.ended FOR KEY SHARE
    ON CONFLICT DO NOTHING
