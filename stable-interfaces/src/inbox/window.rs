//! The messages of one shard's inbox that its owner has taken into memory.
//!
//! `taken` names every message in memory: waiting, postponed or being handled; a page skips those, so none is handled twice
//! beside itself. Pages are read from the start of the inbox to its end, as a *pass*; a hint during a pass starts another after
//! it, because messages may become visible in another order than they arrived; one before a pass has begun to read is answered by that
//! pass. The store's hint about a post of this host's own, which may come before that post has ended, waits for its end. An ID may be posted again once its message has
//! left the store, which may be before this window hears of it, and within the same millisecond: nothing in a row says which of
//! the two it is. So what a page shows while its namesake is being handled, or has just gone, is skipped, and looked for again
//! once that has left.
//!
//! A message that waits is read with its body once. Where some are in memory, a pass reads keys, and then whole rows only where it
//! does not know the key. No clock, no I/O.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::clock::{Moment, Timestamp};
use crate::crowds::Crowds;
use crate::store::{InboxKey, InboxRow, InstanceName};
use crate::sync::Arc;

#[cfg(test)]
mod tests;

/// The messages of one shard's inbox in memory, and how far its pages are read.
#[derive(Debug)]
pub(crate) struct InboxWindow {
    taken: HashMap<Identity, Taken>,
    /// Waiting to be handled, in the order they were taken, each with the moment since when.
    ready: VecDeque<(Moment, Arc<InboxRow>)>,
    /// The bytes of those in `ready`, and of those in `postponed` and `resting`.
    ready_bytes: usize,
    postponed_bytes: usize,
    /// Waiting until they are due, after a failure. The number keeps keys apart.
    postponed: BTreeMap<(Timestamp, u64), Arc<InboxRow>>,
    /// Waiting until a time of the lease clock, because their instance could not take them: nothing stored says until when.
    resting: BTreeMap<(Duration, u64), Arc<InboxRow>>,
    next_number: u64,
    /// Messages that failed and were left to the store, as far as there is room for their names, and until when.
    left: HashMap<Identity, Timestamp>,
    /// The time at which the first of those is due that failed and were left to the store.
    left_until: Option<Timestamp>,
    /// The time at which the first of those that rested and were left to the store is to be looked for, by the lease clock.
    left_resting_until: Option<Duration>,
    /// Waiting behind another message of their instance, which is busy; and how many bytes they have.
    crowds: Crowds<InCrowd>,
    crowd_bytes: usize,
    /// The time up to which the first pass has seen what arrived.
    first_until: Timestamp,
    /// Messages that were to wait in a crowd and were left to the store, because so many do, as far as there is room for their names.
    left_behind: HashSet<Identity>,
    pass: Pass,
    /// Tells whether messages may have come that the pass under way does not see.
    is_hinted: bool,
    /// The number of posts of this host to the shard that are under way.
    posts: usize,
    /// Tells whether all that a first pass found has been handed out: until then the shard's alarms wait.
    lets_alarms_fire: bool,
    cap: usize,
}

type Identity = (InstanceName, Arc<str>);

/// The state of a message in memory.
#[derive(Debug, Default)]
struct Taken {
    /// Says whether it has been handed out: then it may have left the store already.
    is_out: bool,
    /// Says whether a page has shown its ID since: it may have been another message.
    is_shown_again: bool,
}

/// The reason why a message is not to be taken from the page that is being loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// The message has left the inbox. Another may be there under its ID.
    Removed,
    /// The message failed, and was left to the store.
    Left,
}

/// A message that waits behind another of its instance, in the order of their arrival; with the time since when.
#[derive(Debug, Clone)]
struct InCrowd {
    key: InboxKey,
    since: Moment,
    row: Arc<InboxRow>,
}

