//! A fleet's store in Postgres 13 or newer.
//!
//! Whatever a host was told is written is on the server's disk, and a host that lost a shard writes nothing there, whatever any
//! clock says: each group commit is one transaction that first changes its lane's *fence row*, and a claim changes the fence
//! rows of those who lose by it, so the two wait for each other and the later one sees what the earlier one did.
//!
//! Everything is kept in one schema of the application's own database, made on [`PostgresStore::connect`]. For people there
//! is a view: `SELECT * FROM stable_interfaces.waiting` lists alarms, inbox messages and dead letters.
//!
//! A store holds a few connections, whatever the load: one for each [lane](stable_interfaces::HostBuilder::lanes) of its host up to 16, one for reading, one for posting, one for renewing the
//! lease, one that listens; one more while shards are claimed or a message waits for a row that another transaction holds, two while it
//! connects, and up to four for [transactions](PostgresContext) of the application, opened when first needed. It needs sessions of its own: a
//! pooler in between that shares them between transactions is found out and refused at [`PostgresStore::connect`] (PgBouncer:
//! `pool_mode = session` will do).
//!
//! The application's own rows can be part of it: [`PostgresContext::transaction`] commits them together with what a handler
//! records, and [`Poster`] posts to instances from any transaction on the database.
//!
//! What an acknowledgement is worth is the server's to say. With `synchronous_commit = off` or `fsync = off` acknowledged
//! writes can be lost, and the log warns; after a failover to a standby that lagged behind, what it had not received is gone
//! (`synchronous_standby_names` prevents that). A running host notices: it compares the number of its last acknowledged writes, its
//! record and its epochs with what is stored at every commit and renewal, and the store then answers [`StoreError::Lost`] to that
//! life of the host. Tested with Postgres 15; CockroachDB and YugabyteDB have not been tried.

mod errors;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod link;
mod members;
mod pages;
mod poster;
mod posts;
mod rows;
mod schema;
mod tls;
mod transaction;
mod watermarks;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use stable_interfaces::store::{
    Batch, Claim, ClaimKind, Claimed, Epoch, Found, Grant, Held, Hints, Incarnation, Lane, Loaded, Members, NewMessage,
    Page, Read, Renewal, Renewed, Sequence, ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError, Timestamp};
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Config, Row};

use errors::misses_something;
use link::{Link, Params, Server, Turn};
use members::{Said, members};
use posts::Posts;
use schema::{DEFAULT_SCHEMA, Query, Schema};
use transaction::Transactions;
use watermarks::Watermarks;
use wire::{Place, WireWrite};

pub use poster::Poster;
pub use tokio_postgres;
pub use transaction::{PostgresContext, Transaction};

/// The most connections for group commits. Each is opened when it is first needed, so a host's lanes decide; of more lanes some share one.
const COMMITS: NonZeroU16 = NonZeroU16::new(16).expect("it is not zero");

