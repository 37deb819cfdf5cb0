//! The window against a model: the whole store as a map, and beside it a mark for each alarm that is firing, postponed or set aside,
//! and for each instance that is busy with something behind which its alarms wait.
//!
//! Commits reach the window later than the store, as many at once as the schedule likes, and pages are read row by row while
//! the store changes. Whenever the window has been told of everything, it must hold each alarm of the store up to its horizon and
//! none beyond, in its state; whatever it gives up at any time must be due and nobody's already; and in the end everything that
//! lives has to come, in order and once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest_state_machine::ReferenceStateMachine;

use super::*;
use crate::cases::{self, Checked, Subject};
use crate::store::{Attempts, Epoch};

/// The number of alarms there may be.
const ALARMS: usize = 24;

type Identity = (InstanceName, Arc<str>);

fn name(alarm: usize) -> InstanceName {
    let interface = if alarm.is_multiple_of(5) { "cart" } else { "order" };
    InstanceName { interface: interface.into(), instance: format!("i{}", alarm % 3).into() }
}

fn identity(alarm: usize) -> Identity {
    (name(alarm), format!("a{alarm:02}").into())
}

fn row(alarm: usize, due: Timestamp, revision: Revision) -> AlarmRow {
    let (name, id) = identity(alarm);
    AlarmRow {
        name,
        id,
        due,
        scheduled_at: due,
        revision,
        attempts: Attempts::default(),
        meta: Bytes::from_static(&[b'1'; 3_000]).slice(..[4, 40, 400, 3_000][alarm % 4]),
    }
}

/// The beginning of a case.
#[derive(Debug, Clone)]
struct Start {
    cap: usize,
    cap_bytes: usize,
    /// Alarms in the store, and when they are due.
    stored: BTreeMap<usize, i64>,
}

/// The next step. A step that is not possible where it stands does nothing, so that anything may be left out of a case.
#[derive(Debug, Clone)]
enum Step {
    /// An alarm is set or moved, to so many milliseconds from now.
    Put {
        alarm: usize,
        due: i64,
    },
    /// A number of alarms are set at once.
    Flood {
        first: usize,
        count: usize,
        due: i64,
    },
    /// A setting that the store has overtaken is told again.
    PutOvertaken {
        alarm: usize,
    },
    /// An alarm is cancelled; if `overtaken`, a setting of it that is not the last.
    Remove {
        alarm: usize,
        overtaken: bool,
    },
    /// The window is told of so many commits.
    Tell(usize),
    /// The first alarm that is due fires.
    Pop,
    /// One of those firing ends.
    End {
        token: usize,
        how: Ending,
    },
    /// The instance of an alarm is on its way to be busy with something else.
    Lead {
        alarm: usize,
    },
    /// The instance is done with what its alarms wait behind.
    EndHead {
        alarm: usize,
    },
    /// One of those firing has met another of its instance.
    TurnBack {
        token: usize,
    },
    BeginPage,
    /// A number of rows of the page are read.
    ReadPage(usize),
    MergePage,
    AbandonPage,
    /// The wall clock goes on, or steps back.
    Clock(i64),
}

/// The end of a fire.
#[derive(Debug, Clone)]
enum Ending {
    /// The handler has done it.
    Completed,
    /// The handler has failed: the alarm is to come again in so many milliseconds.
    Failed(i64),
    /// The handler has set the alarm anew.
    Rearmed(i64),
    /// Nothing became of the fire: its token was dropped, and the alarm is to wait for so long, if that is given.
    Dropped(Option<i64>),
    /// Nobody knows its interface.
    SetAside,
}

/// Generates schedules; what they come to is the [`Model`]'s business, since it depends on what the window loads.
struct Schedules;

impl ReferenceStateMachine for Schedules {
    type State = Start;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Start> {
        let stored = vec((0..ALARMS, -5..200_i64), 0..ALARMS);
        let cap_bytes = prop_oneof![2 => Just(usize::MAX), 1 => 1..2_000_usize, 1 => 2_000..9_000_usize];
        (2..12_usize, cap_bytes, stored)
            .prop_map(|(cap, cap_bytes, stored)| Start { cap, cap_bytes, stored: stored.into_iter().collect() })
            .boxed()
    }