impl Ord for InCrowd {
    fn cmp(&self, other: &InCrowd) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl PartialOrd for InCrowd {
    fn partial_cmp(&self, other: &InCrowd) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for InCrowd {
    fn eq(&self, other: &InCrowd) -> bool {
        self.key == other.key
    }
}

impl Eq for InCrowd {}

/// The number of messages that may be postponed in memory for each that may be there to be handled.
const POSTPONED_PER_CAP: usize = 16;
/// The most messages behind others of their instances, for each that may be there to be handled.
const CROWD_PER_CAP: usize = 16;

/// While messages that are there to be handled have so many bytes no more are read, and past so many the last that are postponed are left
/// to the store.
const MAX_BYTES: usize = 256 * 1024;
/// The most messages left to the store whose names are known.
const MAX_LEFT: usize = 16_384;
/// The most keys of one page.
const KEYS_PER_PAGE: usize = 1_000;
/// The number of messages in memory from which on a hint has keys read first, not all their rows again.
const MANY: usize = 16;

#[derive(Debug, PartialEq, Eq)]
enum Pass {
    /// No pass is under way.
    None,
    /// The next page is this one.
    At(Next),
    /// A page is being loaded; with what left the inbox since it was begun.
    Loading(Next, HashMap<Identity, Gone>),
}

/// A page of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Next {
    after: Option<InboxKey>,
    part: Part,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// Whole rows.
    Rows,
    /// Keys, to see which rows are not in memory.
    Keys,
    /// Whole rows that are not in memory, so many, up to this key; and whether there are keys after it.
    Unknown { rows: usize, until: InboxKey, is_last: bool },
}

impl Next {
    fn first(part: Part) -> Next {
        Next { after: None, part }
    }
}

impl InboxWindow {
    /// Nothing is known yet: a pass is wanted.
    pub(crate) fn new(cap: usize) -> InboxWindow {
        InboxWindow {
            taken: HashMap::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            postponed_bytes: 0,
            postponed: BTreeMap::new(),
            resting: BTreeMap::new(),
            next_number: 0,
            left: HashMap::new(),
            left_until: None,
            left_resting_until: None,
            crowds: Crowds::default(),
            crowd_bytes: 0,
            first_until: Timestamp::MIN,
            left_behind: HashSet::new(),
            pass: Pass::At(Next::first(Part::Rows)),
            is_hinted: false,
            posts: 0,
            lets_alarms_fire: false,
            cap,
        }
    }

    /// There may be messages that have not been seen.
    pub(crate) fn hint(&mut self) {
        self.want_pass(MANY);
    }

    /// The same, as the store says it. While this host itself posts it says nothing more than what the end of that post does.
    pub(crate) fn hint_of_store(&mut self) {
        if self.posts == 0 {
            self.hint();
        }
    }

    /// Notes that this host posts to the shard.
    pub(crate) fn begin_post(&mut self) {
        self.posts += 1;
    }

    /// A post of this host has ended, however it has.
    pub(crate) fn end_post(&mut self) {
        self.posts -= 1;
        self.hint();
    }

    /// There are messages, and all may be known.
    pub(crate) fn look(&mut self) {
        self.want_pass(1);
    }

    /// Has a pass begin from here on: the one that there is if it has read nothing, or another after it.
    fn want_pass(&mut self, many: usize) {
        match &self.pass {
            Pass::None => self.pass = self.first_page(many),
            Pass::At(Next { after: None, part: Part::Rows | Part::Keys }) => {}
            _ => self.is_hinted = true,
        }
    }

    /// The start of a pass; with keys if so many messages are known.
    fn first_page(&self, many: usize) -> Pass {
        let is_known = self.taken.len() + self.left.len() + self.left_behind.len() >= many;
        Pass::At(Next::first(if is_known { Part::Keys } else { Part::Rows }))
    }

    /// Tells whether a first pass is over and all it found has been handed out.
    pub(crate) fn lets_alarms_fire(&self) -> bool {
        self.lets_alarms_fire
    }

    /// Tells whether every message that this host knows of has been handled, what was there when it took over among them. One that was handed out may be on
    /// its way to its instance still.
    pub(crate) fn is_through(&self) -> bool {
        let has_none = self.taken.is_empty() && self.left_behind.is_empty();
        self.lets_alarms_fire && has_none && self.pass == Pass::None && self.posts == 0
    }

    /// Says whether there may be messages in the store that could be handled and are not in memory.
    pub(crate) fn is_behind(&self) -> bool {
        self.pass != Pass::None
    }

    pub(crate) fn wants_page(&self) -> bool {
        // Whatever is not waiting to be handed out keeps nobody out: what is being handled, by however many slow instances, has a place
        // among all that the host handles at once, and what keeps failing or waits for its instance is bounded by itself.
        matches!(self.pass, Pass::At(_)) && self.ready.len() < self.cap && self.ready_bytes < MAX_BYTES
    }

