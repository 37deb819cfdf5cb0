-- A dump (pg_dump --no-owner --inserts, without its comments) of a schema that commit 6e96dc5 made and filled.

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

CREATE SCHEMA stable_interfaces;

CREATE TYPE stable_interfaces.alarm_put AS (
	shard integer,
	interface text,
	instance text,
	id text,
	due bigint,
	scheduled_at bigint,
	rev_epoch bigint,
	rev_counter bigint,
	attempt bigint,
	crashes bigint,
	started boolean,
	last_error text,
	meta bytea
);

CREATE TYPE stable_interfaces.alarm_remove AS (
	shard integer,
	interface text,
	instance text,
	id text,
	rev_epoch bigint,
	rev_counter bigint
);

CREATE TYPE stable_interfaces.batch AS (
	shard integer,
	epoch bigint
);

CREATE TYPE stable_interfaces.dead_put AS (
	shard integer,
	died_at bigint,
	interface text,
	instance text,
	is_message boolean,
	id text,
	reason text,
	due bigint,
	scheduled_at bigint,
	rev_epoch bigint,
	rev_counter bigint,
	arrived bigint,
	headers bytea,
	attempt bigint,
	crashes bigint,
	started boolean,
	last_error text,
	body bytea
);

CREATE TYPE stable_interfaces.dead_remove AS (
	shard integer,
	died_at bigint,
	interface text,
	instance text,
	is_message boolean,
	id text
);

CREATE TYPE stable_interfaces.message_new AS (
	shard integer,
	interface text,
	instance text,
	id text,
	headers bytea,
	body bytea
);

CREATE TYPE stable_interfaces.message_put AS (
	shard integer,
	interface text,
	instance text,
	id text,
	arrived bigint,
	due bigint,
	attempt bigint,
	crashes bigint,
	started boolean,
	last_error text
);

CREATE TYPE stable_interfaces.message_remove AS (
	shard integer,
	interface text,
	instance text,
	id text,
	arrived bigint
);

CREATE TYPE stable_interfaces.value_put AS (
	shard integer,
	interface text,
	instance text,
	key text,
	value bytea
);

CREATE TYPE stable_interfaces.value_remove AS (
	shard integer,
	interface text,
	instance text,
	key text
);

