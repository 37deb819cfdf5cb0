//! The soonest alarms of one shard, held in memory.
//!
//! A window holds *every* live alarm of its shard up to its *horizon* and none beyond it, so its first alarm is the shard's
//! first alarm, and memory stays bounded, in alarms and in bytes, however many the store keeps and whatever they carry. Three kinds
//! stay whatever the horizon: alarms that are *firing*, because somebody will say how it ended, *postponed* ones, because only memory
//! knows until when, and those in a *crowd* behind another of their instance, which is busy ([`Crowds`]). A postponement ends at a time
//! of the lease clock: only what is stored is listed under a time of the wall, which may step.
//! Nothing here reads a clock, does I/O or takes a lock; the driver passes `now` in and carries out what comes back.
//!
//! An alarm that is too large for its window is not kept, only when it is due; and is loaded a moment before, to wait alone.
//!
//! The window follows what is durable: [`put`](AlarmWindow::put) and [`remove`](AlarmWindow::remove) are called when a commit
//! has been written, in the order of the commits of each alarm. The horizon rises only when a page has been merged, and falls
//! when the window is over one of its caps and drops its tail.

#[cfg(test)]
mod model;
mod notes;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::time::Duration;

use hashbrown::HashTable;

use self::notes::Notes;
use crate::clock::Timestamp;
use crate::crowds::Crowds;
use crate::store::{AlarmKey, AlarmRow, InstanceName, Revision};
use crate::sync::Arc;

/// Alarms that are known to come later than that are loaded later.
const SOON: Duration = Duration::from_secs(2);
/// The bytes that an alarm in memory takes beside its texts and its meta, roughly.
const OVERHEAD: usize = 256;
/// While postponed alarms have more bytes than that, no others are loaded beside them.
const MAX_POSTPONED_BYTES: usize = 1024 * 1024;
/// The most alarms behind others of their instances, for each that may wait beside them; with more, no others are loaded.
const CROWD_PER_CAP: usize = 16;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct AlarmWindow {
    /// Everything in memory, by `(name, id)`.
    entries: HashTable<Entry>,
    /// Seeded at random, for IDs come from outside; nothing depends on the order of `entries`.
    hasher: RandomState,
    /// The entries in state `Waiting`: all of them within the horizon.
    waiting: BTreeSet<ByKey>,
    /// The entries in state `Postponed`, each behind the time it waits for, by the lease clock.
    postponed: BTreeSet<(Duration, ByKey)>,
    /// The entries in state `Crowded`, by instance.
    crowds: Crowds<ByKey>,
    horizon: Horizon,
    page: Page,
    /// The most alarms in `waiting` and `postponed` together, as far as dropping from `waiting` can bring it about.
    cap: usize,
    /// The most bytes of the alarms in `waiting`, unless it is a single one that is due soon.
    cap_bytes: usize,
    /// The bytes of the alarms in `waiting`, and of those in `postponed`.
    waiting_bytes: usize,
    postponed_bytes: usize,
    /// The bytes of the alarms in `crowds`.
    crowd_bytes: usize,
    /// The time at which the first alarm beyond the horizon is due, or earlier; `None` if nothing is known of it.
    beyond: Option<Timestamp>,
    /// Says whether the last page had more bytes than there was room for: then there is no use in another before all that waits is gone.
    was_cut: bool,
    /// The time it was told last.
    now: Timestamp,
}

#[derive(Debug)]
struct Entry {
    row: Arc<AlarmRow>,
    state: State,
}

/// `put` and a merged page make an alarm wait; `pop_due` makes one that waits or is in a crowd fire, or sends it to a crowd;
/// `wait_again` makes a firing one wait or postpones it, `turn_back` sends it to a crowd; `end_waits` makes a postponed one wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Postponed(Duration),
    Crowded,
    Firing,
}

/// Up to where every live alarm is in memory. Ordered from nothing to everything.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Horizon {
    /// Before the first alarm there could be.
    Start,
    /// Up to this key and including it.
    At(AlarmKey),
    /// The store has no alarm that is not in memory.
    End,
}