    /// Begins a page: after which key, how many rows, and whether only their keys.
    pub(crate) fn begin_page(&mut self) -> Option<(Option<InboxKey>, usize, bool)> {
        if !self.wants_page() {
            return None;
        }
        let Pass::At(next) = std::mem::replace(&mut self.pass, Pass::None) else { return None };
        let (after, limit) = (
            next.after.clone(),
            match &next.part {
                Part::Rows => self.cap,
                Part::Keys => KEYS_PER_PAGE,
                Part::Unknown { rows, .. } => self.cap.min(*rows),
            },
        );
        let keys_only = next.part == Part::Keys;
        self.pass = Pass::Loading(next, HashMap::new());
        Some((after, limit, keys_only))
    }

    /// Takes what a page found. What is there to be handled counts as waiting since `now` at the latest.
    pub(crate) fn merge_page(&mut self, rows: Vec<InboxRow>, is_last: bool, now: Moment) {
        let Pass::Loading(Next { after, part }, gone) = std::mem::replace(&mut self.pass, Pass::None) else { return };
        if !self.lets_alarms_fire {
            self.first_until = now.wall;
        }
        let next = match part {
            Part::Keys => self.find_unknown(after, &rows, is_last, &gone),
            Part::Rows => {
                let last = rows.last().map(InboxRow::key).filter(|_| !is_last);
                self.take_rows(rows, &gone, now);
                last.map(|last| Next { after: Some(last), part: Part::Rows })
            }
            Part::Unknown { until, is_last: are_all_known, .. } => {
                let last = rows.last().map(InboxRow::key);
                self.take_rows(rows, &gone, now);
                // Fewer rows may have come than there were keys, for their bytes or because some have left.
                let is_through = last.as_ref().is_some_and(|last| *last >= until);
                let is_end = is_last || (is_through && are_all_known);
                (!is_end).then(|| Next { after: last.or(Some(until)), part: Part::Keys })
            }
        };
        self.pass = match next {
            Some(next) => Pass::At(next),
            None => {
                self.lets_alarms_fire |= self.ready.is_empty();
                if std::mem::take(&mut self.is_hinted) { self.first_page(MANY) } else { Pass::None }
            }
        };
    }

    /// The page with the first rows, among those that have these keys, that are not in memory; or the next keys.
    fn find_unknown(
        &mut self,
        after: Option<InboxKey>,
        keys: &[InboxRow],
        is_last: bool,
        gone: &HashMap<Identity, Gone>,
    ) -> Option<Next> {
        let mut before = after;
        let mut unknown: Option<(Option<InboxKey>, usize, InboxKey)> = None;
        for row in keys {
            let is_new = self.is_new(row, gone);
            match &mut unknown {
                None if is_new => unknown = Some((before.clone(), 1, row.key())),
                Some((_, rows, until)) if is_new => (*rows, *until) = (*rows + 1, row.key()),
                // The rest is looked at again after them.
                Some(_) => break,
                None => {}
            }
            before = Some(row.key());
        }
        match unknown {
            Some((after, rows, until)) => {
                let is_last = is_last && keys.last().is_some_and(|last| last.key() == until);
                Some(Next { after, part: Part::Unknown { rows, until, is_last } })
            }
            None => {
                before.filter(|_| !is_last && !keys.is_empty()).map(|last| Next { after: Some(last), part: Part::Keys })
            }
        }
    }

    /// Says whether a row that a page shows is not in memory; and notes what the page says of one that is.
    fn is_new(&mut self, row: &InboxRow, gone: &HashMap<Identity, Gone>) -> bool {
        let identity = (row.name.clone(), row.id.clone());
        if let Some(gone) = gone.get(&identity) {
            self.is_hinted |= *gone == Gone::Removed;
            return false;
        }
        match self.taken.get_mut(&identity) {
            Some(taken) => {
                taken.is_shown_again |= taken.is_out;
                false
            }
            None => !self.left.contains_key(&identity) && !self.left_behind.contains(&identity),
        }
    }

    fn take_rows(&mut self, rows: Vec<InboxRow>, gone: &HashMap<Identity, Gone>, now: Moment) {
        for row in rows {
            if !self.is_new(&row, gone) {
                continue;
            }
            self.taken.insert((row.name.clone(), row.id.clone()), Taken::default());
            if row.attempts.failed > 0 || row.due > row.arrived {
                self.postpone(row.due, Arc::new(row));
            } else {
                let elapsed = now.elapsed.saturating_sub(now.wall.since(row.arrived));
                let since = Moment { wall: row.arrived.min(now.wall), elapsed };
                self.ready_bytes += row.bytes();
                self.ready.push_back((since, Arc::new(row)));
            }
        }
    }

