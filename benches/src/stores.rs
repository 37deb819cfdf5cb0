//! The stores that alarms are measured on, each with the limit of what is under it.
//!
//! *Raw* means: the keys and values that our group commits write, with the same durability, from a tight loop that does nothing
//! else, as many rows at a time as our commits had on average.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use stable_interfaces::store::{
    AlarmRow, Attempts, Batch, Claim, ClaimKind, Claimed, Epoch, HASH_VERSION, Incarnation, InstanceName, Lane, Op,
    Presence, Revision, ShardId, Write,
};
use stable_interfaces::{Fleet, Store, Timestamp};

mod direct;
mod fjall;
mod memory;
mod metered;
mod postgres;
mod redis;

pub use fjall::Fjall;
pub use memory::Memory;
pub use metered::Metered;
pub use postgres::Postgres;
pub use redis::Redis;

use crate::queues::Queue;

/// A kind of store.
#[async_trait]
pub trait Backend: Send + Sync {
    /// As it is called on the command line and in the output.
    fn name(&self) -> &'static str;

    /// The setting it is measured under, if there are several.
    fn mode(&self) -> Option<&'static str> {
        None
    }

    /// A new, empty place of its kind.
    async fn fresh(&self) -> Box<dyn Place>;

    /// The place that another process has left at `address`.
    fn at(&self, address: &str) -> Box<dyn Place>;

    /// The peers on the same kind of server that delayed work is given to, each with nothing in it.
    async fn queues(&self) -> Vec<Box<dyn Queue>> {
        Vec::new()
    }

    /// The peers that work off a backlog, each with how long a backlog; the first is the one to compare with by default.
    async fn due_queues(&self) -> Vec<(Box<dyn Queue>, u64)> {
        Vec::new()
    }

    /// The peer whose times are fine enough to measure its lateness.
    fn timers(&self) -> Option<Box<dyn Queue>> {
        None
    }
}

/// The place where one store keeps its rows.
#[async_trait]
pub trait Place: Send + Sync {
    /// Opens the store. At most one may be open at a time.
    async fn open(&self) -> Arc<dyn Store>;

    /// The address by which another process finds it; `None` if none can.
    fn address(&self) -> Option<String>;

    /// Says whether several hosts may share it, so that its owner needs a lease.
    fn is_shared(&self) -> bool {
        false
    }

    /// Raw commits per second of single alarms, the same that this place holds, `rows` in each commit. Nothing may be open.
    async fn raw_set(&self, rows: usize) -> f64;

    /// Raw alarms per second: reads the alarms that this place holds, in order, and removes them, `rows` at a time. Nothing may
    /// be open.
    async fn raw_drain(&self, rows: usize) -> f64;

    /// Raw commits per second of single rows on many connections at once, where there are such things.
    async fn singles(&self) -> Option<f64> {
        None
    }

    /// Has the server clear away dead rows as soon as it would by itself if each second were a minute; or no longer.
    async fn tidy_often(&self, _often: bool) {}

    /// The room that its tables and indexes take, if that can be asked for.
    async fn megabytes(&self) -> Option<f64> {
        None
    }
}

/// Every kind there is.
#[must_use]
pub fn all() -> Vec<Box<dyn Backend>> {
    vec![
        Box::new(Memory),
        Box::new(Fjall),
        Box::new(Postgres),
        Box::new(Redis { mode: "everysec" }),
        Box::new(Redis { mode: "always" }),
    ]
}

/// The host name and shard count of [`Host::local`](stable_interfaces::Host::local).
pub const HOST: &str = "local";
/// See [`HOST`].
pub const SHARDS: u32 = 1_024;
/// The most rows in one write when a store is filled.
const ROWS_PER_WRITE: usize = 8_000;