/// `Idle` → `begin_page` → `Loading` → `merge_page` or `abandon_page` → `Idle`. A page that is loading is `Spoiled` when the
/// horizon falls: it starts after the old one, and what lies between is in neither.
#[derive(Debug, Default)]
enum Page {
    #[default]
    Idle,
    Loading(Notes),
    Spoiled,
}

/// A row in the order of [`AlarmKey`], without holding its strings twice.
#[derive(Debug, Clone)]
struct ByKey(Arc<AlarmRow>);

impl AlarmWindow {
    /// A window without a bound in bytes.
    #[cfg(test)]
    pub(crate) fn new(cap: usize) -> AlarmWindow {
        AlarmWindow::bounded(cap, usize::MAX)
    }

    /// A window of a shard of which nothing has been loaded, for at most `cap` waiting alarms (but at least 2) with at most `cap_bytes`
    /// together, or one that is due soon; firing ones come on top.
    pub(crate) fn bounded(cap: usize, cap_bytes: usize) -> AlarmWindow {
        AlarmWindow {
            entries: HashTable::new(),
            hasher: RandomState::new(),
            waiting: BTreeSet::new(),
            postponed: BTreeSet::new(),
            crowds: Crowds::default(),
            horizon: Horizon::Start,
            page: Page::Idle,
            cap: cap.max(2),
            cap_bytes,
            waiting_bytes: 0,
            postponed_bytes: 0,
            crowd_bytes: 0,
            beyond: None,
            was_cut: false,
            now: Timestamp::MIN,
        }
    }

