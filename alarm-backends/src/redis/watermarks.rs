//! Watermarks: the least that the store must hold, as this process knows, to notice a store that has lost it.
//!
//! A server that comes back empty, from an old file, or as a replica that lagged behind knows less than it acknowledged: another
//! store ID, a smaller epoch than it granted, an owner under an epoch that it gave to us, or a smaller sequence number than it answered. Each
//! is compared with what was known *before* the question was sent. The first difference ends all lives of this process for the
//! store: what their hosts have in memory is no longer what is stored, so they must start anew from what is. A new life finds a
//! store of which nothing is known yet.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use stable_interfaces::StoreError;
use stable_interfaces::store::{Epoch, Incarnation, Lane, ShardId};

/// The lives that this process leads and what they were told is stored. The lock is held for a lookup at a time.
#[derive(Debug, Default)]
pub(super) struct Watermarks {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The ID of the store, as its first answer gave it.
    store: Option<String>,
    lives: BTreeMap<Incarnation, Life>,
    /// The lives that were led when something was found lost, and what.
    lost: BTreeMap<Incarnation, Arc<str>>,
}

/// One life of a host, as this process led it.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) host: String,
    /// The number of its start, over the whole fleet.
    pub(super) birth: u64,
    pub(super) shards: BTreeMap<ShardId, Shard>,
}

/// A shard as it was granted, and the writes to it that were acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shard {
    pub(super) epoch: Epoch,
    /// The last write of each lane that was acknowledged.
    pub(super) acknowledged: BTreeMap<Lane, u64>,
}

impl Watermarks {
    /// # Errors
    /// [`StoreError::Lost`] once something was found lost that this life knew.
    pub(super) fn check(&self, incarnation: Incarnation) -> Result<(), StoreError> {
        match self.state.lock().lost.get(&incarnation) {
            Some(what) => Err(StoreError::Lost(what.to_string().into())),
            None => Ok(()),
        }
    }

    /// Something that this life knew is lost: ends all lives, forgets the store, and says so.
    pub(super) fn lose(&self, incarnation: Incarnation, what: &str) -> StoreError {
        let text: Arc<str> = format!(
            "the Redis store has lost data that it had acknowledged ({what}): it was emptied, restored from an old file, or failed \
             over to a replica that lagged behind"
        )
        .into();
        let mut state = self.state.lock();
        let lives = std::mem::take(&mut state.lives).into_keys();
        for life in lives.chain([incarnation]) {
            if state.lost.insert(life, text.clone()).is_none() {
                tracing::error!(incarnation = life.0, "{text}");
            }
        }
        state.store = None;
        StoreError::Lost(text.to_string().into())
    }

    pub(super) fn store(&self) -> Option<String> {
        self.state.lock().store.clone()
    }

    pub(super) fn life(&self, incarnation: Incarnation) -> Option<Life> {
        self.state.lock().lives.get(&incarnation).cloned()
    }

    /// A life has entered the store. What it was granted before stays known.
    pub(super) fn enter(&self, store: String, incarnation: Incarnation, host: &str, birth: u64) {
        let mut state = self.state.lock();
        state.store = Some(store);
        let life = state.lives.entry(incarnation);
        life.or_insert_with(|| Life { host: host.to_owned(), birth, shards: BTreeMap::new() }).birth = birth;
    }

    /// A life is over, or nobody will ask about it.
    pub(super) fn end(&self, incarnation: Incarnation) {
        self.state.lock().lives.remove(&incarnation);
    }

    pub(super) fn grant(&self, incarnation: Incarnation, shard: ShardId, epoch: Epoch) {
        if let Some(life) = self.state.lock().lives.get_mut(&incarnation) {
            let known = life.shards.entry(shard).or_default();
            if known.epoch != epoch {
                *known = Shard { epoch, acknowledged: BTreeMap::new() };
            }
        }
    }

    /// The shard is no longer this life's, by its own will or another's claim.
    pub(super) fn give_up(&self, incarnation: Incarnation, shard: ShardId, epoch: Epoch) {
        if let Some(life) = self.state.lock().lives.get_mut(&incarnation)
            && life.shards.get(&shard).is_some_and(|known| known.epoch == epoch)
        {
            life.shards.remove(&shard);
        }
    }

    pub(super) fn shard(&self, incarnation: Incarnation, shard: ShardId) -> Option<Shard> {
        self.state.lock().lives.get(&incarnation)?.shards.get(&shard).cloned()
    }

