//! A store that writes down who wrote to which shard.
//!
//! The witness stands directly before the store that is looked at, so it sees what was applied, in that order; what faults do
//! between a host and the store has happened already.

use std::collections::BTreeMap;
use std::fmt;

use async_trait::async_trait;

use super::history::{History, Invariant};
use crate::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read, Renewal,
    Renewed, ShardId, Store, StoreError, Write,
};
use crate::sync::{Arc, Mutex};

/// Passes everything on to a store, and tells a [`History`] when the writes of two owners of a shard interleave.
pub struct Witness {
    inner: Arc<dyn Store>,
    history: History,
    owners: Mutex<BTreeMap<ShardId, (Epoch, Incarnation)>>,
}

impl Witness {
    /// A witness of what `inner` does.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, history: History) -> Witness {
        Witness { inner, history, owners: Mutex::default() }
    }

    /// A shard was granted, or a write to it was accepted, under this epoch.
    fn saw(&self, shard: ShardId, epoch: Epoch, incarnation: Incarnation, what: &str) {
        let mut owners = self.owners.lock();
        let (newest, owner) = *owners.entry(shard).or_insert((epoch, incarnation));
        let is_next = epoch > newest;
        if is_next {
            owners.insert(shard, (epoch, incarnation));
        }
        drop(owners);
        if !is_next && (epoch, incarnation) != (newest, owner) {
            let what = format!(
                "{what} of shard {shard} under epoch {epoch} by {} after epoch {newest} by {}",
                incarnation.0, owner.0
            );
            self.history.violated(Invariant::OneWriter, what);
        }
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Store for Witness {
    async fn claim(&self, claim: &Claim) -> Result<Claimed, StoreError> {
        let claimed = self.inner.claim(claim).await?;
        self.history.note(&format!("claim {} {}", claim.incarnation.0, claimed.granted.len()));
        for grant in &claimed.granted {
            self.saw(grant.shard, grant.epoch, claim.incarnation, "a claim");
        }
        Ok(claimed)
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        self.inner.renew(renewal).await
    }

    async fn release(&self, incarnation: Incarnation, shards: &[ShardId]) -> Result<(), StoreError> {
        self.inner.release(incarnation, shards).await
    }

    async fn cordon(&self, host: &str, is_cordoned: bool) -> Result<bool, StoreError> {
        self.inner.cordon(host, is_cordoned).await
    }

    async fn members(&self) -> Result<Members, StoreError> {
        self.inner.members().await
    }

    async fn commit(&self, write: &Write) -> Result<Vec<Result<(), StoreError>>, StoreError> {
        let answers = self.inner.commit(write).await?;
        let ops: usize = write.batches.iter().map(|batch| batch.ops.len()).sum();
        self.history.note(&format!("commit {} {} {} {ops}", write.incarnation.0, write.lane.0, write.seq));
        for (batch, _) in write.batches.iter().zip(&answers).filter(|(_, answer)| answer.is_ok()) {
            self.saw(batch.shard, batch.epoch, write.incarnation, "a write");
        }
        Ok(answers)
    }

    async fn post(&self, messages: &[NewMessage]) -> Result<Vec<Posted>, StoreError> {
        let posted = self.inner.post(messages).await?;
        for (message, _) in messages.iter().zip(&posted).filter(|(_, posted)| **posted == Posted::Inserted) {
            self.history.inserted(&format!("{}/{}", message.name.instance, message.id));
        }
        Ok(posted)
    }

    async fn watch(&self, incarnation: Incarnation) -> Result<Hints, StoreError> {
        self.inner.watch(incarnation).await
    }

    async fn load(&self, pages: &[Page]) -> Result<Vec<Loaded>, StoreError> {
        self.inner.load(pages).await
    }

    async fn read(&self, read: &Read) -> Result<Found, StoreError> {
        self.inner.read(read).await
    }
}
