//! A store in a tight loop, with no host above it.

use std::time::Instant;

use stable_interfaces::Store;
use stable_interfaces::store::{After, AlarmRow, Epoch, Incarnation, Op, Page, Rows, ShardId};

use super::{SHARDS, claim_all, commit_all, shuffle, writes};

/// All alarms of the store, shard by shard.
async fn rows(store: &dyn Store) -> Vec<(ShardId, AlarmRow)> {
    const PAGE: usize = 1_000;
    let mut rows = Vec::new();
    for shard in (0..SHARDS).map(ShardId) {
        let mut after = None;
        loop {
            let page = Page::new(shard, After::Alarms(after), PAGE);
            let loaded = store.load(&[page]).await.expect("the store can be read").remove(0);
            let Rows::Alarms(alarms) = loaded.rows else { break };
            let is_last = alarms.len() < PAGE;
            after = alarms.last().map(AlarmRow::key);
            rows.extend(alarms.into_iter().map(|row| (shard, row)));
            if is_last {
                break;
            }
        }
    }
    rows
}

fn epoch(epochs: &[Epoch], shard: ShardId) -> Epoch {
    epochs[shard.0 as usize]
}

/// Alarms per second: writes those of `full`, in random order, into the empty store `empty`, `rows_each` in each commit.
pub(super) async fn set(full: &dyn Store, empty: &dyn Store, rows_each: usize) -> f64 {
    let mut alarms = rows(full).await;
    shuffle(&mut alarms);
    let incarnation = Incarnation(1);
    let epochs = claim_all(empty, incarnation).await;
    let count = alarms.len();
    let put = |(shard, row): (ShardId, AlarmRow)| (shard, epoch(&epochs, shard), Op::PutAlarm(row));
    let writes = writes(incarnation, alarms.into_iter().map(put).collect(), rows_each);
    let started = Instant::now();
    commit_all(empty, &writes).await;
    count as f64 / started.elapsed().as_secs_f64()
}

/// Alarms per second: reads those of `store` and removes them, `rows_each` in each commit.
pub(super) async fn drain(store: &dyn Store, rows_each: usize) -> f64 {
    let incarnation = Incarnation(1);
    let epochs = claim_all(store, incarnation).await;
    let started = Instant::now();
    let alarms = rows(store).await;
    let count = alarms.len();
    let remove = |(shard, row): (ShardId, AlarmRow)| {
        (shard, epoch(&epochs, shard), Op::RemoveAlarm { name: row.name, id: row.id, revision: row.revision })
    };
    commit_all(store, &writes(incarnation, alarms.into_iter().map(remove).collect(), rows_each)).await;
    count as f64 / started.elapsed().as_secs_f64()
}
