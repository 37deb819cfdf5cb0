//! The shards of the fleet as this host sees them: which it owns, under which epoch, and the soonest alarms and the inbox of each.
//!
//! A shard's epoch is zero while this host does not own it, and is read without a lock at the start of every message. Its
//! windows exist exactly while it is owned. `deadlines` lists each shard that has something waiting for a time once, under the time
//! its windows give, so the first entry is the host's next alarm or failed message. `waits` does the same for what is due already or
//! waits in memory alone, by the lease clock: the wall may step back, and what is ready stays ready. Locks are taken in the order
//! shard, then `deadlines`, `waits`, `behind`, `pages` or `storms`.
//!
//! *Killers.* If the last owner of a shard ended without releasing it, a handler of it may have ended the process. Until the
//! overdue backlog of such a shard is through, each alarm and message is marked in the store before its handler starts. One
//! that is found with a mark was running when a process died: it is handled with nothing else beside it, and given up after
//! [`max_crashes`](Limits::max_crashes).

use std::collections::BTreeSet;
use std::time::Duration;

use self::delivery::Delivery;
use self::firing::{Firing, Limits};
use self::owned::Owned;
use self::wake::Wake;
use crate::alarm::window::AlarmWindow;
use crate::clock::{Clock, Moment, Timestamp};
use crate::inbox::window::InboxWindow;
use crate::setting::Setting;
use crate::store::{AlarmKey, AlarmRow, Epoch, InboxKey, InboxRow, Op, Revision, ShardId};
use crate::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Notify};

pub(crate) mod delivery;
pub(crate) mod firing;
pub(crate) mod handoff;
mod owned;
pub(crate) mod wake;

#[cfg(test)]
mod tests;

/// The most inbox messages of one shard in memory, waiting or being handled.
const INBOX_CAP: usize = 64;

/// All shards of the fleet.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: Box<[Shard]>,
    /// Shards by the time at which something is due: one entry per shard whose windows have a deadline.
    deadlines: Mutex<BTreeSet<(Timestamp, ShardId)>>,
    /// In which shard something has been ready since when, or waits again until then, by the lease clock.
    waits: Mutex<BTreeSet<(Duration, ShardId)>>,
    /// Wakes the driver for an earlier first deadline, and when a fire has ended.
    pub(crate) changed: Notify,
    /// Shards whose windows want a page, and the one from which on they are asked next.
    pages: Mutex<(BTreeSet<ShardId>, ShardId)>,
    /// Wakes the task that loads pages.
    pub(crate) pages_wanted: Notify,
    /// Shards that may have something due in the store that is not in memory, and since when, by the lease clock.
    behind: Mutex<BTreeSet<(Duration, ShardId)>>,
    /// Tells whoever waits for a shard that one has come to be owned, may never come, or was found with another host.
    pub(crate) gained: Notify,
    /// Asks for a renewal at once: a write found a shard lost, or messages may have come unheard.
    pub(crate) lost: Notify,
    /// Alarms and messages that are being handled or committed now.
    firing: Firing,
    /// Wakes the task that loads pages when less is being handled.
    pub(crate) room: Notify,
    /// Stored rows that cannot be used, met since the start.
    pub(crate) damaged: Mutex<Vec<crate::store::Damaged>>,
    pub(crate) limits: Setting<Limits>,
    pub(crate) clock: Setting<dyn Clock>,
}

#[derive(Debug, Default)]
struct Shard {
    /// Zero: not owned.
    epoch: AtomicU64,
    /// As `epoch`, and zero already while the shard is being handed over: what comes from outside is let in under this.
    intake: AtomicU64,
    /// The stretch of its way to another host that is behind it, as a [`Handoff`].
    handoff: AtomicU8,
    /// The last epoch under which this host owned it and then gave it up; zero if there is none.
    given_up: AtomicU64,
    /// The counter of the next [`Revision`]. Never reset: revisions differ even if an epoch came twice.
    revisions: AtomicU64,
    owned: Mutex<Option<Box<Owned>>>,
}

