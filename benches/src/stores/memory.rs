//! The store in memory. There is nothing under it, so its limit is the store itself.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use stable_interfaces::{After, AlarmRow, Epoch, Incarnation, MemoryStore, Op, Page, Rows, ShardId, Store, Write};

use super::{Backend, Place, SHARDS, claim_all, commit_all, shuffle, writes};

/// [`MemoryStore`].
#[derive(Debug)]
pub struct Memory;

#[async_trait]
impl Backend for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    async fn fresh(&self) -> Box<dyn Place> {
        Box::new(InMemory(MemoryStore::new()))
    }

    fn at(&self, _: &str) -> Box<dyn Place> {
        Box::new(InMemory(MemoryStore::new()))
    }
}

struct InMemory(MemoryStore);

impl InMemory {
    /// All alarms of the store, shard by shard.
    async fn rows(&self) -> Vec<(ShardId, AlarmRow)> {
        let mut rows = Vec::new();
        for shard in (0..SHARDS).map(ShardId) {
            let page = Page { shard, after: After::Alarms(None), limit: usize::MAX };
            let loaded = self.0.load(&[page]).await.expect("memory can be read").remove(0);
            if let Rows::Alarms(alarms) = loaded.rows {
                rows.extend(alarms.into_iter().map(|row| (shard, row)));
            }
        }
        rows
    }

    async fn time(store: &MemoryStore, writes: &[Write], rows: usize) -> f64 {
        let started = Instant::now();
        commit_all(store, writes).await;
        rows as f64 / started.elapsed().as_secs_f64()
    }
}

#[async_trait]
impl Place for InMemory {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(self.0.clone())
    }

    fn address(&self) -> Option<String> {
        None
    }

    async fn raw_set(&self, rows: usize) -> f64 {
        let mut alarms = self.rows().await;
        shuffle(&mut alarms);
        let store = MemoryStore::new();
        let incarnation = Incarnation(1);
        let epochs = claim_all(&store, incarnation).await;
        let count = alarms.len();
        let put = |(shard, row): (ShardId, AlarmRow)| (shard, epoch(&epochs, shard), Op::PutAlarm(row));
        let writes = writes(incarnation, alarms.into_iter().map(put).collect(), rows);
        Self::time(&store, &writes, count).await
    }

    async fn raw_drain(&self, rows: usize) -> f64 {
        let incarnation = Incarnation(1);
        let epochs = claim_all(&self.0, incarnation).await;
        let started = Instant::now();
        let alarms = self.rows().await;
        let count = alarms.len();
        let remove = |(shard, row): (ShardId, AlarmRow)| {
            (shard, epoch(&epochs, shard), Op::RemoveAlarm { name: row.name, id: row.id, revision: row.revision })
        };
        commit_all(&self.0, &writes(incarnation, alarms.into_iter().map(remove).collect(), rows)).await;
        count as f64 / started.elapsed().as_secs_f64()
    }
}

fn epoch(epochs: &[Epoch], shard: ShardId) -> Epoch {
    epochs[shard.0 as usize]
}
