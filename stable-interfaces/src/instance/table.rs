//! The instances of one interface on this host, by ID.
//!
//! An ID has at most one slot that is not gone. Looking up and inserting are one operation under one stripe's lock, so a
//! thousand concurrent first requests make one instance. The ID's hash is computed once per request and serves shard, stripe
//! and bucket alike. Locks are taken in the order stripe, then nothing: no slot is locked under a stripe.
//!
//! A table that is full makes room with what has been unused for longest, over the whole table: each use leaves the table's
//! time with its slot, and that time goes on with every insertion and every few look-ups. Stripes are of different sizes, and
//! what a stripe gives up is a share of what it has, never a number: else small ones would shrink until they lose what is in use.

use std::hint::cold_path;
use std::time::Duration;

use hashbrown::HashTable;

use crate::fleet::hash_id;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};

const MAX_STRIPES: usize = 128;
/// The most look-ups in one stripe between two steps of the table's time.
const MAX_LOOK_UPS: usize = 64;
/// The number of slots that are enough to tell what has been unused for long.
const PART: usize = 8_192;
/// The share of a part that makes room at once, for looking costs a walk over the part.
const SHARE: usize = 64;
/// After a walk over a large table that found nothing, the next is as many times as long away.
const REST: u32 = 10;

/// A slot as its table needs to know it.
pub(crate) trait Entry {
    fn id(&self) -> &str;

    /// The table's time of its last use.
    fn used(&self) -> &AtomicU64;
}

/// One stripe, alone on its cache line.
#[repr(align(64))]
struct Stripe<S>(Mutex<StripeState<S>>);

struct StripeState<S> {
    slots: HashTable<Arc<S>>,
    /// Look-ups since the table's time last went on because of them.
    look_ups: usize,
}

pub(crate) struct Table<S> {
    stripes: Box<[Stripe<S>]>,
    len: AtomicUsize,
    max: usize,
    /// The most look-ups in one stripe between two steps of the time.
    look_ups: usize,
    /// The high half is the table's age, raised by each sweep for idle instances: the unit in which idleness is counted, so that
    /// no request reads a clock. The low half is raised by use, and orders uses within an age.
    time: AtomicU64,
    /// The stripe at which the next look for room begins.
    next_part: AtomicUsize,
    /// The moment of the lease clock, in nanoseconds, before which no large table is looked through as a whole.
    rests_until: AtomicU64,
}

const AGE: u32 = 32;

impl<S> std::fmt::Debug for Table<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("len", &self.len.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}

/// The table holds as many instances as it may.
#[derive(Debug)]
pub(crate) struct Full;

impl<S: Entry> Table<S> {
    pub(crate) fn new(max: usize) -> Table<S> {
        // A table for few instances has one stripe.
        let stripes = (max / 1_024).next_power_of_two().clamp(1, MAX_STRIPES);
        let stripe = || Stripe(Mutex::new(StripeState { slots: HashTable::new(), look_ups: 0 }));
        Table {
            stripes: (0..stripes).map(|_| stripe()).collect(),
            len: AtomicUsize::new(0),
            max,
            look_ups: stripes.min(MAX_LOOK_UPS),
            time: AtomicU64::new(0),
            next_part: AtomicUsize::new(0),
            rests_until: AtomicU64::new(0),
        }
    }

    #[inline]
    fn stripe(&self, hash: u64) -> &Mutex<StripeState<S>> {
        // The shard comes from the top bits and the bucket from the lowest; these are neither. The count is a power of two.
        &self.stripes[(hash >> 24) as usize & (self.stripes.len() - 1)].0
    }

    /// The slot of `id`, made by `make` if there is none. `may_exceed` if room has just been made for it.
    #[inline(always)]
    pub(crate) fn get_or_insert(
        &self,
        id: &str,
        hash: u64,
        may_exceed: bool,
        make: impl FnOnce() -> S,
    ) -> Result<Arc<S>, Full> {
        let mut stripe = self.stripe(hash).lock();
        // Not `entry`: most IDs are there, and finding one is cheaper than making room for it as well.
        let Some(slot) = stripe.slots.find(hash, |slot| *slot.id() == *id) else {
            cold_path();
            return self.insert(stripe, hash, may_exceed, make);
        };
        slot.used().store(self.time.load(Ordering::Relaxed), Ordering::Relaxed);
        let slot = slot.clone();
        // With one stripe each use has a time of its own. With many, a counter that all share would cost more than it tells.
        stripe.look_ups += 1;
        if stripe.look_ups >= self.look_ups {
            stripe.look_ups = 0;
            self.time.fetch_add(1, Ordering::Relaxed);
        }
        Ok(slot)
    }

