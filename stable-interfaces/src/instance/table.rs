//! The instances of one interface on this host, by ID.
//!
//! An ID has at most one slot that is not gone. Looking up and inserting are one operation under one stripe's lock, so a
//! thousand concurrent first requests make one instance. The ID's hash is computed once per request and serves shard, stripe
//! and bucket alike. Locks are taken in the order stripe, then nothing: no slot is locked under a stripe.

use hashbrown::HashTable;

use super::StableInterface;
use super::slot::Slot;
use crate::fleet::hash_id;
use crate::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

const MAX_STRIPES: usize = 128;

/// One stripe, alone on its cache line.
#[repr(align(64))]
struct Stripe<I: StableInterface>(Mutex<StripeState<I>>);

struct StripeState<I: StableInterface> {
    slots: HashTable<Arc<Slot<I>>>,
    /// Counts look-ups, so that the slots of a stripe can be put in the order of their last use.
    uses: u32,
}

pub(crate) struct Table<I: StableInterface> {
    stripes: Box<[Stripe<I>]>,
    len: AtomicUsize,
    max: usize,
    /// Raised by each sweep for idle instances: the unit in which idleness is counted, so that no request reads a clock.
    age: AtomicU32,
}

impl<I: StableInterface> std::fmt::Debug for Table<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The table holds as many instances as it may.
#[derive(Debug)]
pub(crate) struct Full;

impl<I: StableInterface> Table<I> {
    pub(crate) fn new(max: usize) -> Table<I> {
        // A table for few instances has one stripe, and there the order of use is exact.
        let stripes = (max / 1_024).next_power_of_two().clamp(1, MAX_STRIPES);
        let stripe = || Stripe(Mutex::new(StripeState { slots: HashTable::new(), uses: 0 }));
        Table {
            stripes: (0..stripes).map(|_| stripe()).collect(),
            len: AtomicUsize::new(0),
            max,
            age: AtomicU32::new(0),
        }
    }

    #[inline]
    fn stripe(&self, hash: u64) -> &Mutex<StripeState<I>> {
        // The shard comes from the top bits and the bucket from the lowest; these are neither. The count is a power of two.
        &self.stripes[(hash >> 24) as usize & (self.stripes.len() - 1)].0
    }

    /// The slot of `id`, made by `make` if there is none. `may_exceed` if room has just been made for it.
    #[inline]
    pub(crate) fn get_or_insert(
        &self,
        id: &str,
        hash: u64,
        may_exceed: bool,
        make: impl FnOnce() -> Slot<I>,
    ) -> Result<Arc<Slot<I>>, Full> {
        let mut stripe = self.stripe(hash).lock();
        stripe.uses = stripe.uses.wrapping_add(1);
        let used = Used { age: self.age.load(Ordering::Relaxed), order: stripe.uses }.pack();
        // Not `entry`: most IDs are there, and finding one is cheaper than making room for it as well.
        if let Some(slot) = stripe.slots.find(hash, |slot| *slot.id == *id) {
            slot.used.store(used, Ordering::Relaxed);
            return Ok(slot.clone());
        }
        if !may_exceed && self.len.load(Ordering::Relaxed) >= self.max {
            return Err(Full);
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        let slot = make();
        slot.used.store(used, Ordering::Relaxed);
        let slot = Arc::new(slot);
        stripe.slots.insert_unique(hash, slot.clone(), |slot| hash_id(&slot.id));
        Ok(slot)
    }

    pub(crate) fn get(&self, id: &str, hash: u64) -> Option<Arc<Slot<I>>> {
        self.stripe(hash).lock().slots.find(hash, |slot| *slot.id == *id).cloned()
    }

    /// Removes this very slot, if it is still in the table.
    pub(crate) fn remove(&self, slot: &Slot<I>) {
        let hash = hash_id(&slot.id);
        let mut stripe = self.stripe(hash).lock();
        let found = stripe.slots.find_entry(hash, |entry| std::ptr::eq(&**entry, slot));
        let removed = found.ok().map(|entry| entry.remove().0);
        drop(stripe);
        if removed.is_some() {
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Begins the next age, and returns the slots that were last used `ages` ages ago or longer.
    pub(crate) fn grow_older(&self, ages: u32) -> Vec<Arc<Slot<I>>> {
        let now = self.age.fetch_add(1, Ordering::Relaxed) + 1;
        let is_old =
            |slot: &&Arc<Slot<I>>| now.saturating_sub(Used::unpack(slot.used.load(Ordering::Relaxed)).age) > ages;
        self.stripes
            .iter()
            .flat_map(|stripe| stripe.0.lock().slots.iter().filter(is_old).cloned().collect::<Vec<_>>())
            .collect()
    }

    /// The slots of the stripe that `hash` falls in, longest unused first.
    pub(crate) fn least_used(&self, hash: u64) -> Vec<Arc<Slot<I>>> {
        let mut slots: Vec<_> = self.stripe(hash).lock().slots.iter().cloned().collect();
        slots.sort_unstable_by_key(|slot| slot.used.load(Ordering::Relaxed));
        slots
    }

    /// How many slots make room at once: looking for them costs a walk over the stripe.
    pub(crate) fn eviction(&self) -> usize {
        (self.max / self.stripes.len() / 16).max(1)
    }

    /// All slots, as they are one stripe after the other.
    pub(crate) fn slots(&self) -> Vec<Arc<Slot<I>>> {
        self.stripes.iter().flat_map(|stripe| stripe.0.lock().slots.iter().cloned().collect::<Vec<_>>()).collect()
    }

    /// Empties the table, and returns what was in it to be dropped outside any lock.
    pub(crate) fn clear(&self) -> Vec<Arc<Slot<I>>> {
        let all: Vec<_> =
            self.stripes.iter().flat_map(|stripe| stripe.0.lock().slots.drain().collect::<Vec<_>>()).collect();
        self.len.fetch_sub(all.len(), Ordering::Relaxed);
        all
    }
}

/// When a slot was used last: in which age of the table, and in which order within it.
#[derive(Debug, Clone, Copy)]
struct Used {
    age: u32,
    order: u32,
}

impl Used {
    fn pack(self) -> u64 {
        u64::from(self.age) << 32 | u64::from(self.order)
    }

    fn unpack(used: u64) -> Used {
        let [high, low] = [used >> 32, used & u64::from(u32::MAX)].map(|half| u32::try_from(half).unwrap_or(u32::MAX));
        Used { age: high, order: low }
    }
}
