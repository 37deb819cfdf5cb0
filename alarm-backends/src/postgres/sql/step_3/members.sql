-- Members: the hosts that hold a lease, and what each says of itself. The number in the fleet's row rises with each change of any of that but
-- the time left; whoever changes it holds that row's lock, and hints at it. A row without is_member is of a host that has left, has ended, or runs
-- a program that says nothing of itself.
ALTER TABLE {s}.fleet
    ADD COLUMN members bigint NOT NULL DEFAULT 0,
    -- The store's own, by which hosts know each other.
    ADD COLUMN name    text   COLLATE "C";
ALTER TABLE {s}.host
    ADD COLUMN is_member   boolean NOT NULL DEFAULT false,
    ADD COLUMN since       bigint  NOT NULL DEFAULT 0,
    ADD COLUMN address     text    COLLATE "C",
    ADD COLUMN build       text    COLLATE "C" NOT NULL DEFAULT '',
    ADD COLUMN is_leaving  boolean NOT NULL DEFAULT false,
    ADD COLUMN is_cordoned boolean NOT NULL DEFAULT false,
    ADD COLUMN is_live     boolean NOT NULL DEFAULT false,
    ADD COLUMN placement   bigint  NOT NULL DEFAULT 0;

-- Raises the number, and hints at it.
CREATE FUNCTION {s}.members_changed() RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    UPDATE {s}.fleet f SET members = f.members + 1;
    PERFORM pg_notify('{channel}', 'fleet');
END
$$;

-- Notes what a living host says of itself, and that the leases of others are over. The caller holds the lock of the fleet's row.
CREATE FUNCTION {s}.note_member(
    p_incarnation bigint, p_address text, p_build text, p_leaving boolean, p_live boolean, p_placement bigint
) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    says_new boolean;
BEGIN
    UPDATE {s}.host h SET
        since = CASE WHEN h.is_member THEN h.since ELSE {s}.now_ms() END, is_cordoned = h.is_member AND h.is_cordoned, is_member = true,
        address = p_address, build = p_build, is_leaving = p_leaving, is_live = p_live, placement = p_placement
        WHERE h.incarnation = p_incarnation AND NOT h.ended
        AND (NOT h.is_member OR (h.address, h.build, h.is_leaving, h.is_live, h.placement)
            IS DISTINCT FROM (p_address, p_build, p_leaving, p_live, p_placement));
    says_new := FOUND;
    UPDATE {s}.host h SET is_member = false WHERE h.is_member AND (h.ended OR h.lease_until <= {s}.now_ms());
    IF says_new OR FOUND THEN
        PERFORM {s}.members_changed();
    END IF;
END
$$;

-- The members at p_now, by name and then by life, and the number of the last change. The number is read first, so that it is never of a later list;
-- and a lease that has ended since is_member was last looked after counts until the next look, which changes list and number together.
CREATE FUNCTION {s}.members(
    p_now bigint, OUT members bigint, OUT lives bigint[], OUT names text[], OUT addresses text[], OUT builds text[], OUT leaving boolean[],
    OUT cordoned boolean[], OUT placements bigint[], OUT member_left bigint[], OUT member_up bigint[]
)
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    members := (SELECT f.members FROM {s}.fleet f);
    SELECT
        coalesce(array_agg(h.incarnation), '{}'), coalesce(array_agg(h.name), '{}'), coalesce(array_agg(h.address), '{}'),
        coalesce(array_agg(h.build), '{}'), coalesce(array_agg(h.is_leaving), '{}'), coalesce(array_agg(h.is_cordoned), '{}'),
        coalesce(array_agg(h.placement), '{}'), coalesce(array_agg(greatest(h.lease_until - p_now, 1)), '{}'),
        coalesce(array_agg(greatest(p_now - h.since, 0)), '{}')
        INTO lives, names, addresses, builds, leaving, cordoned, placements, member_left, member_up
        FROM (
            SELECT * FROM {s}.host h WHERE h.is_member AND NOT h.ended ORDER BY h.name, h.incarnation
        ) h;