/// A [`Store`] in Postgres, shared by all hosts of a fleet. The [module](self) says what it keeps and where.
///
/// ```no_run
/// # async fn example() -> Result<(), stable_interfaces::StoreError> {
/// use alarm_backends::postgres::PostgresStore;
/// let store = PostgresStore::connect("postgres://orders:secret@db.example/orders").await?;
/// # Ok(())
/// # }
/// ```
pub struct PostgresStore {
    server: Arc<Server>,
    /// The links for group commits: lane `n` uses number `n` modulo their count.
    commits: [Link; COMMITS.get() as usize],
    /// The link for loading and reading: many at once, answered in order.
    reads: Link,
    posts: Arc<Posts>,
    /// The link for claims and releases; closed after each.
    claims: Link,
    /// The link for renewals alone: it is opened on the runtime that renews, which others cannot keep busy.
    renewals: Link,
    transactions: Arc<Transactions>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Options for connecting; see [`PostgresStore::builder`].
#[derive(Debug)]
#[must_use]
pub struct PostgresStoreBuilder {
    config: Config,
    /// Nobody has asked for plain text, nor for TLS.
    is_plain_by_default: bool,
    schema: String,
    transactions: u16,
    timeout: Duration,
    must_exist: bool,
    tls: Option<rustls::ClientConfig>,
}

impl PostgresStore {
    /// Connects to the database at `url` (`postgres://user@host/database` or `host=.. user=.. dbname=..`) and makes the
    /// schema `stable_interfaces` in it where it is missing. Many hosts may do so at once.
    ///
    /// The connection uses TLS and verifies the server's certificate and name, against the roots that the operating system
    /// trusts or that the file named by `SSL_CERT_FILE` holds. `sslmode` in the URL changes that:
    ///
    /// | `sslmode` | |
    /// | --- | --- |
    /// | `require` or `verify-full` | TLS, verified |
    /// | `prefer` | TLS, verified, if the server offers it, otherwise none |
    /// | `disable`, or a Unix socket | no TLS |
    /// | absent | no TLS to this machine (`localhost`, `127.0.0.1`, `[::1]`), TLS, verified, to any other |
    ///
    /// # Errors
    /// [`StoreError::Open`] if the URL, the login, the database or its encoding is not right, or a pooler in between shares sessions between
    /// transactions: waiting would not help. [`StoreError::NotApplied`] if the server cannot be reached within the timeout (5 s).
    pub async fn connect(url: &str) -> Result<PostgresStore, StoreError> {
        PostgresStore::builder(url)?.connect().await
    }

    /// As [`connect`](Self::connect), with options.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the URL cannot be read.
    pub fn builder(url: &str) -> Result<PostgresStoreBuilder, StoreError> {
        let tls::Parsed { config, is_plain_by_default } = tls::parse(url)?;
        Ok(PostgresStoreBuilder { is_plain_by_default, ..PostgresStoreBuilder::new(config) })
    }
}

impl PostgresStore {
    /// The outcome of a call for `incarnation`, or that the store is lost, if it failed because the schema is there no more.
    async fn or_lost(
        &self,
        incarnation: Incarnation,
        turn: &Turn<'_>,
        outcome: Result<Row, StoreError>,
    ) -> Result<Row, StoreError> {
        match outcome {
            Err(error)
                if misses_something(&error)
                    && self.server.watermarks.has(incarnation)
                    && turn.is_schema_gone().await =>
            {
                Err(self.server.watermarks.lose(incarnation, "its schema is gone"))
            }
            outcome => outcome,
        }
    }
}

impl PostgresStoreBuilder {
    /// Connects as `config` says. Its own default for TLS is [`Prefer`](tokio_postgres::config::SslMode::Prefer).
    pub fn new(config: Config) -> PostgresStoreBuilder {
        let schema = DEFAULT_SCHEMA.to_owned();
        PostgresStoreBuilder {
            config,
            is_plain_by_default: false,
            schema,
            transactions: 4,
            timeout: Duration::from_secs(5),
            must_exist: false,
            tls: None,
        }
    }

    /// The schema that everything is kept in: `[a-z_][a-z0-9_]{0,30}`. Default: `stable_interfaces`.
    pub fn schema(mut self, name: impl Into<String>) -> PostgresStoreBuilder {
        self.schema = name.into();
        self
    }

    /// Sets the number of connections for [transactions](PostgresContext) of the application, so how many of those run at once; at
    /// least 1, at most 1,024. Each is opened when it is first needed. Default: 4.
    pub fn transactions(mut self, transactions: u16) -> PostgresStoreBuilder {
        self.transactions = transactions.clamp(1, 1024);
        self
    }

    /// Limits the time of one operation, waiting for a connection included. After that its outcome is unknown and its connection
    /// is replaced. Well below the lease, so that there is time to try again. At least 1 ms. Default: 5 s.
    pub fn timeout(mut self, timeout: Duration) -> PostgresStoreBuilder {
        self.timeout = timeout;
        self
    }

    /// Refuses to connect where the schema has no store yet, so that a wrong name or a database that came back empty is never taken
    /// for a new one. Default: no.
    pub fn must_exist(mut self, must_exist: bool) -> PostgresStoreBuilder {
        self.must_exist = must_exist;
        self
    }