    fn transitions(_: &Start) -> BoxedStrategy<Step> {
        // Mostly near, so that many are due together.
        let due = || prop_oneof![4 => -3..6_i64, 3 => -3..40_i64, 1 => -3..400_i64, 1 => 0..9_000_i64];
        let ending = prop_oneof![
            4 => Just(Ending::Completed),
            2 => due().prop_map(Ending::Failed),
            2 => due().prop_map(Ending::Rearmed),
            3 => proptest::option::of(-3..20_i64).prop_map(Ending::Dropped),
            1 => Just(Ending::SetAside),
        ];
        prop_oneof![
            12 => (0..ALARMS, due()).prop_map(|(alarm, due)| Step::Put { alarm, due }),
            9 => (0..ALARMS, 4..16_usize, due()).prop_map(|(first, count, due)| Step::Flood { first, count, due }),
            2 => (0..ALARMS).prop_map(|alarm| Step::PutOvertaken { alarm }),
            6 => (0..ALARMS, prop::bool::weighted(0.2)).prop_map(|(alarm, overtaken)| Step::Remove { alarm, overtaken }),
            20 => prop_oneof![1 => 1..3_usize, 2 => Just(usize::MAX)].prop_map(Step::Tell),
            16 => Just(Step::Pop),
            12 => (0..4_usize, ending).prop_map(|(token, how)| Step::End { token, how }),
            5 => (0..ALARMS).prop_map(|alarm| Step::Lead { alarm }),
            6 => (0..ALARMS).prop_map(|alarm| Step::EndHead { alarm }),
            3 => (0..4_usize).prop_map(|token| Step::TurnBack { token }),
            9 => Just(Step::BeginPage),
            4 => (1..6_usize).prop_map(Step::ReadPage),
            3 => Just(Step::MergePage),
            1 => Just(Step::AbandonPage),
            6 => prop_oneof![5 => 1..20_i64, 1 => 20..3_000_i64, 1 => -50..0_i64].prop_map(Step::Clock),
        ]
        .boxed()
    }

    fn apply(start: Start, _: &Step) -> Start {
        start
    }
}

/// A commit that the store has written and the window has not been told of.
enum Commit {
    Put(AlarmRow),
    Remove(Identity, Revision),
}

/// A page as it is being read, row by row and not at one moment.
struct Reading {
    after: Option<AlarmKey>,
    limit: usize,
    bytes: usize,
    rows: Vec<AlarmRow>,
}

/// Events that the schedules must have met for the test to mean anything.
#[derive(Default, Debug)]
struct Met {
    pops: usize,
    merged: usize,
    spoiled: usize,
    ceilings: usize,
    dropped_tails: usize,
    postponed: usize,
    ahead: usize,
    steps_back: usize,
    cuts: usize,
    alone: usize,
    crowded: usize,
    let_pass: usize,
    checks: usize,
}

/// The model of a window, kept the simple way, and the window.
struct Model<'a> {
    window: AlarmWindow,
    store: BTreeMap<Identity, AlarmRow>,
    under_way: VecDeque<Commit>,
    /// Alarms that were popped and have not ended.
    tokens: Vec<AlarmRow>,
    /// Alarms that the window has to hold as firing.
    firing: BTreeMap<Identity, AlarmRow>,
    postponed: BTreeMap<Identity, (Duration, Revision)>,
    aside: BTreeMap<Identity, Revision>,
    /// Instances that are busy with something behind which their alarms wait.
    heads: BTreeSet<InstanceName>,
    reading: Option<Reading>,
    now: Timestamp,
    /// The time of the lease clock: it does not step back.
    elapsed: Duration,
    counter: u64,
    met: &'a RefCell<Met>,
}

/// A time of so many milliseconds, none if negative.
fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn identity_of(row: &AlarmRow) -> Identity {
    (row.name.clone(), row.id.clone())
}

