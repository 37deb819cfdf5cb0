//! The committer alone: shards queue, lanes write, the store answers when and as it likes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use shuttle::future::{self, block_on};

use super::{Fate, Log, ScenarioClock, ScenarioRandom, SlowStore, WriteEvent, below, explore, pause, puts};
use crate::commit::committer::{Commit, Committer, QueuedCommit, host_has_stopped};
use crate::commit::gate::{Failure, Gate};
use crate::fleet::HASH_VERSION;
use crate::shards::Shards;
use crate::shards::firing::Limits;
use crate::store::client::CommitOptions;
use crate::store::{Claim, ClaimKind, Incarnation, InstanceName, Op, Presence, Sequence, ShardId, Store, Write};
use crate::sync::Arc;

const SHARDS: u32 = 3;
const COMMITS: u32 = 3;
const WRITER: Incarnation = Incarnation(7);

/// The answer that the sender of a commit heard.
type Heard = (ShardId, u32, Result<(), bool>);

/// Some shards on two lanes, each with one instance that commits numbers in order.
async fn run(faults: u32, closes: bool, commit_timeout: Duration) -> (Arc<SlowStore>, Vec<Heard>) {
    let clock = ScenarioClock::default();
    let store = SlowStore::new(&clock, faults);
    let limits = Limits { max_firing: 1, max_fires_per_second: 1, max_crashes: 1, window_bytes: 1_000_000 };
    let shards = Arc::new(Shards::new(SHARDS, limits, Arc::new(clock.clone())));
    let claim = Claim {
        incarnation: WRITER,
        host: "host".into(),
        shards: (0..SHARDS).map(ShardId).collect(),
        given_up: Vec::new(),
        shard_count: SHARDS,
        hash_version: HASH_VERSION,
        lease: Duration::from_secs(1_000_000),
        kind: ClaimKind::Start,
        presence: Presence::default(),
    };
    let claimed = store.claim(&claim).await.expect("a store in memory grants");
    let (granted, sequence, overlap) = (claimed.granted, claimed.sequence, claimed.overlap);
    for grant in &granted {
        shards.own(grant.shard, grant.epoch, true, 16, 1_000_000);
    }
    let options = CommitOptions {
        lanes: 2,
        store_timeout: Duration::from_secs(5),
        commit_timeout,
        max_queued: usize::MAX,
        max_queued_bytes: usize::MAX,
    };
    let committer =
        Arc::new(Committer::new(WRITER, store.clone(), shards, Arc::new(clock), Arc::new(ScenarioRandom), options));
    let lanes: Vec<_> =
        committer.open(overlap).map(|lane| future::spawn(committer.clone().run(lane, sequence))).collect();
    let heard = Log::new();
    let senders: Vec<_> = granted
        .into_iter()
        .map(|grant| {
            let (committer, heard, store) = (committer.clone(), heard.clone(), store.clone());
            future::spawn(async move {
                let gate = Arc::new(Gate::default());
                let name = InstanceName { interface: "i".into(), instance: "x".into() };
                let mut waiting = Vec::new();
                for n in 1..=COMMITS {
                    pause().await;
                    let value = Bytes::from(n.to_string());
                    let ops = vec![Op::Put { name: name.clone(), key: "k".into(), value }];
                    let (shard, epoch) = (grant.shard, grant.epoch);
                    let ticket = gate.take_ticket();
                    let commit = Arc::new(Commit { shard, epoch, ops: ops.into(), is_shown: false });
                    if let Some(refused) = committer.push(QueuedCommit::new(commit, ticket.clone(), None)) {
                        refused.withdraw(&host_has_stopped());
                    }
                    let (heard, store) = (heard.clone(), store.clone());
                    waiting.push(future::spawn(async move {
                        let outcome = ticket.wait().await;
                        if outcome.is_ok() {
                            assert!(stored(&store, shard) >= n, "{shard:?} {n} was acknowledged before it was written");
                        }
                        heard.note((shard, n, outcome.map_err(|failure| matches!(failure, Failure::Unknown))));
                    }));
                }
                for task in waiting {
                    task.await.expect("it is not cancelled");
                }
                gate.wait_settled().await;
            })
        })
        .collect();
    if closes {
        pause().await;
        pause().await;
        // As a host does that stops at once.
        committer.close();
        lanes.iter().for_each(future::JoinHandle::abort);
    }
    for task in senders {
        task.await.expect("it is not cancelled");
    }
    for lane in lanes {
        lane.abort();
        lane.await.expect_err("a lane never ends by itself");
    }
    (store, heard.all())
}