    pub(super) fn acknowledge(&self, incarnation: Incarnation, shard: ShardId, epoch: Epoch, lane: Lane, seq: u64) {
        if let Some(life) = self.state.lock().lives.get_mut(&incarnation)
            && let Some(known) = life.shards.get_mut(&shard).filter(|known| known.epoch == epoch)
        {
            let last = known.acknowledged.entry(lane).or_default();
            *last = (*last).max(seq);
        }
    }
}

impl Shard {
    /// Names something of this that a shard lacks which is at `epoch`, has `owner`, and last took `taken` of its owner's writes.
    pub(super) fn lost(
        &self,
        me: Incarnation,
        epoch: Epoch,
        owner: Option<Incarnation>,
        taken: &BTreeMap<Lane, u64>,
    ) -> Option<String> {
        if epoch < self.epoch {
            return Some(format!("epoch {} was granted, {epoch} is stored", self.epoch));
        }
        if epoch > self.epoch {
            return None;
        }
        match owner {
            Some(owner) if owner == me => self.acknowledged.iter().find_map(|(lane, seq)| {
                let stored = taken.get(lane).copied().unwrap_or(0);
                (stored < *seq).then(|| format!("write {seq} of lane {} was taken, {stored} is stored", lane.0))
            }),
            Some(_) => Some(format!("epoch {epoch} was granted to this host, and is somebody else's")),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Incarnation = Incarnation(7);
    const OTHER: Incarnation = Incarnation(8);

    fn shard(epoch: u64, acknowledged: &[(u16, u64)]) -> Shard {
        let acknowledged = acknowledged.iter().map(|(lane, seq)| (Lane(*lane), *seq)).collect();
        Shard { epoch: Epoch(epoch), acknowledged }
    }

    #[test]
    fn a_store_that_knows_as_much_or_more_has_lost_nothing() {
        let known = shard(3, &[(0, 10), (1, 4)]);
        let taken = shard(3, &[(0, 11), (1, 4), (2, 1)]).acknowledged;
        assert_eq!(known.lost(ME, Epoch(3), Some(ME), &taken), None);
        // Somebody else's since, or given up.
        assert_eq!(known.lost(ME, Epoch(4), Some(OTHER), &BTreeMap::new()), None);
        assert_eq!(known.lost(ME, Epoch(3), None, &BTreeMap::new()), None);
    }

    #[test]
    fn a_store_that_knows_less_is_noticed() {
        let known = shard(3, &[(0, 10)]);
        assert!(known.lost(ME, Epoch(2), Some(ME), &known.acknowledged).is_some());
        assert!(known.lost(ME, Epoch(0), None, &BTreeMap::new()).is_some());
        assert!(known.lost(ME, Epoch(3), Some(ME), &shard(3, &[(0, 9)]).acknowledged).is_some());
        assert!(known.lost(ME, Epoch(3), Some(ME), &BTreeMap::new()).is_some());
        assert!(known.lost(ME, Epoch(3), Some(OTHER), &known.acknowledged).is_some());
    }

    #[test]
    fn of_two_answers_the_greater_number_stays_known_whichever_comes_last() {
        let known = Watermarks::default();
        known.enter("store".into(), ME, "host", 1);
        known.grant(ME, ShardId(0), Epoch(1));
        for seq in [4, 5, 3] {
            known.acknowledge(ME, ShardId(0), Epoch(1), Lane(0), seq);
        }
        assert_eq!(known.shard(ME, ShardId(0)), Some(shard(1, &[(0, 5)])));
    }

    #[test]
    fn a_new_epoch_forgets_what_the_old_one_acknowledged() {
        let known = Watermarks::default();
        known.enter("store".into(), ME, "host", 1);
        known.grant(ME, ShardId(0), Epoch(1));
        known.acknowledge(ME, ShardId(0), Epoch(1), Lane(0), 5);
        known.grant(ME, ShardId(0), Epoch(1));
        assert_eq!(known.shard(ME, ShardId(0)), Some(shard(1, &[(0, 5)])));
        known.grant(ME, ShardId(0), Epoch(3));
        known.acknowledge(ME, ShardId(0), Epoch(1), Lane(0), 6);
        known.give_up(ME, ShardId(0), Epoch(1));
        assert_eq!(known.shard(ME, ShardId(0)), Some(shard(3, &[])));
    }
}