impl<'a> Model<'a> {
    fn new(start: &Start, met: &'a RefCell<Met>) -> Model<'a> {
        let rows = start.stored.iter().map(|(alarm, due)| {
            let revision = Revision { epoch: Epoch(1), counter: 1 };
            row(*alarm, Timestamp::from_millis(*due), revision)
        });
        Model {
            window: AlarmWindow::bounded(start.cap, start.cap_bytes),
            store: rows.map(|row| (identity_of(&row), row)).collect(),
            under_way: VecDeque::new(),
            tokens: Vec::new(),
            firing: BTreeMap::new(),
            postponed: BTreeMap::new(),
            aside: BTreeMap::new(),
            heads: BTreeSet::new(),
            reading: None,
            now: Timestamp::UNIX_EPOCH,
            elapsed: Duration::ZERO,
            counter: 0,
            met,
        }
    }

    fn after(&self, millis: i64) -> Timestamp {
        Timestamp::from_millis(self.now.as_millis() + millis)
    }

    fn next_revision(&mut self) -> Revision {
        self.counter += 1;
        Revision { epoch: Epoch(2), counter: self.counter }
    }

    fn set(&mut self, alarm: usize, due: i64) {
        let revision = self.next_revision();
        self.put(row(alarm, self.after(due), revision));
    }

    fn put(&mut self, row: AlarmRow) {
        self.store.insert(identity_of(&row), row.clone());
        self.under_way.push_back(Commit::Put(row));
    }

    fn remove(&mut self, identity: Identity, revision: Revision) {
        if self.store.get(&identity).is_some_and(|old| old.revision <= revision) {
            self.store.remove(&identity);
        }
        self.under_way.push_back(Commit::Remove(identity, revision));
    }

    /// Tells the window of the oldest commit. What it does away with is what is not newer.
    fn tell(&mut self) {
        let (identity, revision, told) = match self.under_way.pop_front() {
            None => return,
            Some(Commit::Put(row)) => {
                self.window.put(row.clone());
                (identity_of(&row), row.revision, Some(row))
            }
            Some(Commit::Remove(identity, revision)) => {
                self.window.remove(&identity.0, &identity.1, revision);
                (identity, revision, None)
            }
        };
        // A page may have shown this very row before, and then it may be firing already.
        if self.firing.get(&identity).is_some_and(|row| row.revision <= revision && Some(row) != told.as_ref()) {
            self.firing.remove(&identity);
        }
        if self.postponed.get(&identity).is_some_and(|(_, of)| *of <= revision) {
            self.postponed.remove(&identity);
        }
        if self.aside.get(&identity).is_some_and(|of| *of <= revision) {
            self.aside.remove(&identity);
        }
    }

    fn tell_all(&mut self) {
        while !self.under_way.is_empty() {
            self.tell();
        }
    }

    /// The row of the store that comes next on a page.
    fn next_on(&self, reading: &Reading) -> Option<&AlarmRow> {
        let after = reading.rows.last().map(AlarmRow::key).or_else(|| reading.after.clone());
        let rows = self.store.values().filter(|row| after.as_ref().is_none_or(|after| row.key() > *after));
        rows.min_by_key(|row| row.key())
    }

    /// Reads one more row, if the page has room and the store has one.
    fn read(&self, reading: &mut Reading) -> bool {
        let bytes: usize = reading.rows.iter().map(AlarmRow::bytes).sum();
        match self.next_on(reading) {
            Some(row)
                if reading.rows.is_empty()
                    || (reading.rows.len() < reading.limit && bytes + row.bytes() <= reading.bytes) =>
            {
                reading.rows.push(row.clone());
                true
            }
            _ => false,
        }
    }

    fn begin_page(&mut self) {
        self.window.tell(self.now);
        if self.reading.is_none() && self.window.wants_page() {
            let bytes = self.window.room();
            let (after, limit) = self.window.begin_page();
            self.reading = Some(Reading { after, limit, bytes, rows: Vec::new() });
        }
    }

    fn merge_page(&mut self) {
        let Some(mut page) = self.reading.take() else { return };
        while self.read(&mut page) {}
        {
            let mut met = self.met.borrow_mut();
            met.merged += 1;
            met.ahead += usize::from(!self.under_way.is_empty());
            if let Page::Loading(notes) = &self.window.page {
                met.ceilings += usize::from(notes.has_ceiling());
            }
        }
        let is_last = page.rows.len() < page.limit && self.next_on(&page).is_none();
        self.window.tell(self.now);
        self.window.merge_page(page.rows, is_last);
        self.met.borrow_mut().cuts += usize::from(self.window.was_cut);
    }

    /// Says whether an alarm waits behind another of its instance. It does so from when its turn came while the instance was busy,
    /// and then whatever becomes of the horizon.
    fn is_crowded(&self, (name, id): &Identity) -> bool {
        self.window.find(self.window.hash(name, id), name, id).is_some_and(|entry| entry.state == State::Crowded)
    }

    fn lead(&mut self, name: InstanceName) {
        assert_eq!(self.window.lead(&name), !self.heads.contains(&name), "one is the first of its instance");
        self.heads.insert(name);
    }

    fn end_head(&mut self, name: &InstanceName) {
        self.window.head_ended(name);
        self.heads.remove(name);
    }

    /// The time at which an alarm is to fire, if it is one that the window can know of and that is not firing.
    fn wakes(&self, identity: &Identity, row: &AlarmRow) -> Option<Timestamp> {
        let is_elsewhere = self.firing.contains_key(identity)
            || self.aside.contains_key(identity)
            || self.postponed.contains_key(identity);
        let is_known = self.window.horizon.reaches(row) || self.is_crowded(identity);
        (!is_elsewhere && is_known).then_some(row.due)
    }

    /// The alarms that are to fire, and when, those of busy instances only if `and_busy`.
    fn waking(&self, and_busy: impl Fn(&Identity) -> bool) -> impl Iterator<Item = (Timestamp, AlarmKey)> {
        let may_fire = move |identity: &Identity| !self.heads.contains(&identity.0) || and_busy(identity);
        let waking = self.store.iter().filter(move |(identity, _)| may_fire(identity));
        waking.filter_map(|(identity, row)| Some((self.wakes(identity, row)?, row.key())))
    }

    /// The alarm to look at next, and when: one whose instance is busy is looked at once, and waits behind that from then on.
    fn first(&self) -> Option<(Timestamp, AlarmKey)> {
        self.waking(|identity| !self.is_crowded(identity)).min()
    }

    fn pop(&mut self) -> Checked {
        self.window.end_waits(self.elapsed);
        self.postponed.retain(|_, (at, _)| *at > self.elapsed);
        let expected = self.waking(|_| false).min().filter(|(at, _)| *at <= self.now);
        let is_passing = expected.is_some() && self.first() != expected;
        let popped = self.window.pop_due(self.now);
        if self.under_way.is_empty() {
            let popped = popped.as_ref().map(|row| (row.due, row.key()));
            prop_assert_eq!(popped, expected, "the first alarm that is due fires");
        }
        if let Some(row) = popped {
            let identity = identity_of(&row);
            prop_assert!(row.due <= self.now, "{row:?} fires before its time");
            prop_assert!(self.firing.get(&identity) != Some(&row), "{row:?} fires while it fires");
            prop_assert!(!self.heads.contains(&row.name), "{row:?} fires beside what it waits behind");
            self.met.borrow_mut().pops += 1;
            self.met.borrow_mut().let_pass += usize::from(is_passing);
            if self.window.is_led(&row.name) {
                self.heads.insert(row.name.clone());
            }
            self.firing.insert(identity, row.clone());
            self.tokens.push(row);
        }
        Ok(())
    }

    fn finish(&mut self, row: AlarmRow, how: &Ending) {
        let identity = identity_of(&row);
        // As the host does: what says that it failed is of no use to a setting that has been made since.
        let is_current = self.store.get(&identity) == Some(&row);
        match how {
            Ending::Completed => self.remove(identity, row.revision),
            Ending::Failed(delay) if is_current => {
                self.put(AlarmRow {
                    due: self.after(*delay),
                    attempts: row.attempts.one_more_failed(&"it failed".into()),
                    ..row
                });
            }
            Ending::Rearmed(delay) if is_current => {
                let revision = self.next_revision();
                self.put(AlarmRow { due: self.after(*delay), revision, attempts: Attempts::default(), ..row.clone() });
                self.remove(identity, row.revision);
            }
            Ending::SetAside => {
                self.window.set_aside(&identity.0, &identity.1, row.revision);
                if self.firing.get(&identity).is_some_and(|firing| firing.revision == row.revision) {
                    self.firing.remove(&identity);
                    self.aside.insert(identity, row.revision);
                }
            }
            Ending::Dropped(_) | Ending::Failed(_) | Ending::Rearmed(_) => {
                let not_before = match how {
                    Ending::Dropped(wait) => wait.map(|wait| self.elapsed + millis(wait)),
                    _ => None,
                };
                self.window.wait_again(&identity.0, &identity.1, row.revision, not_before);
                if self.firing.get(&identity).is_some_and(|firing| firing.revision == row.revision) {
                    self.firing.remove(&identity);
                    if let Some(at) = not_before {
                        self.met.borrow_mut().postponed += 1;
                        self.postponed.insert(identity, (at, row.revision));
                    }
                }
            }
        }
    }

    /// Every live alarm up to the horizon, none beyond it but those firing and postponed, each in its state.
    fn check(&mut self) -> Checked {
        let Model { window, aside, .. } = self;
        prop_assert!(window.waiting() <= window.cap || window.waiting.is_empty(), "over its cap");
        let bytes: usize = window.waiting.iter().map(|key| size(&key.0)).sum();
        prop_assert_eq!(window.waiting_bytes, bytes);
        prop_assert_eq!(window.postponed_bytes, window.postponed.iter().map(|(_, key)| size(&key.0)).sum::<usize>());
        prop_assert!(bytes <= window.cap_bytes || window.waiting.len() == 1, "over its cap in bytes");
        if !self.under_way.is_empty() {
            return Ok(());
        }
        self.met.borrow_mut().checks += 1;
        self.met.borrow_mut().alone += usize::from(bytes > window.cap_bytes);
        let crowded: Vec<_> = window.entries.iter().filter(|entry| entry.state == State::Crowded).collect();
        prop_assert_eq!(window.crowd_bytes, crowded.iter().map(|entry| size(&entry.row)).sum::<usize>());
        prop_assert_eq!(window.crowds.waiting(), crowded.len());
        self.met.borrow_mut().crowded += crowded.len();
        // It may be back with a page.
        aside.retain(|(name, id), _| window.get(name, id).is_none());
        let (mut held, mut firing) = (0, 0);
        for (identity, row) in &self.store {
            let is_firing = self.firing.contains_key(identity);
            let is_postponed = self.postponed.contains_key(identity);
            let is_held = is_firing || is_postponed || self.wakes(identity, row).is_some();
            prop_assert_eq!(self.window.get(&identity.0, &identity.1), is_held.then_some(row), "{:?}", identity);
            prop_assert_eq!(self.window.is_firing(&identity.0, &identity.1), is_firing, "{:?}", identity);
            held += usize::from(is_held);
            firing += usize::from(is_firing);
        }
        prop_assert_eq!((self.window.len(), self.window.firing()), (held, firing), "alarms held, and firing");
        prop_assert_eq!(self.window.next_deadline(), self.first().map(|(at, _)| at));
        prop_assert_eq!(self.window.next_wait(), self.postponed.values().map(|(at, _)| *at).min());
        Ok(())
    }

    /// In the end everything that lives fires, in order, and nothing twice.
    fn run_out(mut self) -> Checked {
        self.tell_all();
        if self.reading.take().is_some() {
            self.window.abandon_page();
        }
        for row in mem::take(&mut self.tokens) {
            self.finish(row, &Ending::Dropped(None));
        }
        for name in mem::take(&mut self.heads) {
            self.window.head_ended(&name);
        }
        (self.now, self.elapsed) = (Timestamp::MAX, Duration::MAX);
        loop {
            self.check()?;
            self.pop()?;
            if let Some(row) = self.tokens.pop() {
                self.end_head(&row.name);
                self.finish(row, &Ending::Completed);
                self.tell_all();
            } else if self.window.is_complete() {
                break;
            } else {
                prop_assert!(self.window.wants_page(), "nothing waits and no page is wanted");
                self.begin_page();
                self.merge_page();
            }
        }
        prop_assert_eq!(self.window.len(), 0);
        prop_assert!(self.store.keys().eq(self.aside.keys()), "left over: {:?}", self.store);
        Ok(())
    }
}

impl Subject<Schedules> for Model<'_> {
    fn apply(&mut self, _: &Start, step: &Step) -> Checked {
        let was_complete = self.window.is_complete();
        let was_spoiled = matches!(self.window.page, Page::Spoiled);
        match step {
            Step::Put { alarm, due } => self.set(*alarm, *due),
            Step::Flood { first, count, due } => {
                (0..*count).for_each(|n| self.set((first + n) % ALARMS, *due));
            }
            Step::PutOvertaken { alarm } => {
                let (name, id) = identity(*alarm);
                // A window that does not have the alarm relies on the host never to tell it of such.
                if self.under_way.is_empty()
                    && let Some(held) = self.window.get(&name, &id).cloned()
                    && let Some(counter) = held.revision.counter.checked_sub(1)
                {
                    let revision = Revision { counter, ..held.revision };
                    self.window.put(AlarmRow { due: self.now, revision, ..held });
                }
            }
            Step::Remove { alarm, overtaken } => {
                let identity = identity(*alarm);
                if let Some(stored) = self.store.get(&identity) {
                    let Revision { epoch, counter } = stored.revision;
                    self.remove(identity, Revision { epoch, counter: counter - u64::from(*overtaken) });
                }
            }
            Step::Tell(count) => (0..self.under_way.len().min(*count)).for_each(|_| self.tell()),
            Step::Pop => self.pop()?,
            Step::End { token, how } => {
                if *token < self.tokens.len() {
                    let row = self.tokens.remove(*token);
                    self.finish(row, how);
                }
            }
            Step::Lead { alarm } => self.lead(name(*alarm)),
            Step::EndHead { alarm } => self.end_head(&name(*alarm)),
            Step::TurnBack { token } => {
                if *token < self.tokens.len() {
                    let row = self.tokens.remove(*token);
                    self.window.turn_back(&row.name, &row.id, row.revision);
                    let identity = identity_of(&row);
                    if self.firing.get(&identity).is_some_and(|firing| firing.revision == row.revision) {
                        self.firing.remove(&identity);
                    }
                }
            }
            Step::BeginPage => self.begin_page(),
            Step::ReadPage(rows) => {
                if let Some(mut reading) = self.reading.take() {
                    (0..*rows).for_each(|_| _ = self.read(&mut reading));
                    self.reading = Some(reading);
                }
            }
            Step::MergePage => self.merge_page(),
            Step::AbandonPage => {
                if self.reading.take().is_some() {
                    self.window.abandon_page();
                }
            }
            Step::Clock(millis) => {
                self.now = self.after(*millis);
                self.elapsed += self::millis(*millis);
                self.met.borrow_mut().steps_back += usize::from(*millis < 0);
            }
        }
        {
            let mut met = self.met.borrow_mut();
            met.spoiled += usize::from(!was_spoiled && matches!(self.window.page, Page::Spoiled));
            met.dropped_tails += usize::from(was_complete && !self.window.is_complete());
        }
        self.check()
    }

    fn end(self, _: &Start) -> Checked {
        self.run_out()
    }
}

#[test]
fn a_window_does_what_a_model_of_the_whole_store_does() {
    let met = RefCell::default();
    cases::check::<Schedules, _>(1_500, 200, |start| Model::new(start, &met));
    if std::env::var_os("CASES").is_some() {
        return;
    }
    let met = met.take();
    for (what, times) in [
        ("pops", met.pops),
        ("pages merged", met.merged),
        ("pages spoiled", met.spoiled),
        ("ceilings", met.ceilings),
        ("tails dropped", met.dropped_tails),
        ("alarms postponed", met.postponed),
        ("pages ahead of commits", met.ahead),
        ("steps back of the clock", met.steps_back),
        ("pages cut for their bytes", met.cuts),
        ("alarms too large for their window", met.alone),
        ("alarms behind others of their instance", met.crowded),
        ("alarms that passed those of busy instances", met.let_pass),
        ("full comparisons", met.checks),
    ] {
        assert!(times >= 20, "{what}: only {times}");
    }
}