/// A page to load: of which shard, under which epoch, and which rows.
#[derive(Debug)]
pub(crate) struct BegunPage {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    pub(crate) limit: usize,
    /// The number of bytes that there is room for.
    pub(crate) bytes: usize,
    /// Says whether only keys are wanted.
    pub(crate) keys_only: bool,
    pub(crate) after: BegunAfter,
}

#[derive(Debug)]
pub(crate) enum BegunAfter {
    Alarms(Option<AlarmKey>),
    Inbox(Option<InboxKey>),
}

impl Shards {
    #[cfg(test)]
    pub(crate) fn new(count: u32, limits: Limits, clock: Arc<dyn Clock>) -> Shards {
        let shards = Shards::open(count);
        shards.give(limits, clock);
        shards
    }

    /// As many shards, none of them owned, which wait for their settings.
    pub(crate) fn open(count: u32) -> Shards {
        Shards {
            shards: (0..count).map(|_| Shard::default()).collect(),
            deadlines: Mutex::default(),
            waits: Mutex::default(),
            changed: Notify::new(),
            pages: Mutex::new((BTreeSet::new(), ShardId(0))),
            pages_wanted: Notify::new(),
            behind: Mutex::default(),
            gained: Notify::new(),
            lost: Notify::new(),
            firing: Firing::default(),
            room: Notify::new(),
            damaged: Mutex::default(),
            limits: Setting::open(),
            clock: Setting::open(),
        }
    }

    /// Gives them their settings, before any is owned.
    pub(crate) fn give(&self, limits: Limits, clock: Arc<dyn Clock>) {
        self.limits.give(Arc::new(limits));
        self.clock.give(clock);
    }

    fn shard(&self, shard: ShardId) -> &Shard {
        &self.shards[shard.0 as usize]
    }

    /// The epoch under which this host owns the shard.
    #[inline]
    pub(crate) fn epoch(&self, shard: ShardId) -> Option<Epoch> {
        match self.shard(shard).epoch.load(Ordering::Acquire) {
            0 => None,
            epoch => Some(Epoch(epoch)),
        }
    }

    /// The revision for an alarm set now.
    pub(crate) fn next_revision(&self, shard: ShardId, epoch: Epoch) -> Revision {
        Revision { epoch, counter: self.shard(shard).revisions.fetch_add(1, Ordering::Relaxed) + 1 }
    }

    /// Takes the shard into ownership. With `window_cap` zero it has no alarms and no inbox (a host without a store).
    pub(crate) fn own(&self, shard: ShardId, epoch: Epoch, clean: bool, window_cap: usize, window_bytes: usize) {
        let this = self.shard(shard);
        let mut owned = this.owned.lock();
        this.epoch.store(epoch.0, Ordering::Release);
        this.intake.store(epoch.0, Ordering::Release);
        if window_cap > 0 {
            *owned = Some(Box::new(Owned {
                alarms: AlarmWindow::bounded(window_cap, window_bytes),
                inbox: InboxWindow::new(INBOX_CAP),
                listed: None,
                alarms_behind: None,
                inbox_behind: None,
                behind: None,
                wait: None,
                marks_until: (!clean).then(|| self.clock.now()),
                is_closing: false,
            }));
            self.relist(shard, owned.as_deref_mut());
        }
        drop(owned);
        self.gained.notify_waiters();
    }