    /// Tells it the time, by which it decides what is due soon.
    pub(crate) fn tell(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// An alarm was written. As in the store, it takes the place of one with the same revision or a smaller one, also of one
    /// that is firing: the new setting waits.
    pub(crate) fn put(&mut self, row: AlarmRow) {
        let hash = self.hash(&row.name, &row.id);
        let mut was_waiting = false;
        if let Some(entry) = self.find(hash, &row.name, &row.id) {
            was_waiting = entry.state == State::Waiting;
            // A page may have shown it before the commit that wrote it did, and then it may be firing already.
            let is_known = entry.state == State::Firing && *entry.row == row;
            if is_known || entry.row.revision > row.revision {
                return;
            }
        }
        let row = Arc::new(row);
        let within = self.horizon.reaches(&row);
        if let Page::Loading(notes) = &mut self.page
            && !notes.put(hash, &row, within)
        {
            return;
        }
        if within && was_waiting {
            self.move_waiting(hash, row);
        } else {
            self.take(hash, &row.name, &row.id);
            if !within {
                return self.note_beyond(row.due);
            }
            self.insert_waiting(hash, row);
        }
        self.drop_tail();
    }

    /// An alarm was removed, unless its revision is greater than this one.
    pub(crate) fn remove(&mut self, name: &InstanceName, id: &str, revision: Revision) {
        let hash = self.hash(name, id);
        if let Page::Loading(notes) = &mut self.page {
            notes.remove(hash, name, id, revision);
        }
        if self.find(hash, name, id).is_some_and(|entry| entry.row.revision <= revision) {
            self.take(hash, name, id);
        }
    }

    /// Lets those wait for their due time alone whose postponement is over when the lease clock shows `elapsed`.
    pub(crate) fn end_waits(&mut self, elapsed: Duration) {
        while self.postponed.first().is_some_and(|(at, _)| *at <= elapsed) {
            let Some((_, ByKey(row))) = self.postponed.first().cloned() else { return };
            self.take(self.hash(&row.name, &row.id), &row.name, &row.id);
            // If the horizon has fallen below it meanwhile, a page will bring it back.
            if self.horizon.reaches(&row) {
                self.insert_waiting(self.hash(&row.name, &row.id), row);
            } else {
                self.note_beyond(row.due);
            }
        }
        self.drop_tail();
    }

    /// The first alarm that waits and is due at `now`, which from here on is firing. One whose instance is busy with another waits
    /// behind that.
    ///
    /// The alarm stays in memory until [`put`](Self::put), [`remove`](Self::remove), [`wait_again`](Self::wait_again) or
    /// [`set_aside`](Self::set_aside) says how the firing ended.
    pub(crate) fn pop_due(&mut self, now: Timestamp) -> Option<AlarmRow> {
        self.tell(now);
        loop {
            if self.next_deadline()? > now {
                return None;
            }
            let is_first = |crowd: &ByKey| self.waiting.first().is_none_or(|waiting| crowd < waiting);
            if self.crowds.first().is_some_and(is_first) {
                let ByKey(row) = self.crowds.pop_first()?;
                self.crowd_bytes -= size(&row);
                self.entry_of(&row).state = State::Firing;
                return Some((*row).clone());
            }
            let key = self.waiting.pop_first()?;
            let row = key.0.clone();
            self.waiting_bytes -= size(&row);
            if self.crowds.has(&row.name) && !self.crowds.lead(&row.name) {
                self.join_crowd(key);
            } else {
                self.entry_of(&row).state = State::Firing;
                return Some((*row).clone());
            }
        }
    }

    /// Makes a firing alarm the one of its instance behind which the others wait, unless there is one; `false` says that.
    pub(crate) fn lead(&mut self, name: &InstanceName) -> bool {
        self.crowds.lead(name)
    }

    /// True if an alarm of the instance is firing behind which the others wait.
    pub(crate) fn is_led(&self, name: &InstanceName) -> bool {
        self.crowds.has_head(name)
    }

    /// True if alarms wait behind others of their instances.
    pub(crate) fn has_crowd(&self) -> bool {
        self.crowds.waiting() > 0
    }

    /// The instance is done with the one behind which the others wait, however that ended.
    pub(crate) fn head_ended(&mut self, name: &InstanceName) {
        self.crowds.head_ended(name);
    }

    /// A firing alarm has met another of its instance, and waits behind that. Does nothing if this revision is not firing any more.
    pub(crate) fn turn_back(&mut self, name: &InstanceName, id: &str, revision: Revision) {
        let hash = self.hash(name, id);
        if let Some(entry) = self.find(hash, name, id)
            && entry.state == State::Firing
            && entry.row.revision == revision
        {
            self.join_crowd(ByKey(entry.row.clone()));
        }
    }

    fn join_crowd(&mut self, key: ByKey) {
        self.entry_of(&key.0).state = State::Crowded;
        self.crowd_bytes += size(&key.0);
        self.crowds.wait(&key.0.name.clone(), key);
    }

    fn entry_of(&mut self, row: &AlarmRow) -> &mut Entry {
        let hash = self.hash(&row.name, &row.id);
        self.find_mut(hash, &row.name, &row.id).expect("each alarm of an order is an entry")
    }

    /// The time at which [`pop_due`](Self::pop_due) will have something, if nothing is put or merged before; `None` if never.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let first = self.waiting.first().into_iter().chain(self.crowds.first()).min();
        first.map(|key| key.0.due)
    }

    /// The time at which the next postponement ends, by the lease clock.
    pub(crate) fn next_wait(&self) -> Option<Duration> {
        self.postponed.first().map(|(at, _)| *at)
    }

