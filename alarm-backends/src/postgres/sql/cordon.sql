-- Marks one life of a host, or takes the mark away; whether it is a member. Who changes members holds the lock of the fleet's row, and a host that
-- was changed before this got it is looked at again.
WITH fleet AS MATERIALIZED (
    SELECT FROM {s}.fleet FOR UPDATE
), marked AS (
    UPDATE {s}.host h SET is_cordoned = $2 FROM fleet
        WHERE h.incarnation = $1 AND h.is_member AND NOT h.ended AND h.lease_until > {s}.now_ms() AND h.is_cordoned <> $2
        RETURNING true
), told AS MATERIALIZED (
    SELECT {s}.members_changed()::text FROM marked
)
SELECT EXISTS (SELECT FROM told) OR EXISTS (
    SELECT FROM {s}.host h
    WHERE h.incarnation = $1 AND h.is_member AND NOT h.ended AND h.lease_until > {s}.now_ms() AND h.is_cordoned = $2
) AS is_there
