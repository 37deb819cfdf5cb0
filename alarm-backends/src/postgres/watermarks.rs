//! Watermarks: the least that the store must hold, as this process knows, to notice a store that has lost it.
//!
//! A server that was restored from a copy, or a standby that was promoted before it had received everything, knows less than was
//! acknowledged: a smaller number in the fence row of a lane, no trace of a life that claimed, a smaller epoch than was granted. What
//! was known *before* a question is compared with its answer. The first difference ends that life for this store: what its host
//! has in memory is no longer what is stored.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stable_interfaces::StoreError;
use stable_interfaces::store::{Epoch, Grant, Incarnation, Lane, ShardId};

/// The lives that have claimed through this store, and what they were told is stored. The lock is held for a lookup at a time.
#[derive(Debug, Default)]
pub(super) struct Watermarks(Mutex<BTreeMap<Incarnation, Life>>);

/// One life of a host that has claimed through this store.
#[derive(Debug, Default)]
struct Life {
    granted: BTreeMap<ShardId, Epoch>,
    /// The last write of each lane that was answered as done.
    acknowledged: BTreeMap<Lane, u64>,
    /// The loss that was found.
    lost: Option<Arc<str>>,
}

impl Watermarks {
    /// # Errors
    /// [`StoreError::Lost`] once something was found lost that this life knew.
    pub(super) fn check(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        match self.lock().get(&incarnation).and_then(|life| life.lost.as_deref()) {
            Some(what) => Err(StoreError::Lost(what.into())),
            None => Ok(()),
        }
    }

    /// Tells that this life has claimed.
    pub(super) fn has(&self, incarnation: Incarnation) -> bool {
        self.lock().contains_key(&incarnation)
    }

    pub(super) fn claimed(&self, incarnation: Incarnation, granted: &[Grant]) {
        let mut lives = self.lock();
        let life = lives.entry(incarnation).or_default();
        life.granted.extend(granted.iter().map(|grant| (grant.shard, grant.epoch)));
    }

    /// Tells that this was the last epoch of the shard that the life was granted.
    pub(super) fn was_granted(&self, incarnation: Incarnation, shard: ShardId, epoch: Epoch) -> bool {
        self.lock().get(&incarnation).is_some_and(|life| life.granted.get(&shard) == Some(&epoch))
    }

    /// A newer life of the same host has begun.
    pub(super) fn ended(&self, incarnation: Incarnation) {
        self.lock().remove(&incarnation);
    }

    pub(super) fn acknowledge(&self, incarnation: Incarnation, lane: Lane, seq: u64) {
        if let Some(life) = self.lock().get_mut(&incarnation) {
            let last = life.acknowledged.entry(lane).or_default();
            *last = (*last).max(seq);
        }
    }

    /// The last write of the lane that was answered as done; zero if none is known.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn acknowledged(&self, incarnation: Incarnation, lane: Lane) -> Result<u64, StoreError> {
        self.check(incarnation)?;
        Ok(self.lock().get(&incarnation).and_then(|life| life.acknowledged.get(&lane)).copied().unwrap_or(0))
    }

    /// All of [`acknowledged`](Self::acknowledged); `None` of a life that has not claimed.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub(super) fn all_acknowledged(&self, incarnation: Incarnation) -> Result<Option<BTreeMap<Lane, u64>>, StoreError> {
        self.check(incarnation)?;
        Ok(self.lock().get(&incarnation).map(|life| life.acknowledged.clone()))
    }

    /// Something that this life knew is lost: ends it, and says so.
    pub(super) fn lose(&self, incarnation: Incarnation, what: &str) -> StoreError {
        let text: Arc<str> = format!(
            "the Postgres store has lost data that it had acknowledged ({what}): it was made anew, restored from a copy, or failed over \
             to a standby that lagged behind"
        )
        .into();
        if self.lock().entry(incarnation).or_default().lost.replace(text.clone()).is_none() {
            tracing::error!(incarnation = incarnation.0, "{text}");
        }
        StoreError::Lost(text.to_string().into())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Incarnation, Life>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