    pub(crate) fn abandon_page(&mut self) {
        if let Pass::Loading(next, _) = std::mem::replace(&mut self.pass, Pass::None) {
            self.pass = Pass::At(next);
        }
    }

    /// The time at which the next failed message is due.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let postponed = self.postponed.keys().next().map(|(due, _)| *due);
        postponed.into_iter().chain(self.left_until).min()
    }

    /// The time since which the next message could be handled, or at which it is to be tried again, by the lease clock.
    pub(crate) fn next_wait(&self) -> Option<Duration> {
        let resting = self.resting.keys().next().map(|(at, _)| *at);
        let ready = self.ready.front().map(|(since, _)| since.elapsed);
        let crowd = self.crowds.first().map(|first| first.since.elapsed);
        resting.into_iter().chain(ready).chain(crowd).chain(self.left_resting_until).min()
    }

    /// Looks again for what was left to the store and is due.
    pub(crate) fn end_waits(&mut self, now: Moment) {
        let is_due = self.left_until.is_some_and(|due| due <= now.wall);
        if is_due {
            self.left.retain(|_, due| *due > now.wall);
            self.left_until = self.left.values().min().copied();
        }
        let is_rested = self.left_resting_until.take_if(|at| *at <= now.elapsed).is_some();
        if is_due || is_rested {
            self.look();
        }
    }

    /// The time since which the message that [`pop_due`](Self::pop_due) gives could be handled; `None` if there is none.
    pub(crate) fn due_since(&self, now: Moment) -> Option<Timestamp> {
        let resting = self.resting.first_key_value().filter(|((at, _), _)| *at <= now.elapsed);
        let failed = || self.postponed.keys().next().map(|(due, _)| *due).filter(|due| *due <= now.wall);
        let crowd = || self.crowds.first().map(|first| first.since.wall);
        let ready = || self.ready.front().map(|(since, _)| since.wall);
        resting.map(|(_, row)| row.due).or_else(failed).or_else(crowd).or_else(ready)
    }

    /// The next message to handle. It stays taken. One whose instance is busy with another waits behind that.
    pub(crate) fn pop_due(&mut self, now: Moment) -> Option<Arc<InboxRow>> {
        loop {
            let rested = self.resting.first_entry().filter(|entry| entry.key().0 <= now.elapsed);
            let failed = self.postponed.first_entry().filter(|entry| entry.key().0 <= now.wall);
            let (since, row) = match (rested, failed) {
                (Some(entry), _) => {
                    let row = entry.remove();
                    self.postponed_bytes -= row.bytes();
                    (now, row)
                }
                (None, Some(entry)) => {
                    let row = entry.remove();
                    self.postponed_bytes -= row.bytes();
                    (now, row)
                }
                // They were taken before those that are ready.
                (None, None) => match self.crowds.pop_first() {
                    Some(first) => {
                        self.crowd_bytes -= first.row.bytes();
                        return Some(self.hand_out(first.row));
                    }
                    None => {
                        let (since, row) = self.ready.pop_front()?;
                        self.ready_bytes -= row.bytes();
                        self.lets_alarms_fire |= self.ready.is_empty() && self.pass == Pass::None;
                        (since, row)
                    }
                },
            };
            if self.crowds.has(&row.name) && !self.crowds.lead(&row.name) {
                self.join_crowd(since, row);
            } else {
                return Some(self.hand_out(row));
            }
        }
    }

    fn hand_out(&mut self, row: Arc<InboxRow>) -> Arc<InboxRow> {
        self.taken.entry((row.name.clone(), row.id.clone())).or_default().is_out = true;
        row
    }

    /// Makes a message that was handed out the one of its instance behind which the others wait, unless there is one; `false` says
    /// that.
    pub(crate) fn lead(&mut self, name: &InstanceName) -> bool {
        self.crowds.lead(name)
    }

    /// True if a message of the instance was handed out behind which the others wait.
    pub(crate) fn is_led(&self, name: &InstanceName) -> bool {
        self.crowds.has_head(name)
    }

    /// True if messages wait behind others of their instances.
    pub(crate) fn has_crowd(&self) -> bool {
        self.crowds.waiting() > 0 || !self.left_behind.is_empty()
    }