    /// A firing ended and changed nothing: the alarm waits again, and not only for its due time but first until the lease clock shows
    /// `not_before`, if given.
    ///
    /// Does nothing if this revision is not firing any more. Postponed alarms cannot be dropped, so `not_before` should be
    /// near; a retry after a failure is a new due time, and comes by [`put`](Self::put).
    pub(crate) fn wait_again(
        &mut self,
        name: &InstanceName,
        id: &str,
        revision: Revision,
        not_before: Option<Duration>,
    ) {
        let hash = self.hash(name, id);
        let Some(entry) = self.find_mut(hash, name, id) else { return };
        if entry.state != State::Firing || entry.row.revision != revision {
            return;
        }
        let key = ByKey(entry.row.clone());
        if let Some(at) = not_before {
            entry.state = State::Postponed(at);
            self.postponed_bytes += size(&key.0);
            self.postponed.insert((at, key));
        } else if self.horizon.reaches(&key.0) {
            self.take(hash, name, id);
            self.insert_waiting(hash, key.0);
        } else {
            // The horizon fell while it was firing. A page will bring it back.
            self.take(hash, name, id);
            self.note_beyond(key.0.due);
        }
        self.drop_tail();
    }

    /// Forgets an alarm of this revision, which stays in the store: nobody here can handle it. It comes back only with a page
    /// that is begun after the horizon has fallen below it.
    pub(crate) fn set_aside(&mut self, name: &InstanceName, id: &str, revision: Revision) {
        let hash = self.hash(name, id);
        if self.find(hash, name, id).is_none_or(|entry| entry.row.revision != revision) {
            return;
        }
        self.take(hash, name, id);
        if let Page::Loading(notes) = &mut self.page {
            notes.remove(hash, name, id, revision);
        }
    }

    /// The alarm with this identity, if it is in memory.
    pub(crate) fn get(&self, name: &InstanceName, id: &str) -> Option<&AlarmRow> {
        self.find(self.hash(name, id), name, id).map(|entry| &*entry.row)
    }

