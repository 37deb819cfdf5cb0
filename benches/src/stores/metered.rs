//! A store that counts what goes through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use stable_interfaces::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Op, Page, Read, Renewal, Renewed,
    ShardId, Write,
};
use stable_interfaces::{Posted, Store, StoreError};
use tokio::sync::Notify;

/// Passes everything on, and counts what has become durable. Clones count together.
#[derive(Debug, Clone)]
pub struct Metered(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    store: Arc<dyn Store>,
    calls: AtomicU64,
    /// Calls for leases, members and hints.
    fleet_calls: AtomicU64,
    writes: AtomicU64,
    posts: AtomicU64,
    put: AtomicU64,
    removed: AtomicU64,
    changed: Notify,
}

impl Metered {
    /// Counts from zero.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Metered {
        let (calls, fleet_calls, writes, posts, put, removed) = Default::default();
        let changed = Notify::new();
        Metered(Arc::new(Counted { store, calls, fleet_calls, writes, posts, put, removed, changed }))
    }

    /// Says whether there are other clones of this one.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// The number of calls that read or write something.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// The number of calls of any kind: those for leases, members and hints too.
    #[must_use]
    pub fn all_calls(&self) -> u64 {
        self.calls() + self.0.fleet_calls.load(Ordering::SeqCst)
    }

    fn count_of_fleet(&self) -> &Counted {
        self.0.fleet_calls.fetch_add(1, Ordering::SeqCst);
        &self.0
    }

    fn count(&self) -> &Counted {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        &self.0
    }

    /// The number of group commits, and of messages that were posted.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::SeqCst) + self.0.posts.load(Ordering::SeqCst)
    }

    /// The number of alarms that a write has put or removed, on average.
    #[must_use]
    pub fn mean_batch(&self) -> f64 {
        let [writes, put, removed] =
            [&self.0.writes, &self.0.put, &self.0.removed].map(|count| count.load(Ordering::SeqCst));
        (put + removed) as f64 / writes.max(1) as f64
    }

    /// The number of alarms that have been removed.
    #[must_use]
    pub fn removed(&self) -> u64 {
        self.0.removed.load(Ordering::SeqCst)
    }

    /// Waits until this many alarms have been removed.
    pub async fn has_removed(&self, alarms: u64) {
        loop {
            let changed = self.0.changed.notified();
            if self.removed() >= alarms {
                return;
            }
            changed.await;
        }
    }
}

#[async_trait]
impl Store for Metered {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        self.count_of_fleet().store.claim(claim).await
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.count_of_fleet().store.renew(renewal).await
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.count_of_fleet().store.release(incarnation, given_up).await
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.count_of_fleet().store.cordon(member, is_cordoned, seen).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.count_of_fleet().store.members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let answers = self.count().store.commit(write).await?;
        let (mut put, mut removed) = (0, 0);
        for (batch, _) in write.batches.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()) {
            for op in batch.ops.iter() {
                match op {
                    Op::PutAlarm(_) => put += 1,
                    Op::RemoveAlarm { .. } => removed += 1,
                    _ => {}
                }
            }
        }
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        self.0.put.fetch_add(put, Ordering::SeqCst);
        self.0.removed.fetch_add(removed, Ordering::SeqCst);
        if removed > 0 {
            self.0.changed.notify_one();
        }
        Ok(answers)
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        self.0.posts.fetch_add(messages.len() as u64, Ordering::SeqCst);
        self.count().store.post(messages).await
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.count_of_fleet().store.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.count().store.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.count().store.read(read).await
    }
}
