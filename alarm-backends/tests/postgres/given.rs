//! The beginnings that the tests beside this one share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alarm_backends::postgres::{PostgresStore, PostgresStoreBuilder};
use alarm_backends::testing::servers::{Postgres, PostgresOptions};
use stable_interfaces::store::{
    After, AlarmRow, Attempts, Batch, Claim, ClaimKind, Epoch, Incarnation, InstanceName, Lane, Loaded, NewMessage, Op,
    Page, Presence, Read, ReadRange, ReadRows, Revision, ShardId, Write,
};
use stable_interfaces::{Store, StoreError, Timestamp};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

/// A client deadline short enough to be waited for in vain.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

/// Longer than anything takes that is not waited for in vain, however busy the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A lease that does not run out during a test.
const LEASE: Duration = Duration::from_secs(3600);

/// A server of the test's own, and a store on it that is patient.
pub(crate) async fn server_with(options: PostgresOptions) -> (Arc<Postgres>, Arc<PostgresStore>) {
    let server = Arc::new(tokio::task::spawn_blocking(|| options.start()).await.expect("the server starts"));
    let store = store_on(&server.url("postgres")).await;
    (server, store)
}

/// The same, and a store that waits for its [`DEADLINE`] alone.
pub(crate) async fn server_with_deadline(options: PostgresOptions) -> (Arc<Postgres>, Arc<PostgresStore>) {
    let (server, _) = server_with(options).await;
    let store =
        open(|| PostgresStore::builder(&server.url("postgres")).expect("the URL can be read").timeout(DEADLINE));
    let store = Arc::new(store.await);
    (server, store)
}

/// A store that is patient: whatever waits in the server waits because the test wants it to.
pub(crate) async fn store_on(url: &str) -> Arc<PostgresStore> {
    Arc::new(open(|| PostgresStore::builder(url).expect("the URL can be read").timeout(PATIENCE)).await)
}

/// Opens a store, however busy the machine is: to make a schema may take it longer than one deadline.
pub(crate) async fn open(builder: impl Fn() -> PostgresStoreBuilder) -> PostgresStore {
    let end = Instant::now() + PATIENCE;
    loop {
        match builder().connect().await {
            Ok(store) => return store,
            Err(error) => {
                assert!(error.is_retryable() && Instant::now() < end, "the store cannot be opened: {error:?}");
            }
        }
    }
}

/// The URL of a new empty database of the server that the tests share.
pub(crate) async fn fresh_database() -> String {
    tokio::task::spawn_blocking(|| super::SERVER.fresh_database()).await.expect("a database is made")
}

/// A plain connection beside the store's.
pub(crate) async fn raw(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("the server takes a connection");
    tokio::spawn(connection);
    client
}

pub(crate) fn claim(incarnation: u64, host: &str, shards: &[u32], kind: ClaimKind) -> Claim {
    Claim {
        incarnation: Incarnation(incarnation),
        host: host.into(),
        shards: shards.iter().map(|&shard| ShardId(shard)).collect(),
        given_up: Vec::new(),
        shard_count: 1024,
        hash_version: 1,
        lease: LEASE,
        kind,
        presence: Presence::default(),
    }
}

/// Makes `incarnation` the owner of shard 0, at epoch 1 in a fresh store.
pub(crate) async fn own(store: &PostgresStore, incarnation: u64) {
    let claim = claim(incarnation, "host-a", &[0], ClaimKind::Start);
    at_last(async || store.claim(&claim).await).await.expect("the claim is answered");
}

pub(crate) fn name(instance: &str) -> InstanceName {
    InstanceName { interface: "order".into(), instance: instance.into() }
}

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put { name: name("i"), key: key.into(), value: value.to_owned().into() }
}

pub(crate) fn alarm(id: &str, due: i64) -> AlarmRow {
    AlarmRow {
        name: name("i"),
        id: id.into(),
        due: Timestamp::from_millis(due),
        scheduled_at: Timestamp::from_millis(due),
        revision: Revision { epoch: Epoch(1), counter: 1 },
        attempts: Attempts::default(),
        meta: r#"{"café":1}"#.into(),
    }
}

pub(crate) fn message(shard: u32, id: &str) -> NewMessage {
    NewMessage { shard: ShardId(shard), name: name("i"), id: id.into(), headers: vec![], body: "body".into() }
}

/// A write of incarnation 1 to shard 0.
pub(crate) fn write(lane: u16, seq: u64, ops: Vec<Op>) -> Write {
    write_of(1, 1, lane, seq, ops)
}

pub(crate) fn write_of(incarnation: u64, epoch: u64, lane: u16, seq: u64, ops: Vec<Op>) -> Write {
    let batches = vec![Batch { shard: ShardId(0), epoch: Epoch(epoch), ops: ops.into() }];
    Write { incarnation: Incarnation(incarnation), lane: Lane(lane), seq, batches }
}

/// The answer to a write of one batch.
pub(crate) async fn commit(store: &PostgresStore, write: &Write) -> Result<(), StoreError> {
    store.commit(write).await.map(|mut answers| answers.remove(0))?
}

/// The answer to a call that is repeated until it has a definite one, as a host does it.
pub(crate) async fn at_last<T>(call: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Err(error) if error.is_retryable() && Instant::now() < end => {}
            answer => return answer,
        }
    }
}

/// The same of a write.
pub(crate) async fn commit_at_last(store: &PostgresStore, write: &Write) -> Result<(), StoreError> {
    let end = Instant::now() + PATIENCE;
    loop {
        match commit(store, write).await {
            Err(error) if error.is_retryable() && Instant::now() < end => {}
            answer => return answer,
        }
    }
}

/// A commit under way.
pub(crate) fn committing(store: &Arc<PostgresStore>, write: Write) -> JoinHandle<Result<(), StoreError>> {
    let store = store.clone();
    tokio::spawn(async move { commit(&store, &write).await })
}

/// The stored value of a key, by an unfenced read.
pub(crate) async fn value(store: &PostgresStore, key: &str) -> Option<String> {
    let range = ReadRange::Storage(key.into(), None);
    let read = Read::new(ShardId(0), name("i"), range, 1);
    match at_last(async || store.read(&read).await).await.expect("a read is answered").rows {
        ReadRows::Storage(rows) => rows
            .into_iter()
            .find(|(found, _)| **found == *key)
            .map(|(_, value)| String::from_utf8(value.to_vec()).expect("tests store text")),
        ReadRows::Alarms(_) => unreachable!("storage was asked for"),
    }
}

pub(crate) async fn load(store: &PostgresStore, after: After, limit: usize) -> Loaded {
    let page = Page::new(ShardId(0), after, limit);
    store.load(&[page]).await.expect("a load is answered").remove(0)
}

/// Waits until this query gives `true`.
pub(crate) async fn until(client: &Client, sql: &str) {
    let end = Instant::now() + PATIENCE;
    while !client.query_one_scalar::<bool, _>(sql, &[]).await.expect("the question is answered") {
        assert!(Instant::now() < end, "it never came true: {sql}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until somebody waits for a lock that this connection's open transaction holds.
pub(crate) async fn until_blocked(client: &Client) {
    // Not pg_stat_activity: a transaction sees that as it was when it first looked.
    let sql = "SELECT EXISTS(SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))";
    until(client, sql).await;
}
