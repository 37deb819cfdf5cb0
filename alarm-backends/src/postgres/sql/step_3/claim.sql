-- As claim_2 of step 2, for a host that says something of itself.
--
-- Makes p_incarnation the owner of each shard that is free to take, and of the lease that covers them.
--
-- Locks are taken in one order by everyone: the fleet's row, hosts, fence rows, shards. The fence rows of those who lose
-- a shard are changed, not merely locked: a write of theirs waits here, and then sees the shard's new owner (see write.sql);
-- under a stricter isolation than READ COMMITTED it fails instead.
--
-- p_given_up, p_epochs: shards among p_shards that p_incarnation acts as an owner of no more, and the last epoch it had of each.
-- p_known: whether this life has claimed before. A store that does not know it then has lost that.
-- p_address, p_build, p_leaving, p_live, p_placement: what the host says of itself (members.sql).
-- verdict: 'granted', 'replaced', 'mismatch', 'placement' or 'lost'; nothing was written but after the first.
CREATE FUNCTION {s}.claim_3(
    p_incarnation bigint, p_host text, p_shards integer[], p_shard_count bigint, p_hash_version bigint,
    p_lease bigint, p_start boolean, p_known boolean, p_given_up integer[], p_epochs bigint[],
    p_address text, p_build text, p_leaving boolean, p_live boolean, p_placement bigint,
    OUT verdict text, OUT stored_shard_count bigint, OUT stored_hash_version bigint, OUT server_now bigint,
    OUT granted integer[], OUT epochs bigint[], OUT clean boolean[],
    OUT held integer[], OUT holders text[], OUT remaining bigint[], OUT store text
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    rivals bigint[];
    losers bigint[];
    forgotten bigint[];
BEGIN
    IF p_known AND NOT EXISTS (SELECT FROM {s}.host h WHERE h.incarnation = p_incarnation) THEN
        verdict := 'lost';
        RETURN;
    END IF;

    SELECT f.shard_count, f.hash_version INTO stored_shard_count, stored_hash_version FROM {s}.fleet f FOR UPDATE;
    IF stored_shard_count IS NULL THEN
        UPDATE {s}.fleet f SET shard_count = p_shard_count, hash_version = p_hash_version;
    ELSIF (stored_shard_count, stored_hash_version) <> (p_shard_count, p_hash_version) THEN
        verdict := 'mismatch';
        RETURN;
    END IF;
    -- Hosts of older programs go by a list, which is what their rows say.
    IF EXISTS (
        SELECT FROM {s}.host h
        WHERE NOT h.ended AND h.lease_until > {s}.now_ms() AND h.is_live <> p_live
        AND h.incarnation <> p_incarnation AND NOT (p_start AND h.name = p_host)
    ) THEN
        verdict := 'placement';
        RETURN;
    END IF;

    INSERT INTO {s}.host AS h VALUES (p_incarnation, p_host, {s}.now_ms() + p_lease)
        ON CONFLICT (incarnation) DO UPDATE SET lease_until = EXCLUDED.lease_until WHERE NOT h.ended;
    IF NOT FOUND THEN
        verdict := 'replaced';
        RETURN;
    END IF;

    -- Incarnations are random, and this one is the first that asks.
    UPDATE {s}.fleet f SET name = p_incarnation || '-' || {s}.now_ms() WHERE f.name IS NULL;
    store := (SELECT f.name FROM {s}.fleet f);

    IF p_start THEN
        rivals := ARRAY(
            SELECT h.incarnation FROM {s}.host h
            WHERE h.name = p_host AND h.incarnation <> p_incarnation AND NOT h.ended
            ORDER BY h.incarnation FOR UPDATE
        );
        UPDATE {s}.host h SET ended = true WHERE h.incarnation = ANY (rivals);
        DELETE FROM {s}.fence f WHERE f.incarnation = ANY (rivals);
    END IF;

    -- A renewal that commits while this waits for its row is seen: the condition is checked again on the row as it is then.
    losers := ARRAY(
        SELECT h.incarnation FROM {s}.host h
        WHERE h.incarnation <> p_incarnation
        AND (h.lease_until <= {s}.now_ms() OR (p_start AND h.name = p_host))
        AND EXISTS (SELECT FROM {s}.shard s WHERE s.owner = h.incarnation AND s.shard = ANY (p_shards))
        ORDER BY h.incarnation FOR UPDATE OF h
    );
    -- Its own writes under an epoch it gave up are such losers too.
    UPDATE {s}.fence f SET seq = f.seq
        WHERE f.incarnation = ANY (losers) OR (f.incarnation = p_incarnation AND p_given_up <> '{}');

    INSERT INTO {s}.shard AS s (shard, epoch, owner, clean)
        SELECT a.shard, 1, p_incarnation, true FROM unnest(p_shards) AS a (shard) ORDER BY a.shard
        ON CONFLICT (shard) DO UPDATE SET epoch = s.epoch + 1, owner = p_incarnation, clean = s.owner IS NULL
        WHERE s.owner IS NULL OR s.owner = ANY (losers)
        OR (s.owner = p_incarnation
            AND EXISTS (SELECT FROM unnest(p_given_up, p_epochs) AS g (shard, epoch) WHERE (g.shard, g.epoch) = (s.shard, s.epoch)));

    PERFORM {s}.note_member(p_incarnation, p_address, p_build, p_leaving, p_live, p_placement);
    IF p_live THEN
        -- Programs that know only lists would claim by one.
        UPDATE {s}.schema_version v SET version = 3 WHERE v.version < 3;
    END IF;

    -- Lives long over are forgotten, unless a shard still remembers them.
    forgotten := ARRAY(
        SELECT h.incarnation FROM {s}.host h
        WHERE h.lease_until < {s}.now_ms() - 7 * 86400000::bigint AND h.incarnation <> p_incarnation
        AND NOT EXISTS (SELECT FROM {s}.shard s WHERE s.owner = h.incarnation)
        ORDER BY h.incarnation FOR UPDATE OF h SKIP LOCKED
    );
    DELETE FROM {s}.fence f WHERE f.incarnation = ANY (forgotten);
    DELETE FROM {s}.host h WHERE h.incarnation = ANY (forgotten);

    verdict := 'granted';
    server_now := {s}.now_ms();
    SELECT
        coalesce(array_agg(a.shard ORDER BY a.place) FILTER (WHERE s.owner = p_incarnation), '{}'),
        coalesce(array_agg(s.epoch ORDER BY a.place) FILTER (WHERE s.owner = p_incarnation), '{}'),
        coalesce(array_agg(s.clean ORDER BY a.place) FILTER (WHERE s.owner = p_incarnation), '{}'),
        coalesce(array_agg(a.shard ORDER BY a.place) FILTER (WHERE s.owner <> p_incarnation), '{}'),
        coalesce(array_agg(h.name ORDER BY a.place) FILTER (WHERE s.owner <> p_incarnation), '{}'),
        coalesce(
            array_agg(greatest(h.lease_until - server_now, 0) ORDER BY a.place) FILTER (WHERE s.owner <> p_incarnation), '{}'
        )
        INTO granted, epochs, clean, held, holders, remaining
        FROM unnest(p_shards) WITH ORDINALITY AS a (shard, place)
        JOIN {s}.shard s ON s.shard = a.shard
        JOIN {s}.host h ON h.incarnation = s.owner;
END
$$;
