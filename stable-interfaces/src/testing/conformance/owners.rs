//! Several writers at once: what no single-threaded case can show.

use std::collections::BTreeSet;

use super::given::*;
use crate::store::StoreError;
use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};

pub(super) async fn many_lanes_may_commit_at_once(store: AnyStore) {
    const LANES: u16 = 16;
    const WRITES: u64 = 20;
    let shards: Vec<u32> = (0..u32::from(LANES)).collect();
    let owner = Arc::new(Owner::start(&store, 1, "host-a", &shards).await);
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (store, owner) = (store.clone(), owner.clone());
            tokio::spawn(async move {
                for seq in 1..=WRITES {
                    // Its own shard, and one row in a shard that all lanes write to.
                    let shared = put("shared", &format!("{lane:02}-{seq:02}"), "v");
                    let own = put("own", "seq", &seq.to_string());
                    let batches = match lane {
                        0 => vec![owner.batch(0, vec![own, shared])],
                        _ => vec![owner.batch(0, vec![shared]), owner.batch(u32::from(lane), vec![own])],
                    };
                    for answer in commit(&store, &owner.write(lane, seq, batches)).await {
                        answer.expect("the owner's batch is written");
                    }
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.expect("a lane ends");
    }
    for shard in shards {
        assert_eq!(value(&store, shard, "own", "seq").await, Some(WRITES.to_string()));
    }
    let rows = storage(&store, 0, "shared").await.len();
    assert_eq!(u64::try_from(rows), Ok(u64::from(LANES) * WRITES), "no lane undoes what another wrote");
}

/// The observations of one claimer. The texts that it wrote begin with the epoch and go on with a count, so they rise with both.
#[derive(Default)]
struct Seen {
    done: Vec<String>,
    refused: Vec<String>,
    /// The things that were stored just after each epoch was granted.
    at_claim: Vec<(String, BTreeSet<String>)>,
}

async fn keys(store: &AnyStore) -> BTreeSet<String> {
    storage(store, 0, "i").await.into_iter().map(|(key, _)| key).collect()
}

pub(super) async fn concurrent_owners_never_interleave(store: AnyStore) {
    const ROUNDS: u64 = 12;
    const WRITES: u64 = 25;
    let newest = Arc::new(AtomicU64::new(0));
    let claimers: Vec<_> = [0, 1]
        .into_iter()
        .map(|claimer| {
            let (store, newest) = (store.clone(), newest.clone());
            tokio::spawn(async move {
                let mut seen = Seen::default();
                for round in 0..ROUNDS {
                    let wanted = start(1 + claimer + 2 * round, "host-a", &[0]);
                    // The other claimer's start may end this one before the claim is through.
                    let Some(mut owner) = Owner::claim_unless_replaced(&store, &wanted).await else { continue };
                    let epoch = owner.epochs[&0].0;
                    newest.fetch_max(epoch, Ordering::SeqCst);
                    seen.at_claim.push((format!("{epoch:04}"), keys(&store).await));
                    for n in 0..WRITES {
                        let text = format!("{epoch:04}-{n:04}");
                        let known = newest.load(Ordering::SeqCst);
                        match owner.try_commit(0, vec![put("i", "last", &text), put("i", &text, "v")]).await {
                            Ok(()) => {
                                assert!(known <= epoch, "epoch {epoch} wrote after epoch {known} had been granted");
                                seen.done.push(text);
                            }
                            Err(StoreError::Fenced { newest, .. }) => {
                                assert!(newest.0 > epoch, "epoch {epoch} was fenced by epoch {newest}");
                                seen.refused.push(text);
                                break;
                            }
                            other => unexpected("a write is done or fenced", &other),
                        }
                        tokio::task::yield_now().await;
                    }
                }
                seen
            })
        })
        .collect();
    let mut all = Seen::default();
    for claimer in claimers {
        let seen = claimer.await.expect("a claimer ends");
        all.done.extend(seen.done);
        all.refused.extend(seen.refused);
        all.at_claim.extend(seen.at_claim);
    }
    let stored = keys(&store).await;
    for (epoch, at_claim) in all.at_claim {
        let late: Vec<_> = stored.range(..epoch.clone()).filter(|text| !at_claim.contains(*text)).collect();
        assert!(late.is_empty(), "{late:?} landed after epoch {epoch} had been granted");
    }
    assert!(all.refused.iter().all(|text| !stored.contains(text)), "nothing of a fenced write is stored");
    assert!(all.done.iter().all(|text| stored.contains(text)), "everything acknowledged is stored");
    let last = all.done.iter().max().cloned();
    assert_eq!(value(&store, 0, "i", "last").await, last, "the newest owner's last write was the last to land");
}

pub(super) async fn a_fence_holds_while_writes_are_under_way(store: AnyStore) {
    for round in 0..10 {
        let shard = round;
        let life = u64::from(round) * 2 + 1;
        let owner = Arc::new(Owner::start(&store, life, "host-a", &[shard]).await);
        let writers: Vec<_> = (0..8)
            .map(|lane| {
                let (store, owner) = (store.clone(), owner.clone());
                tokio::spawn(async move {
                    let mut done = BTreeSet::new();
                    for seq in 1..=20 {
                        let key = format!("{lane}-{seq:02}");
                        let ops = (0..10).map(|part| put(&format!("i{part}"), &key, "old")).collect();
                        match one(commit(&store, &owner.write(lane, seq, vec![owner.batch(shard, ops)])).await) {
                            Ok(()) => done.insert(key),
                            Err(StoreError::Fenced { .. }) => break,
                            other => unexpected("a write is done or fenced", &other),
                        };
                        tokio::task::yield_now().await;
                    }
                    done
                })
            })
            .collect();
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        claim(&store, &start(life + 1, "host-a", &[shard])).await;
        // From here on the old owner writes nothing: what is there now is what stays.
        let at_claim = storage(&store, shard, "i0").await;
        let mut done = BTreeSet::new();
        for writer in writers {
            done.extend(writer.await.expect("a writer ends"));
        }
        for part in 0..10 {
            let rows = storage(&store, shard, &format!("i{part}")).await;
            assert_eq!(rows, at_claim, "round {round}: a write of the old owner landed after the claim, or in part");
            let keys: BTreeSet<String> = rows.into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, done, "round {round}: stored is what was acknowledged");
        }
    }
}
