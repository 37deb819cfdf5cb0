-- Marks one life of a host, or takes the mark away, if it is a member and the number of the last change of members is the one that was seen; whether it
-- has. Who changes members holds the lock of the fleet's row, whose number is read under that lock, and a host that was changed before this got it
-- is looked at again.
WITH fleet AS MATERIALIZED (
    SELECT f.members FROM {s}.fleet f FOR UPDATE
), marked AS (
    UPDATE {s}.host h SET is_cordoned = $2 FROM fleet
        WHERE fleet.members = $3 AND h.incarnation = $1 AND h.is_member AND NOT h.ended AND h.lease_until > {s}.now_ms()
        RETURNING true
), told AS MATERIALIZED (
    SELECT {s}.members_changed()::text FROM marked
)
SELECT EXISTS (SELECT FROM told) AS is_done
