//! The words that the cases are told with: owners, rows, and ways to look at all that is stored.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::store::{
    After, AlarmRow, Attempts, Batch, Claim, ClaimKind, Claimed, DeadLetter, DeadRow, Epoch, InboxRow, Incarnation,
    InstanceName, Lane, NewMessage, Op, Page, Presence, Read, ReadRange, ReadRows, Revision, Rows, ShardId, Store,
    StoreError, Write,
};
use crate::sync::Arc;

pub(super) type AnyStore = Arc<dyn Store>;
pub(super) type Answers = Vec<Result<(), StoreError>>;

/// A lease that outlives every case.
pub(super) const LONG: Duration = Duration::from_secs(600);
/// A lease that has run out almost at once.
pub(super) const TINY: Duration = Duration::from_millis(1);
pub(super) const SHARD_COUNT: u32 = 1024;
pub(super) const HASH_VERSION: u32 = 1;

pub(super) fn life(number: u64) -> Incarnation {
    Incarnation(number)
}

/// A claim at a start, with a long lease.
pub(super) fn start(incarnation: u64, host: &str, shards: &[u32]) -> Claim {
    Claim {
        incarnation: life(incarnation),
        host: host.into(),
        shards: shards.iter().copied().map(ShardId).collect(),
        given_up: Vec::new(),
        shard_count: SHARD_COUNT,
        hash_version: HASH_VERSION,
        lease: LONG,
        kind: ClaimKind::Start,
        presence: Presence::default(),
    }
}

/// A claim by a host that runs already, with a long lease.
pub(super) fn running(incarnation: u64, host: &str, shards: &[u32]) -> Claim {
    Claim { kind: ClaimKind::Running, ..start(incarnation, host, shards) }
}

pub(super) fn with_lease(lease: Duration, claim: Claim) -> Claim {
    Claim { lease, ..claim }
}

pub(super) async fn claim(store: &AnyStore, claim: &Claim) -> Claimed {
    store.claim(claim).await.expect("a claim is answered")
}

