-- Refuses a write to a row of a newer format: what that means cannot be known here.
CREATE FUNCTION {s}.refuse_newer(what text, interface text, instance text, id text, format smallint) RETURNS boolean
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION '% %/% % is stored in the newer format %', what, interface, instance, id, format USING ERRCODE = '22000';
END
$$;

-- A group commit of one lane: all of it in one call, so in one round trip and one transaction.
--
-- The first statement changes the lane's fence row and so waits for a claim or release that is under way (they change it
-- too). Only then, *in a statement of its own*, are the epochs looked at: under READ COMMITTED each statement of a VOLATILE
-- function sees what was committed before the statement began, so the loser of that claim sees its loss. And a claim that
-- comes later waits for this row until this write has ended. A single statement with data-modifying CTEs would read the
-- epochs as they were before it waited.
--
-- A repeat changes the row as well (to what it was), so that answering "done" waits for the same replicas as the write did.
--
-- A row of a newer format than this version writes is never written over: the whole write is refused.
--
-- p_known: the lane's greatest number that was answered as done. A store with a smaller one has lost that write, and takes none.
-- taken: the lane's greatest number; greater than p_seq if this write is stale, smaller than p_known if the store has lost one. NULL
-- for an incarnation that ended.
-- fenced, newest: the shards that are not the writer's under the epoch given, and their epochs. The rest was written.
CREATE FUNCTION {s}.write(
    p_incarnation bigint, p_lane integer, p_seq bigint, p_batches {s}.batch[],
    p_alarm_puts {s}.alarm_put[], p_alarm_removes {s}.alarm_remove[],
    p_message_puts {s}.message_put[], p_message_removes {s}.message_remove[],
    p_dead_puts {s}.dead_put[], p_dead_removes {s}.dead_remove[],
    p_value_puts {s}.value_put[], p_value_removes {s}.value_remove[], p_known bigint,
    OUT taken bigint, OUT fenced integer[], OUT newest bigint[]
)
LANGUAGE plpgsql VOLATILE
-- Every statement here is a walk along an index. A plan made while the tables were empty would say otherwise, and stay.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    is_new boolean;
BEGIN
    LOOP
        UPDATE {s}.fence f SET seq = p_seq
            WHERE f.incarnation = p_incarnation AND f.lane = p_lane AND f.seq < p_seq AND f.seq >= p_known
            RETURNING f.seq INTO taken;
        is_new := FOUND;
        EXIT WHEN is_new;
        UPDATE {s}.fence f SET seq = f.seq
            WHERE f.incarnation = p_incarnation AND f.lane = p_lane
            RETURNING f.seq INTO taken;
        EXIT WHEN FOUND;
        -- The first write of this lane, or of an incarnation that has ended. A claim locks the loser's host row before it
        -- looks for fence rows, so none appears behind its back.
        PERFORM FROM {s}.host h WHERE h.incarnation = p_incarnation AND NOT h.ended FOR KEY SHARE;
        EXIT WHEN NOT FOUND;
        INSERT INTO {s}.fence VALUES (p_incarnation, p_lane, 0) ON CONFLICT DO NOTHING;
    END LOOP;

    SELECT coalesce(array_agg(b.shard), '{}'), coalesce(array_agg(coalesce(s.epoch, 0)), '{}')
        INTO fenced, newest
        FROM unnest(p_batches) b LEFT JOIN {s}.shard s ON s.shard = b.shard
        WHERE taken IS NULL OR s.owner IS DISTINCT FROM p_incarnation OR s.epoch IS DISTINCT FROM b.epoch;

    IF NOT is_new THEN
        RETURN;
    END IF;

    IF cardinality(p_alarm_puts) > 0 THEN
        INSERT INTO {s}.alarm AS a
            SELECT r.*, 1 FROM unnest(p_alarm_puts) r WHERE r.shard <> ALL (fenced)
            ON CONFLICT (shard, interface, instance, id) DO UPDATE SET
                due = EXCLUDED.due, scheduled_at = EXCLUDED.scheduled_at, rev_epoch = EXCLUDED.rev_epoch,
                rev_counter = EXCLUDED.rev_counter, attempt = EXCLUDED.attempt, crashes = EXCLUDED.crashes,
                started = EXCLUDED.started, last_error = EXCLUDED.last_error, meta = EXCLUDED.meta,
                format = EXCLUDED.format
            WHERE CASE
                WHEN a.format > 1 THEN {s}.refuse_newer('alarm', a.interface, a.instance, a.id, a.format)
                ELSE (a.rev_epoch, a.rev_counter) <= (EXCLUDED.rev_epoch, EXCLUDED.rev_counter)
            END;
    END IF;
    IF cardinality(p_alarm_removes) > 0 THEN
        DELETE FROM {s}.alarm a USING unnest(p_alarm_removes) r
            WHERE a.shard = r.shard AND a.interface = r.interface AND a.instance = r.instance AND a.id = r.id
            AND CASE
                WHEN r.shard = ANY (fenced) THEN false
                WHEN a.format > 1 THEN {s}.refuse_newer('alarm', a.interface, a.instance, a.id, a.format)
                ELSE (a.rev_epoch, a.rev_counter) <= (r.rev_epoch, r.rev_counter)
            END;
    END IF;
    IF cardinality(p_message_puts) > 0 THEN
        UPDATE {s}.inbox i
            SET due = r.due, attempt = r.attempt, crashes = r.crashes, started = r.started, last_error = r.last_error
            FROM unnest(p_message_puts) r
            WHERE r.shard <> ALL (fenced) AND i.arrived = r.arrived AND i.format = 1
            AND i.shard = r.shard AND i.interface = r.interface AND i.instance = r.instance AND i.id = r.id;
    END IF;
    IF cardinality(p_message_removes) > 0 THEN
        DELETE FROM {s}.inbox i USING unnest(p_message_removes) r
            WHERE r.shard <> ALL (fenced) AND i.arrived = r.arrived
            AND i.shard = r.shard AND i.interface = r.interface AND i.instance = r.instance AND i.id = r.id;
    END IF;
    IF cardinality(p_dead_puts) > 0 THEN
        INSERT INTO {s}.dead
            SELECT r.*, 1 FROM unnest(p_dead_puts) r WHERE r.shard <> ALL (fenced)
            ON CONFLICT (shard, died_at, interface, instance, is_message, id) DO UPDATE SET
                reason = EXCLUDED.reason, due = EXCLUDED.due, scheduled_at = EXCLUDED.scheduled_at,
                rev_epoch = EXCLUDED.rev_epoch, rev_counter = EXCLUDED.rev_counter, arrived = EXCLUDED.arrived,
                headers = EXCLUDED.headers, attempt = EXCLUDED.attempt, crashes = EXCLUDED.crashes,
                started = EXCLUDED.started, last_error = EXCLUDED.last_error, body = EXCLUDED.body,
                format = EXCLUDED.format;
    END IF;
    IF cardinality(p_dead_removes) > 0 THEN
        DELETE FROM {s}.dead d USING unnest(p_dead_removes) r
            WHERE r.shard <> ALL (fenced)
            AND d.shard = r.shard AND d.died_at = r.died_at AND d.interface = r.interface
            AND d.instance = r.instance AND d.is_message = r.is_message AND d.id = r.id;
    END IF;
    IF cardinality(p_value_puts) > 0 THEN
        INSERT INTO {s}.storage
            SELECT r.*, 1 FROM unnest(p_value_puts) r WHERE r.shard <> ALL (fenced)
            ON CONFLICT (shard, interface, instance, key) DO UPDATE SET
                value = EXCLUDED.value, format = EXCLUDED.format;
    END IF;
    IF cardinality(p_value_removes) > 0 THEN
        DELETE FROM {s}.storage v USING unnest(p_value_removes) r
            WHERE r.shard <> ALL (fenced)
            AND v.shard = r.shard AND v.interface = r.interface AND v.instance = r.instance AND v.key = r.key;
    END IF;
END
$$;