    /// Gives the shard up, if it is owned under `epoch`: nothing of it fires any more.
    pub(crate) fn lose(&self, shard: ShardId, epoch: Epoch) -> bool {
        let this = self.shard(shard);
        let mut owned = this.owned.lock();
        if this.epoch.compare_exchange(epoch.0, 0, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        this.intake.store(0, Ordering::Release);
        this.given_up.store(epoch.0, Ordering::Release);
        if let Some(owned) = owned.take() {
            if let Some(listed) = owned.listed {
                self.deadlines.lock().remove(&(listed, shard));
            }
            if let Some(wait) = owned.wait {
                self.waits.lock().remove(&(wait, shard));
            }
            if let Some(behind) = owned.behind {
                self.behind.lock().remove(&(behind, shard));
            }
        }
        true
    }

    /// The epoch under which this host has given the shard up, if it ever did and has not owned it since.
    pub(crate) fn given_up(&self, shard: ShardId) -> Option<Epoch> {
        let epoch = self.shard(shard).given_up.load(Ordering::Acquire);
        (epoch > 0 && self.epoch(shard).is_none()).then_some(Epoch(epoch))
    }

    /// The alarms of all owned shards that are in memory, by shard and then in no order.
    pub(crate) fn alarms_in_memory(&self) -> Vec<Arc<AlarmRow>> {
        let mut found = Vec::new();
        for (shard, epoch) in self.owned() {
            self.with_owned(shard, epoch, |owned| found.extend(owned.alarms.rows().cloned()));
        }
        found
    }

    /// The shards this host owns, ascending.
    pub(crate) fn owned(&self) -> impl Iterator<Item = (ShardId, Epoch)> + '_ {
        (0..).map(ShardId).zip(&self.shards).filter_map(|(id, shard)| match shard.epoch.load(Ordering::Acquire) {
            0 => None,
            epoch => Some((id, Epoch(epoch))),
        })
    }

    /// Shows the windows what a commit has just made durable.
    pub(crate) fn apply(&self, shard: ShardId, epoch: Epoch, ops: &[Op]) {
        let is_waking =
            |op: &Op| matches!(op, Op::PutAlarm(_) | Op::RemoveAlarm { .. } | Op::PutMessage(_) | Op::RemoveMessage(_));
        if ops.iter().any(is_waking) {
            self.with_owned(shard, epoch, |owned| ops.iter().for_each(|op| owned.follow(op)));
        }
    }

    fn with_owned<T>(&self, shard: ShardId, epoch: Epoch, f: impl FnOnce(&mut Owned) -> T) -> Option<T> {
        let this = self.shard(shard);
        let mut owned = this.owned.lock();
        if this.epoch.load(Ordering::Acquire) != epoch.0 {
            return None;
        }
        let result = f(owned.as_mut()?);
        self.relist(shard, owned.as_deref_mut());
        Some(result)
    }

    /// Brings `deadlines`, `waits` and `pages` up to date after a change of the shard's windows.
    fn relist(&self, shard: ShardId, owned: Option<&mut Owned>) {
        let Some(owned) = owned else { return };
        let (deadline, wait) = if owned.is_closing { (None, None) } else { (owned.next_deadline(), owned.next_wait()) };
        let is_due_earlier = list(&self.deadlines, shard, &mut owned.listed, deadline);
        let is_ready_earlier = list(&self.waits, shard, &mut owned.wait, wait);
        if is_due_earlier || is_ready_earlier {
            self.changed.notify_one();
        }
        let behind = owned.note_behind(&*self.clock).filter(|_| !owned.is_closing);
        if behind != owned.behind {
            let mut all = self.behind.lock();
            if let Some(before) = owned.behind {
                all.remove(&(before, shard));
            }
            all.extend(behind.map(|since| (since, shard)));
            owned.behind = behind;
        }
        if !owned.is_closing
            && (owned.alarms.wants_page() || owned.inbox.wants_page())
            && self.pages.lock().0.insert(shard)
        {
            self.pages_wanted.notify_one();
        }
    }

