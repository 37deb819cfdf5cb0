-- Gives up the shards that a life of a host owns under the epoch named with each. A text of its own and no function, so that programs of any
-- step can share the schema: one message, and so one transaction, in which each statement sees what was committed before it. Whoever changes an
-- owner holds the lock of the fleet's row.
DO $$
BEGIN
    PERFORM FROM {s}.fleet FOR UPDATE;
    PERFORM {s}.release_2({incarnation}, ARRAY(
        SELECT s.shard
        FROM unnest('{{shards}}'::integer[], '{{epochs}}'::bigint[]) AS g (shard, epoch)
        JOIN {s}.shard s ON s.shard = g.shard AND s.epoch = coalesce(g.epoch, s.epoch)
        WHERE s.owner = {incarnation}
    ));
    -- One that was leaving and owns nothing any more has left, and comes back by no claim or renewal that was held back.
    UPDATE {s}.host h SET ended = true
        WHERE h.incarnation = {incarnation} AND h.is_leaving AND NOT h.ended
        AND NOT EXISTS (SELECT FROM {s}.shard s WHERE s.owner = {incarnation});
    IF FOUND THEN
        DELETE FROM {s}.fence f WHERE f.incarnation = {incarnation};
    END IF;
END
$$