CREATE FUNCTION stable_interfaces.claim(p_incarnation bigint, p_host text, p_shards integer[], p_shard_count bigint, p_hash_version bigint, p_lease bigint, p_start boolean, p_known boolean, OUT verdict text, OUT stored_shard_count bigint, OUT stored_hash_version bigint, OUT server_now bigint, OUT granted integer[], OUT epochs bigint[], OUT clean boolean[], OUT held integer[], OUT holders text[], OUT remaining bigint[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
DECLARE
    rivals bigint[];
    losers bigint[];
    forgotten bigint[];
BEGIN
    IF p_known AND NOT EXISTS (SELECT FROM "stable_interfaces".host h WHERE h.incarnation = p_incarnation) THEN
        verdict := 'lost';
        RETURN;
    END IF;

    SELECT f.shard_count, f.hash_version INTO stored_shard_count, stored_hash_version FROM "stable_interfaces".fleet f FOR UPDATE;
    IF stored_shard_count IS NULL THEN
        UPDATE "stable_interfaces".fleet f SET shard_count = p_shard_count, hash_version = p_hash_version;
    ELSIF (stored_shard_count, stored_hash_version) <> (p_shard_count, p_hash_version) THEN
        verdict := 'mismatch';
        RETURN;
    END IF;

    INSERT INTO "stable_interfaces".host AS h VALUES (p_incarnation, p_host, "stable_interfaces".now_ms() + p_lease)
        ON CONFLICT (incarnation) DO UPDATE SET lease_until = EXCLUDED.lease_until WHERE NOT h.ended;
    IF NOT FOUND THEN
        verdict := 'replaced';
        RETURN;
    END IF;

    IF p_start THEN
        rivals := ARRAY(
            SELECT h.incarnation FROM "stable_interfaces".host h
            WHERE h.name = p_host AND h.incarnation <> p_incarnation AND NOT h.ended
            ORDER BY h.incarnation FOR UPDATE
        );
        UPDATE "stable_interfaces".host h SET ended = true WHERE h.incarnation = ANY (rivals);
        DELETE FROM "stable_interfaces".fence f WHERE f.incarnation = ANY (rivals);
    END IF;

    -- A renewal that commits while this waits for its row is seen: the condition is checked again on the row as it is then.
    losers := ARRAY(
        SELECT h.incarnation FROM "stable_interfaces".host h
        WHERE h.incarnation <> p_incarnation
        AND (h.lease_until <= "stable_interfaces".now_ms() OR (p_start AND h.name = p_host))
        AND EXISTS (SELECT FROM "stable_interfaces".shard s WHERE s.owner = h.incarnation AND s.shard = ANY (p_shards))
        ORDER BY h.incarnation FOR UPDATE OF h
    );
    UPDATE "stable_interfaces".fence f SET seq = f.seq WHERE f.incarnation = ANY (losers);

    INSERT INTO "stable_interfaces".shard AS s (shard, epoch, owner, clean)
        SELECT a.shard, 1, p_incarnation, true FROM unnest(p_shards) AS a (shard) ORDER BY a.shard
        ON CONFLICT (shard) DO UPDATE SET epoch = s.epoch + 1, owner = p_incarnation, clean = s.owner IS NULL
        WHERE s.owner IS NULL OR s.owner = ANY (losers);

    -- Lives long over are forgotten, unless a shard still remembers them.
    forgotten := ARRAY(
        SELECT h.incarnation FROM "stable_interfaces".host h
        WHERE h.lease_until < "stable_interfaces".now_ms() - 7 * 86400000::bigint AND h.incarnation <> p_incarnation
        AND NOT EXISTS (SELECT FROM "stable_interfaces".shard s WHERE s.owner = h.incarnation)
        ORDER BY h.incarnation FOR UPDATE OF h SKIP LOCKED
    );
    DELETE FROM "stable_interfaces".fence f WHERE f.incarnation = ANY (forgotten);
    DELETE FROM "stable_interfaces".host h WHERE h.incarnation = ANY (forgotten);

    verdict := 'granted';
    server_now := "stable_interfaces".now_ms();
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
        JOIN "stable_interfaces".shard s ON s.shard = a.shard
        JOIN "stable_interfaces".host h ON h.incarnation = s.owner;
END
$$;

CREATE FUNCTION stable_interfaces.now_ms() RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;

CREATE FUNCTION stable_interfaces.readable(bytes bytea) RETURNS text
    LANGUAGE plpgsql IMMUTABLE
    AS $$
BEGIN
    RETURN convert_from(bytes, 'UTF8');
EXCEPTION WHEN OTHERS THEN
    RETURN encode(bytes, 'escape');
END
$$;

CREATE FUNCTION stable_interfaces.refuse_newer(what text, interface text, instance text, id text, format smallint) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% %/% % is stored in the newer format %', what, interface, instance, id, format USING ERRCODE = '22000';
END
$$;

CREATE FUNCTION stable_interfaces.release(p_incarnation bigint, p_shards integer[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
BEGIN
    PERFORM FROM "stable_interfaces".fleet FOR UPDATE;
    -- An ended life has released nothing: its handlers may have been running.
    PERFORM FROM "stable_interfaces".host h WHERE h.incarnation = p_incarnation AND NOT h.ended FOR UPDATE;
    IF FOUND THEN
        UPDATE "stable_interfaces".fence f SET seq = f.seq WHERE f.incarnation = p_incarnation;
        UPDATE "stable_interfaces".shard s SET owner = NULL WHERE s.owner = p_incarnation AND s.shard = ANY (p_shards);
    END IF;
END
$$;

CREATE FUNCTION stable_interfaces.renew(p_incarnation bigint, p_lease bigint, OUT renewed boolean, OUT is_known boolean, OUT server_now bigint, OUT owned integer[], OUT inbox integer[], OUT lanes integer[], OUT taken bigint[]) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
BEGIN
    UPDATE "stable_interfaces".host h SET lease_until = "stable_interfaces".now_ms() + p_lease WHERE h.incarnation = p_incarnation AND NOT h.ended;
    renewed := FOUND;
    is_known := renewed OR EXISTS (SELECT FROM "stable_interfaces".host h WHERE h.incarnation = p_incarnation);
    SELECT coalesce(array_agg(f.lane), '{}'), coalesce(array_agg(f.seq), '{}') INTO lanes, taken
        FROM "stable_interfaces".fence f WHERE f.incarnation = p_incarnation;
    server_now := "stable_interfaces".now_ms();
    owned := ARRAY(SELECT s.shard FROM "stable_interfaces".shard s WHERE s.owner = p_incarnation ORDER BY s.shard);
    inbox := ARRAY(
        SELECT s.shard FROM "stable_interfaces".shard s
        WHERE s.owner = p_incarnation
        AND (SELECT true FROM "stable_interfaces".inbox i WHERE i.shard = s.shard LIMIT 1)
        ORDER BY s.shard
    );
END
$$;

CREATE FUNCTION stable_interfaces.write(p_incarnation bigint, p_lane integer, p_seq bigint, p_batches stable_interfaces.batch[], p_alarm_puts stable_interfaces.alarm_put[], p_alarm_removes stable_interfaces.alarm_remove[], p_message_puts stable_interfaces.message_put[], p_message_removes stable_interfaces.message_remove[], p_dead_puts stable_interfaces.dead_put[], p_dead_removes stable_interfaces.dead_remove[], p_value_puts stable_interfaces.value_put[], p_value_removes stable_interfaces.value_remove[], p_known bigint, OUT taken bigint, OUT fenced integer[], OUT newest bigint[]) RETURNS record
    LANGUAGE plpgsql
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
DECLARE
    is_new boolean;
BEGIN
    LOOP
        UPDATE "stable_interfaces".fence f SET seq = p_seq
            WHERE f.incarnation = p_incarnation AND f.lane = p_lane AND f.seq < p_seq AND f.seq >= p_known
            RETURNING f.seq INTO taken;
        is_new := FOUND;
        EXIT WHEN is_new;
        UPDATE "stable_interfaces".fence f SET seq = f.seq
            WHERE f.incarnation = p_incarnation AND f.lane = p_lane
            RETURNING f.seq INTO taken;
        EXIT WHEN FOUND;
        -- The first write of this lane, or of an incarnation that has ended. A claim locks the loser's host row before it
        -- looks for fence rows, so none appears behind its back.
        PERFORM FROM "stable_interfaces".host h WHERE h.incarnation = p_incarnation AND NOT h.ended FOR KEY SHARE;
        EXIT WHEN NOT FOUND;
        INSERT INTO "stable_interfaces".fence VALUES (p_incarnation, p_lane, 0) ON CONFLICT DO NOTHING;
    END LOOP;

    SELECT coalesce(array_agg(b.shard), '{}'), coalesce(array_agg(coalesce(s.epoch, 0)), '{}')
        INTO fenced, newest
        FROM unnest(p_batches) b LEFT JOIN "stable_interfaces".shard s ON s.shard = b.shard
        WHERE taken IS NULL OR s.owner IS DISTINCT FROM p_incarnation OR s.epoch IS DISTINCT FROM b.epoch;

    IF NOT is_new THEN
        RETURN;
    END IF;

    IF cardinality(p_alarm_puts) > 0 THEN
        INSERT INTO "stable_interfaces".alarm AS a
            SELECT r.*, 1 FROM unnest(p_alarm_puts) r WHERE r.shard <> ALL (fenced)
            ON CONFLICT (shard, interface, instance, id) DO UPDATE SET
                due = EXCLUDED.due, scheduled_at = EXCLUDED.scheduled_at, rev_epoch = EXCLUDED.rev_epoch,
                rev_counter = EXCLUDED.rev_counter, attempt = EXCLUDED.attempt, crashes = EXCLUDED.crashes,
                started = EXCLUDED.started, last_error = EXCLUDED.last_error, meta = EXCLUDED.meta,
                format = EXCLUDED.format
            WHERE CASE
                WHEN a.format > 1 THEN "stable_interfaces".refuse_newer('alarm', a.interface, a.instance, a.id, a.format)
                ELSE (a.rev_epoch, a.rev_counter) <= (EXCLUDED.rev_epoch, EXCLUDED.rev_counter)
            END;
    END IF;
    IF cardinality(p_alarm_removes) > 0 THEN
        DELETE FROM "stable_interfaces".alarm a USING unnest(p_alarm_removes) r
            WHERE a.shard = r.shard AND a.interface = r.interface AND a.instance = r.instance AND a.id = r.id
            AND CASE
                WHEN r.shard = ANY (fenced) THEN false
                WHEN a.format > 1 THEN "stable_interfaces".refuse_newer('alarm', a.interface, a.instance, a.id, a.format)
                ELSE (a.rev_epoch, a.rev_counter) <= (r.rev_epoch, r.rev_counter)
            END;
    END IF;
    IF cardinality(p_message_puts) > 0 THEN
        UPDATE "stable_interfaces".inbox i
            SET due = r.due, attempt = r.attempt, crashes = r.crashes, started = r.started, last_error = r.last_error
            FROM unnest(p_message_puts) r
            WHERE r.shard <> ALL (fenced) AND i.arrived = r.arrived AND i.format = 1
            AND i.shard = r.shard AND i.interface = r.interface AND i.instance = r.instance AND i.id = r.id;
    END IF;
    IF cardinality(p_message_removes) > 0 THEN
        DELETE FROM "stable_interfaces".inbox i USING unnest(p_message_removes) r
            WHERE r.shard <> ALL (fenced) AND i.arrived = r.arrived
            AND i.shard = r.shard AND i.interface = r.interface AND i.instance = r.instance AND i.id = r.id;
    END IF;
    IF cardinality(p_dead_puts) > 0 THEN
        INSERT INTO "stable_interfaces".dead
            SELECT r.*, 1 FROM unnest(p_dead_puts) r WHERE r.shard <> ALL (fenced)
            ON CONFLICT (shard, died_at, interface, instance, is_message, id) DO UPDATE SET
                reason = EXCLUDED.reason, due = EXCLUDED.due, scheduled_at = EXCLUDED.scheduled_at,
                rev_epoch = EXCLUDED.rev_epoch, rev_counter = EXCLUDED.rev_counter, arrived = EXCLUDED.arrived,
                headers = EXCLUDED.headers, attempt = EXCLUDED.attempt, crashes = EXCLUDED.crashes,
                started = EXCLUDED.started, last_error = EXCLUDED.last_error, body = EXCLUDED.body,
                format = EXCLUDED.format;
    END IF;
    IF cardinality(p_dead_removes) > 0 THEN
        DELETE FROM "stable_interfaces".dead d USING unnest(p_dead_removes) r
            WHERE r.shard <> ALL (fenced)
            AND d.shard = r.shard AND d.died_at = r.died_at AND d.interface = r.interface
            AND d.instance = r.instance AND d.is_message = r.is_message AND d.id = r.id;
    END IF;
    IF cardinality(p_value_puts) > 0 THEN
        INSERT INTO "stable_interfaces".storage
            SELECT r.*, 1 FROM unnest(p_value_puts) r WHERE r.shard <> ALL (fenced)
            ON CONFLICT (shard, interface, instance, key) DO UPDATE SET
                value = EXCLUDED.value, format = EXCLUDED.format;
    END IF;
    IF cardinality(p_value_removes) > 0 THEN
        DELETE FROM "stable_interfaces".storage v USING unnest(p_value_removes) r
            WHERE r.shard <> ALL (fenced)
            AND v.shard = r.shard AND v.interface = r.interface AND v.instance = r.instance AND v.key = r.key;
    END IF;
END
$$;

CREATE FUNCTION stable_interfaces.write_last(p_mark text, p_limit bigint, p_incarnation bigint, p_lane integer, p_seq bigint, p_batches stable_interfaces.batch[], p_alarm_puts stable_interfaces.alarm_put[], p_alarm_removes stable_interfaces.alarm_remove[], p_message_puts stable_interfaces.message_put[], p_message_removes stable_interfaces.message_remove[], p_dead_puts stable_interfaces.dead_put[], p_dead_removes stable_interfaces.dead_remove[], p_value_puts stable_interfaces.value_put[], p_value_removes stable_interfaces.value_remove[], p_known bigint, OUT taken bigint, OUT fenced integer[], OUT newest bigint[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF current_setting('stable_interfaces.mark', true) IS DISTINCT FROM p_mark THEN
        RAISE EXCEPTION 'the application has ended the transaction by itself' USING
            ERRCODE = '22000', HINT = 'COMMIT and ROLLBACK are the library''s to say here.';
    END IF;
    -- Under a stricter one the write would not see a claim that came after the transaction began.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the application has changed the isolation of the transaction' USING ERRCODE = '22000';
    END IF;
    PERFORM set_config('idle_in_transaction_session_timeout', p_limit::text, true);
    SELECT w.taken, w.fenced, w.newest INTO taken, fenced, newest FROM "stable_interfaces".write(
        p_incarnation, p_lane, p_seq, p_batches, p_alarm_puts, p_alarm_removes, p_message_puts, p_message_removes,
        p_dead_puts, p_dead_removes, p_value_puts, p_value_removes, p_known
    ) w;
END
$$;

SET default_tablespace = '';

SET default_table_access_method = heap;

CREATE TABLE stable_interfaces.alarm (
    shard integer NOT NULL,
    interface text NOT NULL COLLATE pg_catalog."C",
    instance text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    due bigint NOT NULL,
    scheduled_at bigint NOT NULL,
    rev_epoch bigint NOT NULL,
    rev_counter bigint NOT NULL,
    attempt bigint NOT NULL,
    crashes bigint NOT NULL,
    started boolean NOT NULL,
    last_error text COLLATE pg_catalog."C",
    meta bytea NOT NULL,
    format smallint DEFAULT 1 NOT NULL
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0', autovacuum_analyze_scale_factor='0.1');

CREATE TABLE stable_interfaces.dead (
    shard integer NOT NULL,
    died_at bigint NOT NULL,
    interface text NOT NULL COLLATE pg_catalog."C",
    instance text NOT NULL COLLATE pg_catalog."C",
    is_message boolean NOT NULL,
    id text NOT NULL COLLATE pg_catalog."C",
    reason text NOT NULL COLLATE pg_catalog."C",
    due bigint NOT NULL,
    scheduled_at bigint,
    rev_epoch bigint,
    rev_counter bigint,
    arrived bigint,
    headers bytea,
    attempt bigint NOT NULL,
    crashes bigint NOT NULL,
    started boolean NOT NULL,
    last_error text COLLATE pg_catalog."C",
    body bytea NOT NULL,
    format smallint DEFAULT 1 NOT NULL
);

CREATE TABLE stable_interfaces.fence (
    incarnation bigint NOT NULL,
    lane integer NOT NULL,
    seq bigint NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE stable_interfaces.fleet (
    one boolean DEFAULT true NOT NULL,
    shard_count bigint,
    hash_version bigint,
    CONSTRAINT fleet_one_check CHECK (one)
);

CREATE TABLE stable_interfaces.host (
    incarnation bigint NOT NULL,
    name text NOT NULL COLLATE pg_catalog."C",
    lease_until bigint NOT NULL,
    ended boolean DEFAULT false NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE stable_interfaces.inbox (
    shard integer NOT NULL,
    interface text NOT NULL COLLATE pg_catalog."C",
    instance text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    arrived bigint NOT NULL,
    due bigint NOT NULL,
    attempt bigint DEFAULT 0 NOT NULL,
    crashes bigint DEFAULT 0 NOT NULL,
    started boolean DEFAULT false NOT NULL,
    last_error text COLLATE pg_catalog."C",
    headers bytea NOT NULL,
    body bytea NOT NULL,
    format smallint DEFAULT 1 NOT NULL
)
WITH (fillfactor='85', autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0', autovacuum_analyze_scale_factor='0.1', toast.autovacuum_vacuum_scale_factor='0.02', toast.autovacuum_vacuum_cost_delay='0');

CREATE TABLE stable_interfaces.schema_version (
    version integer NOT NULL
);

CREATE TABLE stable_interfaces.shard (
    shard integer NOT NULL,
    epoch bigint NOT NULL,
    owner bigint,
    clean boolean NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE stable_interfaces.storage (
    shard integer NOT NULL,
    interface text NOT NULL COLLATE pg_catalog."C",
    instance text NOT NULL COLLATE pg_catalog."C",
    key text NOT NULL COLLATE pg_catalog."C",
    value bytea NOT NULL,
    format smallint DEFAULT 1 NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.05', autovacuum_vacuum_threshold='1000', autovacuum_vacuum_cost_delay='0', toast.autovacuum_vacuum_scale_factor='0.05', toast.autovacuum_vacuum_cost_delay='0');

CREATE VIEW stable_interfaces.waiting AS
 SELECT 'alarm'::text AS kind,
    alarm.shard,
    alarm.interface,
    alarm.instance,
    alarm.id,
    to_timestamp((((alarm.due)::numeric / 1000.0))::double precision) AS at,
    alarm.attempt,
    alarm.crashes,
    alarm.last_error AS error,
    stable_interfaces.readable(alarm.meta) AS content
   FROM stable_interfaces.alarm
UNION ALL
 SELECT 'message'::text AS kind,
    inbox.shard,
    inbox.interface,
    inbox.instance,
    inbox.id,
    to_timestamp((((inbox.due)::numeric / 1000.0))::double precision) AS at,
    inbox.attempt,
    inbox.crashes,
    inbox.last_error AS error,
    stable_interfaces.readable(inbox.body) AS content
   FROM stable_interfaces.inbox
UNION ALL
 SELECT
        CASE
            WHEN dead.is_message THEN 'dead message'::text
            ELSE 'dead alarm'::text
        END AS kind,
    dead.shard,
    dead.interface,
    dead.instance,
    dead.id,
    to_timestamp((((dead.died_at)::numeric / 1000.0))::double precision) AS at,
    dead.attempt,
    dead.crashes,
    dead.reason AS error,
    stable_interfaces.readable(dead.body) AS content
   FROM stable_interfaces.dead;

INSERT INTO stable_interfaces.alarm VALUES (0, 'order', 'o-1', 'plain', 1000, 1000, 1, 1, 0, 0, false, NULL, '\x7b22636166c3a9223a317d', 1);
INSERT INTO stable_interfaces.alarm VALUES (0, 'order', 'o-1', 'retried', 2500, 2000, 1, 2, 2, 1, true, 'no answer', '\x7b22636166c3a9223a317d', 1);

INSERT INTO stable_interfaces.dead VALUES (0, 600, 'order', 'o-1', false, 'dead', 'gave up', 500, 500, 1, 3, NULL, NULL, 5, 0, false, 'gave up', '\x7b22636166c3a9223a317d', 1);
INSERT INTO stable_interfaces.dead VALUES (0, 700, 'order', 'o-1', true, 'dead', 'poison', 1795741920095, NULL, NULL, NULL, 1795741920095, '\x5b5b227472616365222c22742d31225d5d', 3, 0, false, 'poison', '\x626f6479', 1);

INSERT INTO stable_interfaces.fence VALUES (7, 0, 2);

INSERT INTO stable_interfaces.fleet VALUES (true, 1024, 1);

INSERT INTO stable_interfaces.host VALUES (7, 'host-a', 1795741921059, false);

INSERT INTO stable_interfaces.inbox VALUES (0, 'order', 'o-1', 'fresh', 1795741920095, 1795741920095, 0, 0, false, NULL, '\x5b5b227472616365222c22742d31225d5d', '\x626f6479', 1);
INSERT INTO stable_interfaces.inbox VALUES (0, 'order', 'o-1', 'tried', 1795741920095, 9000000000000, 1, 0, true, 'busy', '\x5b5b227472616365222c22742d31225d5d', '\x626f6479', 1);

INSERT INTO stable_interfaces.schema_version VALUES (1);

INSERT INTO stable_interfaces.shard VALUES (0, 1, 7, true);
INSERT INTO stable_interfaces.shard VALUES (1, 1, NULL, true);

INSERT INTO stable_interfaces.storage VALUES (0, 'order', 'o-1', 'status', '\x227061696422', 1);
INSERT INTO stable_interfaces.storage VALUES (0, 'order', 'o-2', 'k', '\x0001ff', 1);

ALTER TABLE ONLY stable_interfaces.alarm
    ADD CONSTRAINT alarm_pkey PRIMARY KEY (shard, interface, instance, id);

ALTER TABLE ONLY stable_interfaces.dead
    ADD CONSTRAINT dead_pkey PRIMARY KEY (shard, died_at, interface, instance, is_message, id);

ALTER TABLE ONLY stable_interfaces.fence
    ADD CONSTRAINT fence_pkey PRIMARY KEY (incarnation, lane);

ALTER TABLE ONLY stable_interfaces.fleet
    ADD CONSTRAINT fleet_pkey PRIMARY KEY (one);

ALTER TABLE ONLY stable_interfaces.host
    ADD CONSTRAINT host_pkey PRIMARY KEY (incarnation);

ALTER TABLE ONLY stable_interfaces.inbox
    ADD CONSTRAINT inbox_pkey PRIMARY KEY (shard, interface, instance, id);

ALTER TABLE ONLY stable_interfaces.shard
    ADD CONSTRAINT shard_pkey PRIMARY KEY (shard);

ALTER TABLE ONLY stable_interfaces.storage
    ADD CONSTRAINT storage_pkey PRIMARY KEY (shard, interface, instance, key);

CREATE INDEX alarm_due ON stable_interfaces.alarm USING btree (shard, due, interface, instance, id);

CREATE INDEX inbox_arrived ON stable_interfaces.inbox USING btree (shard, arrived, interface, instance, id);

CREATE INDEX shard_owner ON stable_interfaces.shard USING btree (owner);