/// Claims again and again until every shard is granted, as after the end of a tiny lease.
#[allow(clippy::disallowed_methods, reason = "the clock of a real store cannot be set")]
pub(super) async fn claim_when_free(store: &AnyStore, wanted: &Claim) -> Claimed {
    for _ in 0..2_000 {
        let claimed = claim(store, wanted).await;
        if claimed.held.is_empty() {
            return claimed;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    claim(store, wanted).await
}

/// `(shard, epoch, clean)` of each grant.
pub(super) fn grants(claimed: &Claimed) -> Vec<(u32, u64, bool)> {
    claimed.granted.iter().map(|grant| (grant.shard.0, grant.epoch.0, grant.clean)).collect()
}

/// `(shard, holder)` of each shard that was not granted.
pub(super) fn held(claimed: &Claimed) -> Vec<(u32, &str)> {
    claimed.held.iter().map(|held| (held.shard.0, &*held.holder)).collect()
}

pub(super) fn ids(shards: &[ShardId]) -> Vec<u32> {
    shards.iter().map(|shard| shard.0).collect()
}

/// One incarnation with the shards it was granted, writing in lane 0.
#[derive(Debug)]
pub(super) struct Owner {
    store: AnyStore,
    pub(super) incarnation: Incarnation,
    pub(super) epochs: BTreeMap<u32, Epoch>,
    seq: u64,
}

impl Owner {
    /// Starts a host; every shard must be granted.
    pub(super) async fn start(store: &AnyStore, incarnation: u64, host: &str, shards: &[u32]) -> Owner {
        Owner::claim(store, &start(incarnation, host, shards)).await
    }

    /// Claims until every shard is granted.
    pub(super) async fn claim(store: &AnyStore, wanted: &Claim) -> Owner {
        Owner::of(store, wanted, &claim_when_free(store, wanted).await)
    }

    /// Claims every shard by a start, or learns that a newer start of the same name has ended this one.
    pub(super) async fn claim_unless_replaced(store: &AnyStore, wanted: &Claim) -> Option<Owner> {
        match store.claim(wanted).await {
            Err(StoreError::Replaced) => None,
            claimed => Some(Owner::of(store, wanted, &claimed.expect("a claim is answered"))),
        }
    }

    fn of(store: &AnyStore, wanted: &Claim, claimed: &Claimed) -> Owner {
        assert_eq!(claimed.held, [], "all shards are free to take");
        let epochs = claimed.granted.iter().map(|grant| (grant.shard.0, grant.epoch)).collect();
        Owner { store: store.clone(), incarnation: wanted.incarnation, epochs, seq: 0 }
    }

    pub(super) fn batch(&self, shard: u32, ops: Vec<Op>) -> Batch {
        let epoch = self.epochs.get(&shard).copied().unwrap_or_default();
        Batch { shard: ShardId(shard), epoch, ops: ops.into() }
    }

    pub(super) fn write(&self, lane: u16, seq: u64, batches: Vec<Batch>) -> Write {
        Write { incarnation: self.incarnation, lane: Lane(lane), seq, batches }
    }

    /// The next write of lane 0.
    pub(super) fn next(&mut self, batches: Vec<Batch>) -> Write {
        self.seq += 1;
        self.write(0, self.seq, batches)
    }

    /// Commits to one shard; it must be done.
    pub(super) async fn commit(&mut self, shard: u32, ops: Vec<Op>) {
        self.try_commit(shard, ops).await.expect("the owner's batch is written");
    }

    /// Commits to one shard.
    pub(super) async fn try_commit(&mut self, shard: u32, ops: Vec<Op>) -> Result<(), StoreError> {
        let write = self.next(vec![self.batch(shard, ops)]);
        one(commit(&self.store, &write).await)
    }
}

pub(super) async fn commit(store: &AnyStore, write: &Write) -> Answers {
    let answers = store.commit(write).await.expect("a commit is answered");
    assert_eq!(answers.len(), write.batches.len(), "there is one answer for each batch");
    answers
}

pub(super) fn one(mut answers: Answers) -> Result<(), StoreError> {
    assert_eq!(answers.len(), 1, "there is one answer for one batch");
    answers.pop().expect("its length was just checked")
}

/// The outcome of a write with one batch, said of the batch or of the whole.
pub(super) fn said(answer: Result<Answers, StoreError>) -> Result<(), StoreError> {
    answer.and_then(one)
}

pub(super) fn assert_fenced(answer: &Result<(), StoreError>, shard: u32, held: u64, newest: u64) {
    match answer {
        Err(StoreError::Fenced { shard: s, held: h, newest: n }) => {
            assert_eq!(
                (s.0, h.0, n.0),
                (shard, held, newest),
                "a fenced batch is told its shard, its epoch, and the newest"
            );
        }
        other => unexpected("a write without ownership is fenced", other),
    }
}

/// Compares long lists and tells the first difference alone.
#[track_caller]
#[allow(clippy::panic, reason = "this is how a case fails")]
pub(super) fn assert_same<T: PartialEq + Debug>(found: &[T], expected: &[T], what: &str) {
    let differs = |n: &usize| found.get(*n) != expected.get(*n);
    if let Some(n) = (0..found.len().max(expected.len())).find(differs) {
        let (f, e) = (found.get(n), expected.get(n));
        panic!(
            "{what}: {} instead of {}, the first difference at {n}:\n   found {f:?}\nexpected {e:?}",
            found.len(),
            expected.len()
        );
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "this is how a case fails")]
pub(super) fn unexpected(rule: &str, answer: &impl Debug) -> ! {
    panic!("{rule}, but the answer was {answer:?}")
}

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

pub(super) fn name(instance: &str) -> InstanceName {
    of("order", instance)
}

pub(super) fn of(interface: &str, instance: &str) -> InstanceName {
    InstanceName { interface: interface.into(), instance: instance.into() }
}

pub(super) fn revision(epoch: u64, counter: u64) -> Revision {
    Revision { epoch: Epoch(epoch), counter }
}

pub(super) fn alarm(instance: &str, id: &str, due: i64) -> AlarmRow {
    alarm_of(name(instance), id, due)
}

pub(super) fn alarm_of(name: InstanceName, id: &str, due: i64) -> AlarmRow {
    AlarmRow {
        name,
        id: id.into(),
        due: at(due),
        scheduled_at: at(due),
        revision: revision(1, 1),
        attempts: Attempts::default(),
        meta: Bytes::from_static(b"{\"kind\":\"timeout\"}"),
    }
}

pub(super) fn remove_alarm(row: &AlarmRow, revision: Revision) -> Op {
    Op::RemoveAlarm { name: row.name.clone(), id: row.id.clone(), revision }
}

pub(super) fn put(instance: &str, key: &str, value: &str) -> Op {
    put_of(name(instance), key, Bytes::copy_from_slice(value.as_bytes()))
}

pub(super) fn put_of(name: InstanceName, key: &str, value: Bytes) -> Op {
    Op::Put { name, key: key.into(), value }
}

pub(super) fn delete(instance: &str, key: &str) -> Op {
    Op::Delete { name: name(instance), key: key.into() }
}

/// The attempts where so many handlers have failed.
pub(super) fn failed(failed: u32) -> Attempts {
    Attempts { failed, ..Attempts::default() }
}

pub(super) fn message(shard: u32, instance: &str, id: &str, body: &str) -> NewMessage {
    NewMessage {
        shard: ShardId(shard),
        name: name(instance),
        id: id.into(),
        headers: vec![("content-type".into(), "text/plain".into())],
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

pub(super) async fn post(store: &AnyStore, message: NewMessage) -> crate::store::Posted {
    let posted = store.post(&[message]).await.expect("a post is answered");
    assert_eq!(posted.len(), 1, "there is one answer for one message");
    posted[0]
}

/// A row as an inbox holds it, for a dead letter or a removal.
pub(super) fn inbox_row(instance: &str, id: &str, arrived: i64) -> InboxRow {
    InboxRow {
        name: name(instance),
        id: id.into(),
        arrived: at(arrived),
        due: at(arrived),
        attempts: Attempts::default(),
        headers: vec![("a".into(), "b".into())],
        body: Bytes::from_static(b"body"),
    }
}

pub(super) fn dead(died_at: i64, row: DeadRow) -> DeadLetter {
    DeadLetter { died_at: at(died_at), reason: "it always failed".into(), row }
}

/// A kind of row that `load` pages through.
pub(super) trait Paged: Debug + Clone + PartialEq {
    type Key: Ord + Clone + Debug;

    fn key_of(&self) -> Self::Key;
    fn after(key: Option<Self::Key>) -> After;
    fn from_rows(rows: Rows) -> Vec<Self>;
}

impl Paged for AlarmRow {
    type Key = crate::store::AlarmKey;

    fn key_of(&self) -> Self::Key {
        self.key()
    }

    fn after(key: Option<Self::Key>) -> After {
        After::Alarms(key)
    }

    fn from_rows(rows: Rows) -> Vec<AlarmRow> {
        match rows {
            Rows::Alarms(rows) => rows,
            other => unexpected("a page of alarms has alarms", &other),
        }
    }
}

impl Paged for InboxRow {
    type Key = crate::store::InboxKey;

    fn key_of(&self) -> Self::Key {
        self.key()
    }

    fn after(key: Option<Self::Key>) -> After {
        After::Inbox(key)
    }

    fn from_rows(rows: Rows) -> Vec<InboxRow> {
        match rows {
            Rows::Inbox(rows) => rows,
            other => unexpected("a page of an inbox has inbox rows", &other),
        }
    }
}

impl Paged for DeadLetter {
    type Key = crate::store::DeadKey;

    fn key_of(&self) -> Self::Key {
        self.key()
    }

    fn after(key: Option<Self::Key>) -> After {
        After::Dead(key)
    }

    fn from_rows(rows: Rows) -> Vec<DeadLetter> {
        match rows {
            Rows::Dead(rows) => rows,
            other => unexpected("a page of dead letters has dead letters", &other),
        }
    }
}

/// One page.
pub(super) async fn page<R: Paged>(store: &AnyStore, shard: u32, after: Option<R::Key>, limit: usize) -> Vec<R> {
    let page = Page::new(ShardId(shard), R::after(after), limit);
    let mut loaded = store.load(&[page]).await.expect("a load is answered");
    assert_eq!(loaded.len(), 1, "there is one answer for one page");
    let loaded = loaded.pop().expect("its length was just checked");
    assert_eq!(loaded.damaged, [], "nothing that was written is damaged");
    let (rows, is_last) = (R::from_rows(loaded.rows), loaded.is_last);
    assert!(rows.len() >= limit || is_last, "a page that is not full is the last, and says so");
    rows
}

/// All rows of a shard, by pages of `limit`; checks that they ascend.
pub(super) async fn walk<R: Paged>(store: &AnyStore, shard: u32, limit: usize) -> Vec<R> {
    let mut rows: Vec<R> = Vec::new();
    loop {
        let found = page::<R>(store, shard, rows.last().map(R::key_of), limit).await;
        let count = found.len();
        assert!(count <= limit, "a page has at most {limit} rows, this one had {count}");
        for row in found {
            if let Some(last) = rows.last() {
                assert!(
                    last.key_of() < row.key_of(),
                    "rows ascend, but {:?} came before {:?}",
                    last.key_of(),
                    row.key_of()
                );
            }
            rows.push(row);
        }
        if count < limit {
            return rows;
        }
    }
}

pub(super) async fn alarms(store: &AnyStore, shard: u32) -> Vec<AlarmRow> {
    walk(store, shard, 200).await
}

pub(super) async fn inbox(store: &AnyStore, shard: u32) -> Vec<InboxRow> {
    walk(store, shard, 200).await
}

pub(super) async fn dead_letters(store: &AnyStore, shard: u32) -> Vec<DeadLetter> {
    walk(store, shard, 200).await
}

pub(super) async fn read_storage(
    store: &AnyStore,
    shard: u32,
    name: InstanceName,
    from: &str,
    to: Option<&str>,
    limit: usize,
) -> Vec<(Arc<str>, Bytes)> {
    let range = ReadRange::Storage(from.into(), to.map(Into::into));
    let read = Read::new(ShardId(shard), name, range, limit);
    match store.read(&read).await.expect("a read is answered").rows {
        ReadRows::Storage(rows) => rows,
        other @ ReadRows::Alarms(_) => unexpected("a read of storage has storage", &other),
    }
}

pub(super) async fn read_alarms(
    store: &AnyStore,
    shard: u32,
    name: InstanceName,
    from: &str,
    to: Option<&str>,
    limit: usize,
) -> Vec<AlarmRow> {
    let range = ReadRange::Alarms(from.into(), to.map(Into::into));
    let read = Read::new(ShardId(shard), name, range, limit);
    match store.read(&read).await.expect("a read is answered").rows {
        ReadRows::Alarms(rows) => rows,
        other @ ReadRows::Storage(_) => unexpected("a read of alarms has alarms", &other),
    }
}

/// All keys and values of an instance, as text.
pub(super) async fn storage(store: &AnyStore, shard: u32, instance: &str) -> Vec<(String, String)> {
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    let rows = read_storage(store, shard, name(instance), "", None, 100_000).await;
    rows.iter().map(|(key, value)| (key.to_string(), text(value))).collect()
}

/// One value, as text.
pub(super) async fn value(store: &AnyStore, shard: u32, instance: &str, key: &str) -> Option<String> {
    storage(store, shard, instance).await.into_iter().find(|(k, _)| k == key).map(|(_, value)| value)
}