    /// Every alarm in memory, in no order.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &Arc<AlarmRow>> {
        self.entries.iter().map(|entry| &entry.row)
    }

    /// Tells whether this alarm has been popped and is not known to have ended.
    #[cfg(test)]
    pub(crate) fn is_firing(&self, name: &InstanceName, id: &str) -> bool {
        self.find(self.hash(name, id), name, id).is_some_and(|entry| entry.state == State::Firing)
    }

    /// Tells whether it is time to load a page: there is more in the store, less than half the cap is waiting here, and none is
    /// being loaded.
    pub(crate) fn wants_page(&self) -> bool {
        matches!(self.page, Page::Idle) && self.behind().is_some()
    }

    /// If a page is wanted or being loaded: up to when all alarms are in memory all the same.
    pub(crate) fn behind(&self) -> Option<Timestamp> {
        let all_up_to = match &self.horizon {
            Horizon::Start => Timestamp::MIN,
            Horizon::At(key) => key.due,
            Horizon::End => return None,
        };
        (self.has_room() && self.beyond.is_none_or(|due| self.is_soon(due))).then_some(all_up_to)
    }

    /// The time at which a page will be wanted, if that is later.
    pub(crate) fn page_deadline(&self) -> Option<Timestamp> {
        let due = self.beyond.filter(|due| self.has_room() && !self.is_soon(*due) && self.horizon != Horizon::End)?;
        matches!(self.page, Page::Idle).then(|| due - SOON)
    }

    fn has_room(&self) -> bool {
        let has_room = self.waiting() * 2 < self.cap && self.waiting_bytes <= self.cap_bytes / 2;
        let crowds = self.crowds.waiting() < self.cap * CROWD_PER_CAP && self.crowd_bytes <= self.cap_bytes;
        has_room && crowds && self.postponed_bytes <= MAX_POSTPONED_BYTES && (!self.was_cut || self.waiting.is_empty())
    }

    fn is_soon(&self, due: Timestamp) -> bool {
        due <= self.now + SOON
    }

    /// The store has an alarm that is due then and is not in memory.
    fn note_beyond(&mut self, due: Timestamp) {
        self.beyond = self.beyond.map(|other| other.min(due));
    }

    /// The number of bytes of alarms that there is room for.
    pub(crate) fn room(&self) -> usize {
        self.cap_bytes.saturating_sub(self.waiting_bytes)
    }

    /// Begins to note what changes, and says what to load: alarms strictly after this key, at most this many.
    ///
    /// Load only after this call, and end with [`merge_page`](Self::merge_page) or [`abandon_page`](Self::abandon_page).
    pub(crate) fn begin_page(&mut self) -> (Option<AlarmKey>, usize) {
        self.page = Page::Loading(Notes::new(self.cap, self.cap_bytes));
        let after = match &self.horizon {
            Horizon::At(key) => Some(key.clone()),
            Horizon::Start | Horizon::End => None,
        };
        (after, self.cap.saturating_sub(self.waiting()).max(1))
    }

    /// Takes in the page that was begun: `rows` ascending by key, `complete` if the store has none after them. What happened
    /// since the page was begun wins over its rows.
    ///
    /// The horizon may rise by less than the page, or not at all; ask [`wants_page`](Self::wants_page) again.
    pub(crate) fn merge_page(&mut self, rows: Vec<AlarmRow>, complete: bool) {
        let Page::Loading(notes) = mem::take(&mut self.page) else { return };
        let mut reached = match rows.last() {
            _ if complete => Horizon::End,
            Some(row) => Horizon::At(row.key()),
            None => Horizon::Start,
        };
        for row in rows {
            let hash = self.hash(&row.name, &row.id);
            if !notes.supersede(hash, &row) {
                // On equal revisions memory wins: it has followed the commits, and knows that the alarm is firing.
                self.replace(hash, Arc::new(row), Ordering::is_lt);
            }
        }
        let (late, ceiling) = notes.into_late();
        for row in late.into_values() {
            if reached.reaches(&row) {
                self.replace(self.hash(&row.name, &row.id), row, Ordering::is_le);
            }
        }
        if ceiling.is_some_and(|ceiling| reached >= Horizon::At(ceiling)) {
            // Nothing from the ceiling on was kept, so everything is here only up to the last one that was.
            reached = Horizon::up_to(self.waiting.last());
        }
        if reached > self.horizon {
            self.horizon = reached;
        }
        self.beyond = None;
        self.was_cut = self.is_over_bytes();
        self.drop_tail();
    }

    /// The page that was begun could not be loaded.
    pub(crate) fn abandon_page(&mut self) {
        self.page = Page::Idle;
    }

    /// The number of alarms in memory.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The number of alarms that wait, postponed ones among them.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.postponed.len()
    }

    /// The number of alarms that are firing.
    #[cfg(test)]
    pub(crate) fn firing(&self) -> usize {
        self.len() - self.waiting() - self.crowds.waiting()
    }

    /// Tells whether the store has no live alarm that is not in memory, apart from those set aside.
    #[cfg(test)]
    pub(crate) fn is_complete(&self) -> bool {
        self.horizon == Horizon::End
    }

    fn is_over_bytes(&self) -> bool {
        let is_one_soon = || self.waiting.len() == 1 && self.waiting.first().is_some_and(|key| self.is_soon(key.0.due));
        self.waiting_bytes > self.cap_bytes && !is_one_soon()
    }

    /// Past a cap, the alarms that are due last leave memory and the horizon falls to the last one kept.
    fn drop_tail(&mut self) {
        let mut dropped = None;
        while self.waiting() > self.cap || self.is_over_bytes() {
            let Some(ByKey(row)) = self.waiting.last().cloned() else { break };
            self.take(self.hash(&row.name, &row.id), &row.name, &row.id);
            dropped = Some(row);
        }
        if let Some(row) = dropped {
            self.beyond = Some(row.due);
            self.horizon = match self.waiting.last() {
                Some(last) => Horizon::At(last.0.key()),
                // No ID is empty: it is all that comes before this one.
                None => Horizon::At(AlarmKey { id: "".into(), ..row.key() }),
            };
            if matches!(self.page, Page::Loading(_)) {
                self.page = Page::Spoiled;
            }
        }
    }

    /// Makes `row` wait in place of the entry of its identity, if there is none or the order of the revisions (old to new)
    /// is one that `wins`.
    fn replace(&mut self, hash: u64, row: Arc<AlarmRow>, wins: fn(Ordering) -> bool) {
        let old = self.find(hash, &row.name, &row.id);
        if old.is_none_or(|old| wins(old.row.revision.cmp(&row.revision))) {
            self.take(hash, &row.name, &row.id);
            self.insert_waiting(hash, row);
        }
    }

    fn insert_waiting(&mut self, hash: u64, row: Arc<AlarmRow>) {
        self.waiting_bytes += size(&row);
        self.waiting.insert(ByKey(row.clone()));
        let hasher = &self.hasher;
        self.entries.insert_unique(hash, Entry { row, state: State::Waiting }, |entry| {
            hash_of(hasher, &entry.row.name, &entry.row.id)
        });
    }

    /// Puts a row in the place of the waiting one of its identity, and where it comes in their order.
    fn move_waiting(&mut self, hash: u64, row: Arc<AlarmRow>) {
        let entry = self.find_mut(hash, &row.name, &row.id).expect("the alarm waits");
        let old = mem::replace(&mut entry.row, row.clone());
        self.waiting_bytes = self.waiting_bytes - size(&old) + size(&row);
        let is_moved = old.due != row.due;
        self.waiting.replace(ByKey(row));
        if is_moved {
            self.waiting.remove(&ByKey(old));
        }
    }

    /// Forgets the entry of this identity, if there is one.
    fn take(&mut self, hash: u64, name: &InstanceName, id: &str) {
        let Ok(found) = self.entries.find_entry(hash, |entry| entry.row.is(name, id)) else { return };
        let (Entry { row, state }, _) = found.remove();
        match state {
            State::Waiting => {
                self.waiting_bytes -= size(&row);
                self.waiting.remove(&ByKey(row));
            }
            State::Postponed(at) => {
                self.postponed_bytes -= size(&row);
                self.postponed.remove(&(at, ByKey(row)));
            }
            State::Crowded => {
                self.crowd_bytes -= size(&row);
                self.crowds.remove(&row.name.clone(), &ByKey(row));
            }
            State::Firing => {}
        }
    }

    fn find(&self, hash: u64, name: &InstanceName, id: &str) -> Option<&Entry> {
        self.entries.find(hash, |entry| entry.row.is(name, id))
    }

    fn find_mut(&mut self, hash: u64, name: &InstanceName, id: &str) -> Option<&mut Entry> {
        self.entries.find_mut(hash, |entry| entry.row.is(name, id))
    }

    fn hash(&self, name: &InstanceName, id: &str) -> u64 {
        hash_of(&self.hasher, name, id)
    }
}