    /// TLS with other roots or a client certificate; to this machine, too, unless the URL has another `sslmode`.
    pub fn tls(mut self, config: rustls::ClientConfig) -> PostgresStoreBuilder {
        self.tls = Some(config);
        if self.is_plain_by_default {
            self.config.ssl_mode(SslMode::Require);
        }
        self
    }

    /// Connects and makes the schema where it is missing.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`]; and [`StoreError::Open`] if the schema's name or the timeout is not allowed, or there is no store
    /// that [`must_exist`](Self::must_exist).
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let mut config = self.config;
        let tls = tls::connector(&config, self.tls)?;
        // A standby would take the reads and refuse the writes.
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if config.get_application_name().is_none() {
            config.application_name("stable-interfaces");
        }
        if config.get_keepalives_interval().is_none() && config.get_keepalives_retries().is_none() {
            // A listener sends nothing, so only this tells it that the server is gone: after a minute, not two hours.
            config.keepalives_idle(Duration::from_secs(30));
            config.keepalives_interval(Duration::from_secs(10)).keepalives_retries(3);
        }
        let servers = config.get_hosts().len().max(config.get_hostaddrs().len());
        if servers > 1 && config.get_connect_timeout().is_none() {
            // One whose machine is gone answers nothing: the others are to be asked within the timeout, too, for each of the three connections
            // that opening takes.
            config.connect_timeout(self.timeout / u32::try_from(servers * 4).unwrap_or(u32::MAX));
        }
        let schema = Schema::new(&self.schema)?;
        if self.timeout < Duration::from_millis(1) {
            return Err(StoreError::Open("the timeout must be at least 1 ms".to_owned(), None));
        }
        let server = Server {
            config,
            tls,
            schema,
            timeout: self.timeout,
            watermarks: Watermarks::default(),
            is_new: true.into(),
        };
        server.prepare(self.must_exist).await?;
        let server = Arc::new(server);
        Ok(PostgresStore {
            transactions: Arc::new(Transactions::new(server.clone(), self.transactions)),
            server,
            commits: std::array::from_fn(|_| Link::default()),
            reads: Link::default(),
            posts: Arc::new(Posts::new()),
            claims: Link::default(),
            renewals: Link::default(),
        })
    }
}