/// The greatest number that was written to a shard.
fn stored(store: &SlowStore, shard: ShardId) -> u32 {
    let done = |event: &WriteEvent| match event {
        WriteEvent::Answered { write, fate: Fate::Done | Fate::Unanswered } => {
            puts(write).filter(|(of, ..)| *of == shard).map(|(.., value)| number(value)).max()
        }
        _ => None,
    };
    store.writes.all().iter().filter_map(done).max().unwrap_or(0)
}

fn number(value: &[u8]) -> u32 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).expect("a number was put")
}

/// A lane, or where shards have numbers of their own each of its shards, has one write under way; a repeat is the same write; numbers of
/// a shard only rise.
fn check_writes(store: &SlowStore) {
    let mut under_way = BTreeMap::new();
    let mut open = BTreeMap::new();
    let mut last = BTreeMap::new();
    let key = |write: &Write| match store.sequence {
        Sequence::OfLane => (write.lane, None),
        Sequence::OfShard => (write.lane, write.batches.first().map(|batch| batch.shard)),
    };
    for event in store.writes.all() {
        match event {
            WriteEvent::Sent(write) => {
                assert_eq!(under_way.insert(key(&write), write.seq), None, "two writes of one lane: {write:?}");
                if let Some(seq) = open.get(&key(&write)) {
                    assert_eq!(*seq, write.seq, "a write was sent before the last one was known");
                }
                for (shard, _, value) in puts(&write) {
                    let (before, n) = (last.entry(shard).or_insert((0, 0)), number(value));
                    let is_repeat = *before == (write.seq, n);
                    assert!(is_repeat || n > before.1, "{n} of {shard:?} came after {before:?}");
                    *before = (write.seq, n);
                }
            }
            WriteEvent::Answered { write, fate } => {
                under_way.remove(&key(&write));
                match fate {
                    Fate::Done => drop(open.remove(&key(&write))),
                    Fate::Unanswered | Fate::Lost => drop(open.insert(key(&write), write.seq)),
                    Fate::NotApplied => {}
                }
            }
        }
    }
}

/// Everybody hears; what was refused for certain was not written.
fn check_heard(store: &SlowStore, heard: &[Heard]) {
    let count = usize::try_from(SHARDS * COMMITS).expect("a count");
    assert_eq!(heard.len(), count, "each commit has one answer: {heard:?}");
    for (shard, n, outcome) in heard {
        if *outcome == Err(false) {
            assert!(stored(store, *shard) < *n, "{n} of {shard:?} was refused and written");
        }
    }
}

#[test]
fn whatever_the_store_does_a_lane_has_one_write_under_way_and_what_is_acknowledged_is_written() {
    explore(|| {
        block_on(async {
            let faults = below(4);
            let (store, heard) = run(faults, false, Duration::from_secs(3_600)).await;
            check_writes(&store);
            check_heard(&store, &heard);
            assert!(heard.iter().all(|(.., outcome)| outcome.is_ok()), "nothing lasted that long: {heard:?}");
        });
    });
}

#[test]
fn a_commit_that_takes_too_long_is_withdrawn_or_unknown_and_what_is_withdrawn_is_never_written() {
    explore(|| {
        block_on(async {
            let (store, heard) = run(3, false, Duration::from_millis(1)).await;
            check_writes(&store);
            check_heard(&store, &heard);
        });
    });
}

#[test]
fn everybody_who_waits_hears_when_the_committer_is_closed() {
    explore(|| {
        block_on(async {
            let (store, heard) = run(below(2), true, Duration::from_secs(3_600)).await;
            check_writes(&store);
            check_heard(&store, &heard);
        });
    });
}