    #[inline(never)]
    fn insert(
        &self,
        mut stripe: MutexGuard<'_, StripeState<S>>,
        hash: u64,
        may_exceed: bool,
        make: impl FnOnce() -> S,
    ) -> Result<Arc<S>, Full> {
        if !may_exceed && self.len.load(Ordering::Relaxed) >= self.max {
            return Err(Full);
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        let slot = make();
        slot.used().store(self.time.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let slot = Arc::new(slot);
        stripe.slots.insert_unique(hash, slot.clone(), |slot| hash_id(slot.id()));
        Ok(slot)
    }

    pub(crate) fn get(&self, id: &str, hash: u64) -> Option<Arc<S>> {
        self.stripe(hash).lock().slots.find(hash, |slot| *slot.id() == *id).cloned()
    }

    /// Removes this very slot, if it is still in the table.
    pub(crate) fn remove(&self, slot: &S) {
        let hash = hash_id(slot.id());
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
    pub(crate) fn grow_older(&self, ages: u32) -> Vec<Arc<S>> {
        let now = (self.time.fetch_add(1 << AGE, Ordering::Relaxed) >> AGE) + 1;
        let is_old = |slot: &&Arc<S>| now.saturating_sub(slot.used().load(Ordering::Relaxed) >> AGE) > u64::from(ages);
        self.stripes
            .iter()
            .flat_map(|stripe| stripe.0.lock().slots.iter().filter(is_old).cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Makes room: has those `leave` that have been unused for longest, at most a share of the table, and says whether any did.
    ///
    /// `leave` says whether a slot does. It is asked for every slot before this says no, except in a large table that was looked
    /// through in vain a moment ago; `now` is the lease clock. It is asked with `false`, and only if none has left with `true`:
    /// whether even those are to leave that should stay if that is possible.
    pub(crate) fn make_room(&self, now: impl Fn() -> Duration, mut leave: impl FnMut(&Arc<S>, bool) -> bool) -> bool {
        let (began, count) = (now(), self.stripes.len());
        for even_if_needed in [false, true] {
            let first = self.next_part.load(Ordering::Relaxed);
            let mut walked = 0;
            while walked < count {
                let part = self.part(first + walked, count - walked);
                walked += part.len();
                self.next_part.store((first + walked) % count, Ordering::Relaxed);
                if self.make_room_in(&part, |slot| leave(slot, even_if_needed)) {
                    return true;
                }
                let rests_until = Duration::from_nanos(self.rests_until.load(Ordering::Relaxed));
                if walked < count && began < rests_until {
                    return false;
                }
            }
        }
        // Looking through a million that are all busy must not be what they are kept waiting by.
        let now = now();
        let rests_until = now.saturating_add(now.saturating_sub(began).saturating_mul(REST));
        self.rests_until.store(u64::try_from(rests_until.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        false
    }

    /// Consecutive stripes from this one on, enough of them, at most so many.
    fn part(&self, first: usize, most: usize) -> Vec<&Stripe<S>> {
        let (mut part, mut slots) = (Vec::new(), 0);
        while slots < PART && part.len() < most {
            let stripe = &self.stripes[(first + part.len()) % self.stripes.len()];
            slots += stripe.0.lock().slots.len();
            part.push(stripe);
        }
        part
    }

    /// Has a share of these stripes' slots leave, the longest unused first; those that do not are passed over.
    fn make_room_in(&self, part: &[&Stripe<S>], mut leave: impl FnMut(&Arc<S>) -> bool) -> bool {
        let used = |slot: &Arc<S>| slot.used().load(Ordering::Relaxed);
        let mut times: Vec<u64> = Vec::new();
        for stripe in part {
            times.extend(stripe.0.lock().slots.iter().map(used));
        }
        let wanted = (times.len() / SHARE).max(1);
        let (mut rank, mut after, mut room) = (wanted, None, 0);
        while let Some(last) = rank.min(times.len()).checked_sub(1) {
            let until = *times.select_nth_unstable(last).1;
            let is_next = |slot: &&Arc<S>| used(slot) <= until && after.is_none_or(|after| used(slot) > after);
            let mut slots: Vec<(u64, Arc<S>)> = Vec::new();
            for stripe in part {
                slots.extend(stripe.0.lock().slots.iter().filter(is_next).map(|slot| (used(slot), slot.clone())));
            }
            slots.sort_unstable_by_key(|(used, _)| *used);
            for (_, slot) in &slots {
                room += usize::from(leave(slot));
                if room == wanted {
                    return true;
                }
            }
            if room > 0 || last + 1 == times.len() {
                break;
            }
            after = Some(until);
            rank = rank.saturating_mul(8);
        }
        room > 0
    }

    /// All slots, as they are one stripe after the other.
    pub(crate) fn slots(&self) -> Vec<Arc<S>> {
        self.slots_where(|_| true)
    }

    /// As [`slots`](Self::slots), those of which this holds. It is asked under the lock of a stripe.
    pub(crate) fn slots_where(&self, is_wanted: impl Fn(&S) -> bool) -> Vec<Arc<S>> {
        let of_stripe = |stripe: &Stripe<S>| {
            stripe.0.lock().slots.iter().filter(|slot| is_wanted(slot)).cloned().collect::<Vec<_>>()
        };
        self.stripes.iter().flat_map(of_stripe).collect()
    }

    /// Empties the table, and returns what was in it to be dropped outside any lock.
    pub(crate) fn clear(&self) -> Vec<Arc<S>> {
        let all: Vec<_> =
            self.stripes.iter().flat_map(|stripe| stripe.0.lock().slots.drain().collect::<Vec<_>>()).collect();
        self.len.fetch_sub(all.len(), Ordering::Relaxed);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::atomic::AtomicBool;

    struct Place {
        id: String,
        used: AtomicU64,
        is_busy: AtomicBool,
    }

    impl Entry for Place {
        fn id(&self) -> &str {
            &self.id
        }

        fn used(&self) -> &AtomicU64 {
            &self.used
        }
    }

    /// A table whose idle slots leave when room is needed.
    struct Scene {
        table: Table<Place>,
        /// The number of slots that were looked at in vain.
        in_vain: usize,
        /// The time that each look at a slot takes, in nanoseconds.
        look: u64,
        now: std::cell::Cell<u64>,
    }

    impl Scene {
        fn new(max: usize) -> Scene {
            Scene { table: Table::new(max), in_vain: 0, look: 0, now: 0.into() }
        }

        /// Uses an ID. Whether it was there; an error if there is no room for it.
        fn touch(&mut self, id: &str) -> Result<bool, Full> {
            let hash = hash_id(id);
            let mut is_new = false;
            let mut make = || {
                is_new = true;
                Place { id: id.to_owned(), used: AtomicU64::new(0), is_busy: AtomicBool::new(false) }
            };
            if self.table.get_or_insert(id, hash, false, &mut make).is_err() {
                let (table, in_vain, now, look) = (&self.table, &mut self.in_vain, &self.now, self.look);
                let has_room = table.make_room(
                    || Duration::from_nanos(now.get()),
                    |slot, _| {
                        now.set(now.get() + look);
                        let is_busy = slot.is_busy.load(Ordering::Relaxed);
                        if is_busy {
                            *in_vain += 1;
                        } else {
                            table.remove(slot);
                        }
                        !is_busy
                    },
                );
                if !has_room {
                    return Err(Full);
                }
                self.table.get_or_insert(id, hash, true, &mut make)?;
            }
            Ok(!is_new)
        }

        fn set_busy(&self, id: &str, is_busy: bool) {
            let slot = self.table.get(id, hash_id(id)).expect("it is there");
            slot.is_busy.store(is_busy, Ordering::Relaxed);
        }
    }

    /// Uses each of `cap / 2` IDs again and again, each after so many others that with itself they are nine tenths of what the
    /// table holds; how many of those uses found theirs gone.
    fn lost_by_those_in_use(cap: usize, rounds: usize) -> usize {
        let mut scene = Scene::new(cap);
        let (often, mut once, mut lost) = (cap / 2, 0, 0);
        for round in 0..rounds {
            for n in 0..often {
                let was_there = scene.touch(&format!("often-{n}")).expect("nothing is busy");
                lost += usize::from(round > 0 && !was_there);
                // Four for each five.
                if n % 5 != 0 {
                    scene.touch(&format!("once-{once}")).expect("nothing is busy");
                    once += 1;
                }
                assert!(scene.table.len() <= cap);
            }
        }
        lost
    }

    #[test]
    fn those_in_use_stay_in_a_table_for_a_hundred() {
        assert_eq!(lost_by_those_in_use(100, 200), 0);
    }

    #[test]
    fn those_in_use_stay_in_a_table_for_ten_thousand() {
        assert_eq!(lost_by_those_in_use(10_000, 20), 0);
    }

    #[test]
    fn those_in_use_stay_in_a_table_for_a_million() {
        assert_eq!(lost_by_those_in_use(1_000_000, 2), 0);
    }

    #[test]
    fn those_unused_for_longest_leave_first_over_all_stripes() {
        let cap = 5_000;
        let mut scene = Scene::new(cap);
        for n in 0..cap {
            scene.touch(&n.to_string()).expect("there is room");
        }
        assert!(scene.table.stripes.len() > 1, "in one stripe it would be easy");
        // Each tenth is used again.
        for n in (0..cap).step_by(10) {
            assert!(scene.touch(&n.to_string()).expect("it is there"));
        }
        for n in 0..cap / 2 {
            scene.touch(&format!("new-{n}")).expect("there is room to be made");
        }
        let is_there = |n: usize| scene.table.get(&n.to_string(), hash_id(&n.to_string())).is_some();
        assert!((0..cap).step_by(10).all(is_there), "those used again stay");
        let gone = (0..cap).filter(|n| !is_there(*n)).max().expect("some have left");
        // What the last walk made room for may not have come yet.
        assert!(gone < (cap / 2 + cap / SHARE) * 10 / 9 + 10, "{gone} has left before others that were used before it");
    }

    #[test]
    fn a_slot_is_old_when_it_has_not_been_used_for_more_ages_than_were_asked_for() {
        let mut scene = Scene::new(10);
        for _ in 0..2 {
            scene.touch("a").expect("there is room");
            assert_eq!([(); 3].map(|()| scene.table.grow_older(2).len()), [0, 0, 1]);
        }
    }

    #[test]
    fn in_a_small_table_each_use_counts_also_when_nothing_new_comes_between() {
        let mut scene = Scene::new(100);
        for n in (0..100).chain((0..100).rev()) {
            scene.touch(&n.to_string()).expect("there is room");
        }
        for n in 0..20 {
            scene.touch(&format!("new-{n}")).expect("there is room to be made");
        }
        for n in 0..60 {
            assert!(scene.touch(&n.to_string()).expect("it is there"), "{n} was used after those that could have left");
        }
    }

    #[test]
    fn one_idle_among_the_busy_makes_room_wherever_it_is() {
        for cap in [1, 100, 20_000] {
            let mut scene = Scene::new(cap);
            for n in 0..cap {
                scene.touch(&n.to_string()).expect("there is room");
                scene.set_busy(&n.to_string(), true);
            }
            scene.touch("new").expect_err("all are busy");
            for n in [0, cap / 2, cap - 1] {
                scene.set_busy(&n.to_string(), false);
                let new = format!("new-{n}");
                scene.touch(&new).expect("one is idle");
                scene.set_busy(&new, true);
                scene.touch("new").expect_err("all are busy again");
                if cap == 1 {
                    break;
                }
            }
            assert_eq!(scene.table.len(), cap);
        }
    }

    #[test]
    fn a_large_table_of_busy_ones_is_not_looked_through_for_each_that_is_refused() {
        let cap = 40_000;
        let mut scene = Scene::new(cap);
        for n in 0..cap {
            scene.touch(&n.to_string()).expect("there is room");
            scene.set_busy(&n.to_string(), true);
        }
        scene.look = 100;
        scene.touch("new").expect_err("all are busy");
        assert_eq!(scene.in_vain, 2 * cap, "each is asked, at last whether it leaves although it is needed");
        let before = scene.now.get();
        for _ in 0..20 {
            scene.touch("new").expect_err("all are busy");
        }
        assert!(scene.in_vain < 20 * cap, "{} looks", scene.in_vain);
        // One that becomes idle is found soon, whoever has been refused before.
        scene.set_busy("17", false);
        scene.now.set(before + 1_000_000_000);
        scene.touch("new").expect("one is idle");
    }
}
