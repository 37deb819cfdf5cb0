//! A store that writes down who wrote to which shard.
//!
//! The witness stands directly before the store that is looked at, so it sees what was applied, in that order; what faults do
//! between a host and the store has happened already.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::history::{History, Invariant};
use crate::clock::Clock;
use crate::store::{
    Claim, Claimed, Epoch, Found, Hints, Incarnation, Loaded, Members, NewMessage, Page, Posted, Read, Renewal,
    Renewed, ShardId, Store, StoreError, Write,
};
use crate::sync::{Arc, Mutex};

/// Passes everything on to a store, and tells a [`History`] when the writes of two owners of a shard interleave, or a shard is granted
/// whose owner lives.
pub struct Witness {
    inner: Arc<dyn Store>,
    history: History,
    /// The clock by which leases end, if they are looked at.
    clock: Option<Arc<dyn Clock>>,
    owners: Mutex<BTreeMap<ShardId, (Epoch, Incarnation)>>,
    /// The keeper of each shard, and the time until which it keeps that at least.
    leases: Mutex<BTreeMap<ShardId, Kept>>,
}

/// A shard that somebody keeps.
struct Kept {
    incarnation: Incarnation,
    host: Arc<str>,
    until: Duration,
}

impl Witness {
    /// A witness of what `inner` does.
    #[must_use]
    pub fn new(inner: Arc<dyn Store>, history: History) -> Witness {
        Witness { inner, history, clock: None, owners: Mutex::default(), leases: Mutex::default() }
    }

    /// Has it look at leases too, which end by this clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Witness {
        self.clock = Some(clock);
        self
    }

    /// Shards were granted: of each the owner before has given it up, is another life of the same host, or has a lease that is over.
    fn granted(&self, claim: &Claim, claimed: &Claimed) {
        let Some(clock) = &self.clock else { return };
        let (now, until) = (clock.elapsed(), clock.elapsed().saturating_add(claim.lease));
        for grant in &claimed.granted {
            let kept = Kept { incarnation: claim.incarnation, host: claim.host.clone(), until };
            let before = self.leases.lock().insert(grant.shard, kept);
            if let Some(before) = before.filter(|before| before.host != claim.host && before.until > now) {
                let (shard, left) = (grant.shard, before.until - now);
                let what =
                    format!("shard {shard} is granted to {}, and {} has it for {left:?} more", claim.host, before.host);
                self.history.violated(Invariant::OneWriter, what);
            }
        }
    }

    /// The lease was renewed: of these shards at least.
    fn renewed(&self, renewal: &Renewal, owned: &[ShardId]) {
        let Some(clock) = &self.clock else { return };
        let until = clock.elapsed().saturating_add(renewal.lease);
        let mut leases = self.leases.lock();
        for shard in owned {
            if let Some(kept) = leases.get_mut(shard).filter(|kept| kept.incarnation == renewal.incarnation) {
                kept.until = until;
            }
        }
    }

    /// Shards were given up.
    fn released(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) {
        let owners = self.owners.lock();
        let is_of = |shard, epoch| owners.get(shard).is_some_and(|(newest, _)| *newest == epoch);
        let mut leases = self.leases.lock();
        let released = given_up.iter().filter(|(shard, epoch)| epoch.is_none_or(|epoch| is_of(shard, epoch)));
        for (shard, _) in released {
            if leases.get(shard).is_some_and(|kept| kept.incarnation == incarnation) {
                leases.remove(shard);
            }
        }
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
        self.granted(claim, &claimed);
        Ok(claimed)
    }

    async fn renew(&self, renewal: &Renewal) -> Result<Renewed, StoreError> {
        let renewed = self.inner.renew(renewal).await?;
        self.renewed(renewal, &renewed.owned);
        Ok(renewed)
    }

    async fn release(&self, incarnation: Incarnation, given_up: &[(ShardId, Option<Epoch>)]) -> Result<(), StoreError> {
        self.inner.release(incarnation, given_up).await?;
        self.released(incarnation, given_up);
        Ok(())
    }

    async fn cordon(&self, member: Incarnation, is_cordoned: bool, seen: u64) -> Result<bool, StoreError> {
        self.inner.cordon(member, is_cordoned, seen).await
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