/// The hash of an identity. Of its interface nothing is in it: there are few, and an instance of each by one ID in one shard is rare.
fn hash_of(hasher: &RandomState, name: &InstanceName, id: &str) -> u64 {
    hasher.hash_one((&*name.instance, id))
}

/// About how many bytes an alarm takes in memory.
pub(super) fn size(row: &AlarmRow) -> usize {
    OVERHEAD + row.name.instance.len() + row.id.len() + row.bytes()
}

impl Horizon {
    /// The horizon whose last alarm is `key`.
    fn up_to(key: Option<&ByKey>) -> Horizon {
        key.map_or(Horizon::Start, |key| Horizon::At(key.0.key()))
    }

    fn reaches(&self, row: &AlarmRow) -> bool {
        match self {
            Horizon::Start => false,
            Horizon::At(key) => (row.due, &row.name, &row.id) <= (key.due, &key.name, &key.id),
            Horizon::End => true,
        }
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &ByKey) -> Ordering {
        let (a, b) = (&self.0, &other.0);
        a.due.cmp(&b.due).then_with(|| a.name.cmp(&b.name)).then_with(|| a.id.cmp(&b.id))
    }
}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &ByKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &ByKey) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for ByKey {}

impl AlarmRow {
    fn is(&self, name: &InstanceName, id: &str) -> bool {
        *self.id == *id && self.name == *name
    }
}
