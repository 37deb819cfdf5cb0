-- Version 1 of the schema: tables, types and indexes. {s} is the schema's quoted name.
--
-- Times are milliseconds since the Unix epoch. Text is COLLATE "C", so that Postgres orders it by its bytes as every other
-- store does, whatever the database's own collation is. Each row of data carries the number of its format: a host leaves
-- rows of a newer format than its own alone.

CREATE TABLE {s}.schema_version (
    version integer NOT NULL
);
INSERT INTO {s}.schema_version VALUES (1);

-- One row. Its lock is the one that every change of ownership takes first, so that there is one at a time.
CREATE TABLE {s}.fleet (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    -- As the first claim recorded them; NULL before it.
    shard_count  bigint,
    hash_version bigint
);
INSERT INTO {s}.fleet DEFAULT VALUES;

-- Lives of hosts, and until when each has its lease.
CREATE TABLE {s}.host (
    incarnation bigint  PRIMARY KEY,
    name        text    COLLATE "C" NOT NULL,
    lease_until bigint  NOT NULL,
    -- A later life of the same name has begun: this one writes nothing more.
    ended       boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);

-- Who owns a shard (NULL: released), under which epoch, and whether it was released when that owner got it.
CREATE TABLE {s}.shard (
    shard integer PRIMARY KEY,
    epoch bigint  NOT NULL,
    owner bigint,
    clean boolean NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX shard_owner ON {s}.shard (owner);

-- The last write of each lane of each incarnation. Every write changes its row, and every claim and release changes the rows
-- of those who lose by it: so no write can be under way while its shards change hands.
CREATE TABLE {s}.fence (
    incarnation bigint  NOT NULL,
    lane        integer NOT NULL,
    seq         bigint  NOT NULL,
    PRIMARY KEY (incarnation, lane)
) WITH (fillfactor = 50);

CREATE TABLE {s}.alarm (
    shard        integer  NOT NULL,
    interface    text     COLLATE "C" NOT NULL,
    instance     text     COLLATE "C" NOT NULL,
    id           text     COLLATE "C" NOT NULL,
    due          bigint   NOT NULL,
    scheduled_at bigint   NOT NULL,
    rev_epoch    bigint   NOT NULL,
    rev_counter  bigint   NOT NULL,
    attempt      bigint   NOT NULL,
    crashes      bigint   NOT NULL,
    started      boolean  NOT NULL,
    last_error   text     COLLATE "C",
    meta         bytea    NOT NULL,
    format       smallint NOT NULL DEFAULT 1,
    PRIMARY KEY (shard, interface, instance, id)
);
CREATE INDEX alarm_due ON {s}.alarm (shard, due, interface, instance, id);

CREATE TABLE {s}.inbox (
    shard      integer  NOT NULL,
    interface  text     COLLATE "C" NOT NULL,
    instance   text     COLLATE "C" NOT NULL,
    id         text     COLLATE "C" NOT NULL,
    arrived    bigint   NOT NULL,
    due        bigint   NOT NULL,
    attempt    bigint   NOT NULL DEFAULT 0,
    crashes    bigint   NOT NULL DEFAULT 0,
    started    boolean  NOT NULL DEFAULT false,
    last_error text     COLLATE "C",
    -- JSON: an array of pairs of strings.
    headers    bytea    NOT NULL,
    body       bytea    NOT NULL,
    format     smallint NOT NULL DEFAULT 1,
    PRIMARY KEY (shard, interface, instance, id)
);
CREATE INDEX inbox_arrived ON {s}.inbox (shard, arrived, interface, instance, id);

-- A dead alarm has scheduled_at, a revision, and its meta as body; a dead message has arrived and headers.
CREATE TABLE {s}.dead (
    shard        integer  NOT NULL,
    died_at      bigint   NOT NULL,
    interface    text     COLLATE "C" NOT NULL,
    instance     text     COLLATE "C" NOT NULL,
    is_message   boolean  NOT NULL,
    id           text     COLLATE "C" NOT NULL,
    reason       text     COLLATE "C" NOT NULL,
    due          bigint   NOT NULL,
    scheduled_at bigint,
    rev_epoch    bigint,
    rev_counter  bigint,
    arrived      bigint,
    headers      bytea,
    attempt      bigint   NOT NULL,
    crashes      bigint   NOT NULL,
    started      boolean  NOT NULL,
    last_error   text     COLLATE "C",
    body         bytea    NOT NULL,
    format       smallint NOT NULL DEFAULT 1,
    PRIMARY KEY (shard, died_at, interface, instance, is_message, id)
);

CREATE TABLE {s}.storage (
    shard     integer  NOT NULL,
    interface text     COLLATE "C" NOT NULL,
    instance  text     COLLATE "C" NOT NULL,
    key       text     COLLATE "C" NOT NULL,
    value     bytea    NOT NULL,
    format    smallint NOT NULL DEFAULT 1,
    PRIMARY KEY (shard, interface, instance, key)
);

-- Rows of a queue die about as fast as they are born. The defaults wait until a fifth of the table is dead, and by then the
-- head of the queue, where every page starts, is all corpses.
ALTER TABLE {s}.alarm SET (
    fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.1
);
ALTER TABLE {s}.inbox SET (
    fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.1,
    toast.autovacuum_vacuum_scale_factor = 0.02, toast.autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE {s}.storage SET (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_cost_delay = 0
);

-- What a write is made of, one type for each kind of operation. Hosts of several versions run side by side while a fleet is
-- updated, so a type or function once released never changes: its successor gets a new name.
CREATE TYPE {s}.batch AS (shard integer, epoch bigint);
CREATE TYPE {s}.alarm_put AS (
    shard integer, interface text, instance text, id text, due bigint, scheduled_at bigint, rev_epoch bigint,
    rev_counter bigint, attempt bigint, crashes bigint, started boolean, last_error text, meta bytea
);
CREATE TYPE {s}.alarm_remove AS (
    shard integer, interface text, instance text, id text, rev_epoch bigint, rev_counter bigint
);
CREATE TYPE {s}.message_new AS (
    shard integer, interface text, instance text, id text, headers bytea, body bytea
);
CREATE TYPE {s}.message_put AS (
    shard integer, interface text, instance text, id text, arrived bigint, due bigint, attempt bigint, crashes bigint,
    started boolean, last_error text
);
CREATE TYPE {s}.message_remove AS (
    shard integer, interface text, instance text, id text, arrived bigint
);
CREATE TYPE {s}.dead_put AS (
    shard integer, died_at bigint, interface text, instance text, is_message boolean, id text, reason text, due bigint,
    scheduled_at bigint, rev_epoch bigint, rev_counter bigint, arrived bigint, headers bytea, attempt bigint,
    crashes bigint, started boolean, last_error text, body bytea
);
CREATE TYPE {s}.dead_remove AS (
    shard integer, died_at bigint, interface text, instance text, is_message boolean, id text
);
CREATE TYPE {s}.value_put AS (
    shard integer, interface text, instance text, key text, value bytea
);
CREATE TYPE {s}.value_remove AS (
    shard integer, interface text, instance text, key text
);

-- The server's wall clock, as every time in these tables.
CREATE FUNCTION {s}.now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;