END
$$;

-- As renew of step 1, for a host that says something of itself. Where that is nothing new and nobody's lease has ended, no lock is taken but that of
-- its own row.
CREATE FUNCTION {s}.renew_2(
    p_incarnation bigint, p_lease bigint, p_address text, p_build text, p_leaving boolean, p_live boolean, p_placement bigint,
    OUT renewed boolean, OUT is_known boolean, OUT server_now bigint, OUT owned integer[], OUT inbox integer[],
    OUT lanes integer[], OUT taken bigint[]
)
LANGUAGE plpgsql VOLATILE
SET enable_seqscan = off SET jit = off
AS $$
DECLARE
    changes boolean;
BEGIN
    changes := EXISTS (
        SELECT FROM {s}.host h
        WHERE (h.incarnation <> p_incarnation AND h.is_member AND (h.ended OR h.lease_until <= {s}.now_ms()))
        OR (h.incarnation = p_incarnation AND NOT h.ended
            AND (NOT h.is_member OR (h.address, h.build, h.is_leaving, h.is_live, h.placement)
                IS DISTINCT FROM (p_address, p_build, p_leaving, p_live, p_placement)))
    );
    IF changes THEN
        PERFORM FROM {s}.fleet FOR UPDATE;
    END IF;
    UPDATE {s}.host h SET lease_until = {s}.now_ms() + p_lease WHERE h.incarnation = p_incarnation AND NOT h.ended;
    renewed := FOUND;
    IF changes THEN
        PERFORM {s}.note_member(p_incarnation, p_address, p_build, p_leaving, p_live, p_placement);
    END IF;
    is_known := renewed OR EXISTS (SELECT FROM {s}.host h WHERE h.incarnation = p_incarnation);
    SELECT coalesce(array_agg(f.lane), '{}'), coalesce(array_agg(f.seq), '{}') INTO lanes, taken
        FROM {s}.fence f WHERE f.incarnation = p_incarnation;
    server_now := {s}.now_ms();
    owned := ARRAY(SELECT s.shard FROM {s}.shard s WHERE s.owner = p_incarnation ORDER BY s.shard);
    inbox := ARRAY(
        SELECT s.shard FROM {s}.shard s
        WHERE s.owner = p_incarnation
        AND (SELECT true FROM {s}.inbox i WHERE i.shard = s.shard LIMIT 1)
        ORDER BY s.shard
    );
END
$$;

-- As release of step 1; and a host that is leaving and owns nothing any more has left. Who waits for the shards is told.
CREATE FUNCTION {s}.release_2(p_incarnation bigint, p_shards integer[]) RETURNS void
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM {s}.release(p_incarnation, p_shards);
    UPDATE {s}.host h SET is_member = false, lease_until = least(h.lease_until, {s}.now_ms())
        WHERE h.incarnation = p_incarnation AND h.is_member AND h.is_leaving
        AND NOT EXISTS (SELECT FROM {s}.shard s WHERE s.owner = p_incarnation);
    IF FOUND THEN
        PERFORM {s}.members_changed();
    ELSIF p_shards <> '{}' THEN
        PERFORM pg_notify('{channel}', 'fleet');
    END IF;
END
$$;

-- Marks the members of a name, or takes the mark away; whether there is one.
CREATE FUNCTION {s}.cordon(p_host text, p_cordoned boolean) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
BEGIN
    PERFORM FROM {s}.fleet FOR UPDATE;
    UPDATE {s}.host h SET is_cordoned = p_cordoned
        WHERE h.name = p_host AND h.is_member AND NOT h.ended AND h.lease_until > {s}.now_ms() AND h.is_cordoned <> p_cordoned;
    IF FOUND THEN
        PERFORM {s}.members_changed();
        RETURN true;
    END IF;
    RETURN EXISTS (SELECT FROM {s}.host h WHERE h.name = p_host AND h.is_member AND NOT h.ended AND h.lease_until > {s}.now_ms());
END
$$;