#[async_trait]
impl Store for PostgresStore {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.server.watermarks.check(claim.incarnation)?;
        let is_known = self.server.watermarks.has(claim.incarnation);
        let incarnation = wire::number("incarnation", claim.incarnation.0)?;
        let shards = shard_numbers(&claim.shards)?;
        let (given_up, epochs): (Vec<_>, Vec<_>) = claim.given_up.iter().copied().unzip();
        let given_up = shard_numbers(&given_up)?;
        let epochs = epochs.iter().map(|epoch| wire::number("epoch", epoch.0)).collect::<Result<Vec<_>, _>>()?;
        let (count, hash) = (i64::from(claim.shard_count), i64::from(claim.hash_version));
        let (lease, is_start) = (millis(claim.lease), claim.kind == ClaimKind::Start);
        let mut turn = self.claims.alone(&self.server).await?;
        let host = &*claim.host;
        let said = Said::of(&claim.presence);
        let params: Params<'_> = &[
            &incarnation,
            &host,
            &shards,
            &count,
            &hash,
            &lease,
            &is_start,
            &is_known,
            &given_up,
            &epochs,
            &said.address,
            &said.build,
            &said.is_leaving,
            &said.is_live,
            &said.placement,
        ];
        let row = turn.one(Query::Claim, params).await;
        let row = self.or_lost(claim.incarnation, &turn, row).await;
        // Claims are rare: better a free place in the server until the next.
        turn.retire();
        claimed(&self.server.watermarks, claim, &row?)
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let Renewal { incarnation, lease, ref presence } = *renewal;
        let watermarks = &self.server.watermarks;
        // What a store must hold is what it held before it was asked.
        let acknowledged = watermarks.all_acknowledged(incarnation)?;
        let (number, lease) = (wire::number("incarnation", incarnation.0)?, millis(lease));
        let mut turn = self.renewals.alone(&self.server).await?;
        let said = Said::of(presence);
        let params: Params<'_> =
            &[&number, &lease, &said.address, &said.build, &said.is_leaving, &said.is_live, &said.placement];
        let row = turn.one(Query::Renew, params).await;
        let row = self.or_lost(incarnation, &turn, row).await?;
        if acknowledged.is_some() && !row.get::<_, bool>("is_known") {
            return Err(watermarks.lose(incarnation, "its record of this host is gone"));
        }
        if !row.get::<_, bool>("renewed") {
            watermarks.ended(incarnation);
            return Err(StoreError::Replaced);
        }
        let taken: BTreeMap<i32, i64> =
            row.get::<_, Vec<i32>>("lanes").into_iter().zip(row.get::<_, Vec<i64>>("taken")).collect();
        for (lane, seq) in acknowledged.into_iter().flatten() {
            let stored = taken.get(&i32::from(lane.0)).map_or(0, |taken| taken.unsigned_abs());
            if stored < seq {
                return Err(watermarks.lose(incarnation, &lost_write(lane, seq, stored)));
            }
        }
        Ok(Renewed {
            owned: row.get::<_, Vec<i32>>("owned").into_iter().map(shard_id).collect(),
            unknown: Vec::new(),
            inbox: row.get::<_, Vec<i32>>("inbox").into_iter().map(shard_id).collect(),
            now: Timestamp::from_millis(row.get("server_now")),
            members: members(&row),
        })
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.server.watermarks.check(incarnation)?;
        let incarnation = wire::number("incarnation", incarnation.0)?;
        let (mut shards, mut epochs) = (Vec::new(), Vec::new());
        for (shard, epoch) in given_up {
            shards.push(*shard);
            epochs.push(epoch.map(|epoch| wire::number("epoch", epoch.0)).transpose()?);
        }
        let sql = self.server.schema.release(incarnation, &shard_numbers(&shards)?, &epochs);
        let mut turn = self.claims.alone(&self.server).await?;
        let released = turn.batch(&sql).await;
        turn.retire();
        released
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        let (member, seen) = (wire::number("incarnation", member.0)?, wire::number("number of members", seen)?);
        let mut turn = self.claims.alone(&self.server).await?;
        let row = turn.one(Query::Cordon, &[&member, &is_cordoned, &seen]).await;
        turn.retire();
        Ok(row?.get("is_done"))
    }

    async fn members(&self) -> Result<Members, StoreError> {
        let mut turn = self.claims.alone(&self.server).await?;
        let row = turn.one(Query::Members, &[]).await;
        turn.retire();
        let mut members = members(&row?);
        // What is told to have one millisecond left has no more than that: it may be over, and nobody has looked since.
        members.list.retain(|member| member.remaining > Duration::from_millis(1));
        Ok(members)
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let server = &self.server;
        // What a store must hold is what it held before it was asked.
        let acknowledged = server.watermarks.acknowledged(write.incarnation, write.lane)?;
        let (wire, place) = (WireWrite::new(write)?, Place::new(write, acknowledged)?);
        let mut turn = self.commits[usize::from(write.lane.0) % self.commits.len()].alone(&self.server).await?;
        let row = turn.one(Query::Write, &wire.params(&place)).await;
        let row = self.or_lost(write.incarnation, &turn, row).await?;
        let answers = committed(&server.watermarks, write, acknowledged, &row)?;
        if row.get::<_, Option<i64>>("taken").is_some() {
            server.watermarks.acknowledge(write.incarnation, write.lane, write.seq);
        }
        Ok(answers)
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.posts.post(&self.server, messages).await
    }

    async fn watch(&self, _incarnation: Incarnation) -> Result<Hints, StoreError> {
        let (sender, hints) = Hints::channel();
        self.server.listen(sender).await?;
        Ok(hints)
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        pages::load(&self.server, &self.reads, pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        pages::read(&self.server, &self.reads, read).await
    }
}