/// Rows in the order of `rows`, `rows` per write: the batches of each write ascend by shard.
fn writes(incarnation: Incarnation, ops: Vec<(ShardId, Epoch, Op)>, rows: usize) -> Vec<Write> {
    let mut ops = ops.into_iter().peekable();
    let mut writes = Vec::new();
    while ops.peek().is_some() {
        let mut chunk: Vec<_> = ops.by_ref().take(rows).collect();
        chunk.sort_by_key(|(shard, ..)| *shard);
        let mut batches: Vec<(ShardId, Epoch, Vec<Op>)> = Vec::new();
        for (shard, epoch, op) in chunk {
            match batches.last_mut() {
                Some((last, _, ops)) if *last == shard => ops.push(op),
                _ => batches.push((shard, epoch, vec![op])),
            }
        }
        let batch = |(shard, epoch, ops): (_, _, Vec<Op>)| Batch { shard, epoch, ops: ops.into() };
        let batches = batches.into_iter().map(batch).collect();
        writes.push(Write { incarnation, lane: Lane(0), seq: writes.len() as u64 + 1, batches });
    }
    writes
}

/// The epochs that a claim of all shards has given.
fn epochs(claimed: &Claimed) -> Vec<Epoch> {
    let mut epochs: Vec<_> = claimed.granted.iter().map(|grant| (grant.shard, grant.epoch)).collect();
    epochs.sort();
    epochs.into_iter().map(|(_, epoch)| epoch).collect()
}

async fn claim_all(store: &dyn Store, incarnation: Incarnation) -> Vec<Epoch> {
    let claim = Claim {
        incarnation,
        host: HOST.into(),
        shards: (0..SHARDS).map(ShardId).collect(),
        given_up: Vec::new(),
        shard_count: SHARDS,
        hash_version: HASH_VERSION,
        lease: Duration::from_secs(3_600),
        kind: ClaimKind::Start,
        presence: Presence::default(),
    };
    epochs(&store.claim(&claim).await.expect("the store lets its host start"))
}

async fn commit_all(store: &dyn Store, writes: &[Write]) {
    for write in writes {
        for answer in store.commit(write).await.expect("the store takes writes") {
            answer.expect("the shards are this host's");
        }
    }
}

/// The end of a host that filled a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It released its shards.
    Released,
    /// As in a crash.
    Killed,
}

/// Fills a store with alarms, one for each of as many instances, as an earlier host would have left them.
pub async fn fill(store: &dyn Store, alarms: u64, due: impl Fn(u64) -> Timestamp, ended: Ended) {
    /// A host that has ended never comes back, so each fill is by another.
    static LIVES: AtomicU64 = AtomicU64::new(7);
    let incarnation = Incarnation(LIVES.fetch_add(1, Ordering::Relaxed));
    let epochs = claim_all(store, incarnation).await;
    let fleet = Fleet::new([HOST], SHARDS).expect("one host makes a fleet");
    let interface: Arc<str> = crate::alarms::INTERFACE.into();
    let mut from = 0;
    let mut seq = 0;
    while from < alarms {
        let to = (from + ROWS_PER_WRITE as u64).min(alarms);
        let row = |number| {
            let (instance, id) = crate::alarms::names(number, u64::MAX);
            let shard = fleet.shard_of(&instance).expect("it can be an ID");
            let epoch = epochs[shard.0 as usize];
            let due = due(number);
            let row = AlarmRow {
                name: InstanceName { interface: interface.clone(), instance: instance.into() },
                id: id.into(),
                due,
                scheduled_at: due,
                revision: Revision { epoch, counter: number + 1 },
                attempts: Attempts::default(),
                meta: number.to_string().into(),
            };
            (shard, epoch, Op::PutAlarm(row))
        };
        let mut writes = writes(incarnation, (from..to).map(row).collect(), ROWS_PER_WRITE);
        for write in &mut writes {
            seq += 1;
            write.seq = seq;
        }
        commit_all(store, &writes).await;
        from = to;
    }
    if ended == Ended::Released {
        let shards: Vec<_> = (0..SHARDS).map(|shard| (ShardId(shard), None)).collect();
        store.release(incarnation, &shards).await.expect("the store takes shards back");
    }
}

/// Puts `values` into a random order that is the same each time.
fn shuffle<T>(values: &mut [T]) {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    for end in (1..values.len()).rev() {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let place = usize::try_from((random >> 16) % (end as u64 + 1)).expect("it is an index");
        values.swap(end, place);
    }
}