    /// The time at which the next alarm or failed message is due; `None` if none waits for its time.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        self.deadlines.lock().first().map(|(time, _)| *time)
    }

    /// The time at which the next one that waits in memory alone is to be handed out, or since when one could be, by the lease clock.
    pub(crate) fn next_wait(&self) -> Option<Duration> {
        self.waits.lock().first().map(|(time, _)| *time)
    }

    /// The time for which the oldest alarm or message that waits has been due. What may wait in the store and could not be loaded counts since
    /// it was wanted, or since a page of it was loaded last.
    pub(crate) fn overdue(&self) -> Duration {
        let now = Moment::of(&*self.clock);
        let due = self.next_deadline().filter(|deadline| *deadline > Timestamp::MIN);
        let due = due.map_or(Duration::ZERO, |deadline| now.wall.since(deadline));
        let behind = self.behind.lock().first().map(|(since, _)| *since);
        let elapsed = |since: Option<Duration>| since.map_or(Duration::ZERO, |since| now.elapsed.saturating_sub(since));
        due.max(elapsed(self.next_wait())).max(elapsed(behind))
    }

    /// The shard whose alarms or messages have waited longest for being handed out.
    fn first_due(&self, now: Moment) -> Option<ShardId> {
        let due = self.deadlines.lock().first().copied().filter(|(time, _)| *time <= now.wall);
        let ready = self.waits.lock().first().copied().filter(|(time, _)| *time <= now.elapsed);
        match (due, ready) {
            (Some((due, _)), Some((ready, shard))) if now.elapsed.saturating_sub(ready) >= now.wall.since(due) => {
                Some(shard)
            }
            (Some((_, shard)), _) | (None, Some((_, shard))) => Some(shard),
            (None, None) => None,
        }
    }

    /// The next due alarm or message, to be handled now; `None` if there is none, or too many are being handled.
    #[cfg(test)]
    pub(crate) fn pop_due(self: &Arc<Self>, now: Moment) -> Option<Delivery> {
        self.pop_run(now, 1).pop()
    }

    /// The next due alarm or message, to be handled now, and of a backlog up to `most` of its shard; empty if there is none, or too many are
    /// being handled.
    pub(crate) fn pop_run(self: &Arc<Self>, now: Moment, most: usize) -> Vec<Delivery> {
        loop {
            if !self.may_fire() {
                return Vec::new();
            }
            let Some(shard) = self.first_due(now) else { return Vec::new() };
            let Some(epoch) = self.epoch(shard) else { continue };
            let (mut popped, mut must_wait) = (Vec::new(), false);
            self.with_owned(shard, epoch, |owned| {
                while popped.is_empty() || (popped.len() < most && owned.has_backlog(now) && self.may_fire()) {
                    // The deadline may have changed since it was read: then nothing is popped, and the next turn sees the new one.
                    let Some(wake) = owned.pop_due(now) else { return };
                    let is_overdue = owned.marks_until.is_some_and(|until| wake.due() <= until);
                    // A message that comes later says nothing about how far the alarms are, nor does an alarm that has passed others.
                    if !is_overdue && matches!(wake, Wake::Alarm(_)) && !owned.has_crowd() {
                        owned.marks_until = None;
                    }
                    // One that was running when a process died is suspected for as long as it bears its mark.
                    let is_marked = is_overdue || wake.attempts().started;
                    let is_head = owned.is_led(&wake);
                    if !self.firing.begin(wake.bytes(), is_marked && wake.attempts().started) {
                        // It stays the first, and nothing is begun before it: the last one to end wakes the driver.
                        owned.wait_again(&*self.clock, &wake, None);
                        if is_head {
                            owned.head_ended(wake.name());
                        }
                        must_wait = true;
                        return;
                    }
                    popped.push((wake, is_marked, is_head));
                }
            });
            let run: Vec<_> = popped
                .into_iter()
                .map(|(wake, is_marked, is_head)| Delivery::new(self.clone(), shard, epoch, wake, is_marked, is_head))
                .filter_map(|delivery| {
                    match self.firing.check_storm(delivery.wake(), now.elapsed, self.limits.max_fires_per_second) {
                        Some(until) => delivery.nack(until),
                        None => return Some(delivery),
                    }
                    None
                })
                .collect();
            if must_wait || !run.is_empty() {
                return run;
            }
        }
    }

    /// Says whether one more may be handled now.
    pub(crate) fn may_fire(&self) -> bool {
        self.firing.may_begin(&self.limits)
    }

    /// Says whether what is being handled leaves room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.firing.has_room(&self.limits)
    }

    /// Puts back an alarm or message whose handling changed nothing durable: to its old place, due when the lease clock shows `at` if
    /// that is given.
    pub(super) fn wait_again(&self, shard: ShardId, epoch: Epoch, wake: &Wake, at: Option<Duration>) {
        self.with_owned(shard, epoch, |owned| owned.wait_again(&*self.clock, wake, at));
    }

    /// Makes what is being handled the head of its instance's crowd, unless it has one; `false` says that.
    pub(super) fn lead(&self, shard: ShardId, epoch: Epoch, wake: &Wake) -> bool {
        self.with_owned(shard, epoch, |owned| owned.lead(wake.name())).unwrap_or(false)
    }

    /// As [`lead`](Self::lead); if there is a head, it waits behind that. True also in a shard that has been lost.
    pub(super) fn lead_or_turn_back(&self, shard: ShardId, epoch: Epoch, wake: &Wake) -> bool {
        let leads = self.with_owned(shard, epoch, |owned| {
            let leads = owned.lead(wake.name());
            if !leads {
                match wake {
                    Wake::Alarm(alarm) => owned.alarms.turn_back(&alarm.name, &alarm.id, alarm.revision),
                    Wake::Message(message) => owned.inbox.turn_back(Moment::of(&*self.clock), message.clone()),
                }
            }
            leads
        });
        leads.unwrap_or(true)
    }

    /// The instance is done with the head of its crowd.
    pub(super) fn head_ended(&self, shard: ShardId, epoch: Epoch, wake: &Wake) {
        self.with_owned(shard, epoch, |owned| owned.head_ended(wake.name()));
    }

    /// Counts a delivery of so many bytes no more: another may be handled.
    pub(super) fn fire_ended(&self, bytes: usize) {
        let ended = self.firing.end(bytes, &self.limits);
        if ended.lets_next_begin {
            self.changed.notify_one();
        }
        if ended.makes_room {
            self.room.notify_one();
        }
    }

    /// Takes an alarm or message out of memory although it stays in the store: this binary has no interface for it.
    pub(super) fn set_aside(&self, shard: ShardId, epoch: Epoch, wake: &Wake) {
        self.with_owned(shard, epoch, |owned| match wake {
            Wake::Alarm(alarm) => owned.alarms.set_aside(&alarm.name, &alarm.id, alarm.revision),
            // It stays taken, so that no page brings it back.
            Wake::Message(_) => {}
        });
    }

    /// Tells whether this setting and attempt of the alarm is being fired and nothing durable has changed it since.
    pub(crate) fn is_firing(&self, shard: ShardId, epoch: Epoch, alarm: &AlarmRow) -> bool {
        let this = self.shard(shard);
        let owned = this.owned.lock();
        let is_this = |row: &AlarmRow| row.revision == alarm.revision && row.attempts.failed == alarm.attempts.failed;
        this.epoch.load(Ordering::Acquire) == epoch.0
            && owned.as_ref().and_then(|owned| owned.alarms.get(&alarm.name, &alarm.id)).is_some_and(is_this)
    }

    /// Takes up to `most` of the shards that want a page, each in its turn, and begins what each wants.
    pub(crate) fn begin_pages(&self, most: usize) -> Vec<BegunPage> {
        let wanting: Vec<ShardId> = {
            let mut pages = self.pages.lock();
            let (pages, next) = &mut *pages;
            let wanting: Vec<_> = pages.range(*next..).chain(pages.range(..*next)).take(most).copied().collect();
            for shard in &wanting {
                pages.remove(shard);
            }
            *next = wanting.last().map_or(*next, |last| ShardId(last.0 + 1));
            wanting
        };
        let mut begun = Vec::with_capacity(wanting.len());
        for shard in wanting {
            let Some(epoch) = self.epoch(shard) else { continue };
            self.with_owned(shard, epoch, |owned| {
                if let Some((after, limit, keys_only)) = owned.inbox.begin_page() {
                    let (bytes, after) = (usize::MAX, BegunAfter::Inbox(after));
                    begun.push(BegunPage { shard, epoch, limit, bytes, keys_only, after });
                }
                if owned.alarms.wants_page() {
                    let (bytes, (after, limit)) = (owned.alarms.room(), owned.alarms.begin_page());
                    let after = BegunAfter::Alarms(after);
                    begun.push(BegunPage { shard, epoch, limit, bytes, keys_only: false, after });
                }
            });
        }
        begun
    }

    /// Merges what a page found.
    pub(crate) fn merge_alarms(&self, page: &BegunPage, rows: Vec<AlarmRow>, is_last: bool) {
        self.with_owned(page.shard, page.epoch, |owned| {
            owned.alarms.tell(self.clock.now());
            owned.alarms.merge_page(rows, is_last);
            owned.alarms_behind = None;
        });
    }

    /// Merges what a page found.
    pub(crate) fn merge_inbox(&self, page: &BegunPage, rows: Vec<InboxRow>, is_last: bool) {
        self.with_owned(page.shard, page.epoch, |owned| {
            let now = Moment::of(&*self.clock);
            // What is behind a full page arrived later than its last row.
            let lag = rows.last().map_or(Duration::ZERO, |row| now.wall.since(row.arrived));
            let since = now.elapsed.saturating_sub(lag);
            owned.inbox.merge_page(rows, is_last, now);
            owned.inbox_behind = owned.inbox_behind.filter(|_| !is_last).map(|before| before.max(since));
        });
    }

    /// Gives up a page that could not be loaded; it is wanted again.
    pub(crate) fn abandon_page(&self, page: &BegunPage) {
        self.with_owned(page.shard, page.epoch, |owned| match page.after {
            BegunAfter::Alarms(_) => owned.alarms.abandon_page(),
            BegunAfter::Inbox(_) => owned.inbox.abandon_page(),
        });
    }

    /// The shard's inbox has messages; all of them may be known.
    pub(crate) fn look(&self, shard: ShardId) {
        if let Some(epoch) = self.epoch(shard) {
            self.with_owned(shard, epoch, |owned| owned.inbox.look());
        }
    }

    /// There may be new messages in the shard's inbox.
    pub(crate) fn hint(&self, shard: ShardId) {
        if let Some(epoch) = self.epoch(shard) {
            self.with_owned(shard, epoch, |owned| owned.inbox.hint());
        }
    }

    /// The store hints that there may be new messages in the shard's inbox.
    pub(crate) fn hint_of_store(&self, shard: ShardId) {
        if let Some(epoch) = self.epoch(shard) {
            self.with_owned(shard, epoch, |owned| owned.inbox.hint_of_store());
        }
    }

    /// Notes that this host posts to the shard, until what it returns is dropped: then there may be a new message.
    pub(crate) fn posting(&self, shard: ShardId) -> Posting<'_> {
        let is_owned = |epoch: &Epoch| self.with_owned(shard, *epoch, |owned| owned.inbox.begin_post()).is_some();
        Posting { shards: self, shard, epoch: self.epoch(shard).filter(is_owned) }
    }
}

/// A post of this host that is under way.
#[derive(Debug)]
pub(crate) struct Posting<'a> {
    shards: &'a Shards,
    shard: ShardId,
    /// The epoch under which this host owned the shard when it began.
    epoch: Option<Epoch>,
}

impl Drop for Posting<'_> {
    fn drop(&mut self) {
        let ended =
            self.epoch.and_then(|epoch| self.shards.with_owned(self.shard, epoch, |owned| owned.inbox.end_post()));
        if ended.is_none() {
            self.shards.hint(self.shard);
        }
    }
}

/// Lists a shard under another time, or not at all; whether the first time of all has become an earlier one.
fn list<T: Copy + Ord>(
    all: &Mutex<BTreeSet<(T, ShardId)>>,
    shard: ShardId,
    listed: &mut Option<T>,
    next: Option<T>,
) -> bool {
    if next == *listed {
        return false;
    }
    let mut all = all.lock();
    let first = all.first().copied();
    if let Some(listed) = *listed {
        all.remove(&(listed, shard));
    }
    all.extend(next.map(|next| (next, shard)));
    *listed = next;
    match (all.first(), first) {
        (Some(now), Some(before)) => *now < before,
        (now, _) => now.is_some(),
    }
}