    /// The instance is done with the one behind which the others wait, however that ended.
    pub(crate) fn head_ended(&mut self, name: &InstanceName) {
        self.crowds.head_ended(name);
        if !self.left_behind.is_empty() && self.crowd_has_room(2) {
            self.left_behind.clear();
            self.look();
        }
    }

    /// A message that was handed out has met another of its instance, and waits behind that.
    pub(crate) fn turn_back(&mut self, now: Moment, row: Arc<InboxRow>) {
        let since = Moment { wall: row.due.min(now.wall), ..now };
        self.join_crowd(since, row);
    }

    /// Says whether so many times as many as wait may.
    fn crowd_has_room(&self, times: usize) -> bool {
        self.crowds.waiting() * times < self.cap * CROWD_PER_CAP && self.crowd_bytes * times < MAX_BYTES
    }

    fn join_crowd(&mut self, since: Moment, row: Arc<InboxRow>) {
        if self.crowd_has_room(1) {
            // What a first pass found comes before whatever alarms its instance has.
            let is_of_first_pass = row.arrived <= self.first_until;
            let since = Moment { wall: if is_of_first_pass { Timestamp::MIN } else { since.wall }, ..since };
            self.is_in_store(&row);
            self.crowd_bytes += row.bytes();
            let key = row.key();
            self.crowds.wait(&key.name.clone(), InCrowd { key, since, row });
            return;
        }
        let identity = (row.name.clone(), row.id.clone());
        self.taken.remove(&identity);
        if let Pass::Loading(_, gone) = &mut self.pass {
            gone.insert(identity.clone(), Gone::Left);
        }
        // The first is always noted: it says that there are some.
        if self.left_behind.len() < MAX_LEFT {
            self.left_behind.insert(identity);
        }
    }

    /// The message has left the inbox, durably.
    pub(crate) fn remove(&mut self, key: &InboxKey) {
        let identity = (key.name.clone(), key.id.clone());
        if self.taken.remove(&identity).is_some_and(|taken| taken.is_shown_again) {
            self.look();
        }
        if let Pass::Loading(_, gone) = &mut self.pass {
            gone.insert(identity, Gone::Removed);
        }
    }

    /// The message that was handed out has failed, durably, and waits until it is due, as `row`.
    pub(crate) fn postpone(&mut self, due: Timestamp, row: Arc<InboxRow>) {
        self.next_number += 1;
        self.is_in_store(&row);
        self.postponed_bytes += row.bytes();
        self.postponed.insert((due, self.next_number), row);
        self.leave_last();
    }

    /// The message that was handed out could not be taken, and waits until the lease clock shows `at`.
    pub(crate) fn wait_again(&mut self, at: Duration, row: Arc<InboxRow>) {
        self.next_number += 1;
        self.is_in_store(&row);
        self.postponed_bytes += row.bytes();
        self.resting.insert((at, self.next_number), row);
        self.leave_last();
    }

    /// The message that was handed out is still in the store: whatever a page has shown under its ID was this one.
    fn is_in_store(&mut self, row: &InboxRow) {
        if let Some(taken) = self.taken.get_mut(&(row.name.clone(), row.id.clone())) {
            *taken = Taken::default();
        }
    }

    /// Past the cap, in messages or in bytes, leaves the last ones to the store until their time.
    fn leave_last(&mut self) {
        loop {
            let count = self.postponed.len() + self.resting.len();
            if count <= self.cap * POSTPONED_PER_CAP && (self.postponed_bytes <= MAX_BYTES || count <= 1) {
                return;
            }
            if let Some(((due, _), row)) = self.postponed.pop_last() {
                self.left_until = Some(self.left_until.map_or(due, |other| other.min(due)));
                if self.left.len() < MAX_LEFT {
                    self.left.insert((row.name.clone(), row.id.clone()), due);
                }
                self.leave(&row);
            } else if let Some(((at, _), row)) = self.resting.pop_last() {
                self.left_resting_until = Some(self.left_resting_until.map_or(at, |other| other.min(at)));
                self.leave(&row);
            }
        }
    }

    fn leave(&mut self, row: &InboxRow) {
        self.postponed_bytes -= row.bytes();
        let identity = (row.name.clone(), row.id.clone());
        self.taken.remove(&identity);
        if let Pass::Loading(_, gone) = &mut self.pass {
            gone.insert(identity, Gone::Left);
        }
    }
}