fn claimed(watermarks: &Watermarks, claim: &Claim, row: &Row) -> Result<Claimed, StoreError> {
    let stored = |column| u32::try_from(row.get::<_, i64>(column)).expect("it was a u32 when a claim stored it");
    match row.get("verdict") {
        "replaced" => {
            watermarks.ended(claim.incarnation);
            return Err(StoreError::Replaced);
        }
        "lost" => return Err(watermarks.lose(claim.incarnation, "its record of this host is gone")),
        "mismatch" => {
            return Err(StoreError::Mismatch {
                shard_count: claim.shard_count,
                hash_version: claim.hash_version,
                stored_shard_count: stored("stored_shard_count"),
                stored_hash_version: stored("stored_hash_version"),
            });
        }
        "placement" => {
            let placement = claim.presence.placement;
            return Err(StoreError::OtherPlacement { placement, stored: placement.other() });
        }
        _ => {}
    }
    let grants = row.get::<_, Vec<i32>>("granted").into_iter().zip(row.get::<_, Vec<i64>>("epochs"));
    let granted: Vec<Grant> = grants
        .zip(row.get::<_, Vec<bool>>("clean"))
        .map(|((shard, epoch), clean)| Grant { shard: shard_id(shard), epoch: epoch_of(epoch), clean })
        .collect();
    watermarks.claimed(claim.incarnation, &granted);
    let holders = row.get::<_, Vec<i32>>("held").into_iter().zip(row.get::<_, Vec<&str>>("holders"));
    let held = holders
        .zip(row.get::<_, Vec<i64>>("remaining"))
        .map(|((shard, holder), remaining)| Held {
            shard: shard_id(shard),
            holder: holder.into(),
            remaining: Duration::from_millis(remaining.unsigned_abs()),
        })
        .collect();
    let now = Timestamp::from_millis(row.get("server_now"));
    let store = row.get::<_, Option<&str>>("store").map(Into::into);
    Ok(Claimed { granted, held, sequence: Sequence::OfLane, overlap: COMMITS, now, store, members: members(row) })
}

/// The outcome of a write, of whose lane `acknowledged` was the last that was done before.
fn committed(
    watermarks: &Watermarks,
    write: &Write,
    acknowledged: u64,
    row: &Row,
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    if let Some(taken) = row.get::<_, Option<i64>>("taken") {
        let newest = taken.unsigned_abs();
        if newest < acknowledged {
            return Err(watermarks.lose(write.incarnation, &lost_write(write.lane, acknowledged, newest)));
        }
        if newest > write.seq {
            return Err(StoreError::Stale { lane: write.lane, seq: write.seq, newest });
        }
    }
    let (fenced, newest) = (row.get::<_, Vec<i32>>("fenced"), row.get::<_, Vec<i64>>("newest"));
    let fence_of = |shard: ShardId| fenced.iter().zip(&newest).find(|(of, _)| shard_id(**of) == shard);
    let answer = |batch: &Batch| {
        let Some((_, newest)) = fence_of(batch.shard) else { return Ok(Ok(())) };
        let (shard, held, newest) = (batch.shard, batch.epoch, epoch_of(*newest));
        if newest < held && watermarks.was_granted(write.incarnation, shard, held) {
            let what = format!("shard {shard}: epoch {held} was granted, {newest} is stored");
            return Err(watermarks.lose(write.incarnation, &what));
        }
        Ok(Err(StoreError::Fenced { shard, held, newest }))
    };
    write.batches.iter().map(answer).collect()
}

fn lost_write(lane: Lane, seq: u64, stored: u64) -> String {
    format!("write {seq} of lane {} was taken, {stored} is stored", lane.0)
}

fn shard_numbers(shards: &[ShardId]) -> Result<Vec<i32>, StoreError> {
    shards.iter().map(|&shard| wire::shard(shard)).collect()
}

/// Columns of shards and epochs hold what this code put there, and that was never negative.
fn shard_id(stored: i32) -> ShardId {
    ShardId(stored.unsigned_abs())
}

fn epoch_of(stored: i64) -> Epoch {
    Epoch(stored.unsigned_abs())
}

/// A lease, at most a hundred years.
fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).min(100 * 365 * 86_400_000)
}
