//! Runs the code of one flow: pure code, without a clock, I/O or a store.
//!
//! Entries of the journal are delivered to the code one at a time, in their order, live exactly as in a replay. After each poll,
//! of the operations that wait and have something, the one whose entry is the oldest is *released*: its own waker is woken, the
//! code is polled, and only then may the operation answer. A release that nobody took goes back. If the code woke itself within a
//! poll, it is polled again before anything else is released. When nothing can be released, the next entry is delivered. So
//! what the code sees is a function of its journal, whatever it is made of: `select!`, `join!`, `FuturesUnordered`.
//!
//! Steps run inside the code's own future, but are polled only between entries ([`Engine::poll_steps`]), with a waker of their
//! own; their results become entries. Whatever else makes the code go on between entries is found out, and blocks the flow.

mod check;
mod children;
mod continued;
mod due;
mod emitted;
mod faults;
mod halted;
mod names;
mod shared;
#[cfg(test)]
mod tests;
mod written;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use stable_interfaces::Timestamp;
use tokio::task::coop::{Unconstrained, unconstrained};

use self::faults::{beside_the_journal, compare, foreign_wake, panicked};
use self::names::{has_begun, is_patch};
use self::shared::{Entered, FlowWaker, Mode, Op};
use self::written::{Unwritten, size_of};
use crate::blocked::{Blocked, BlockedKind};
use crate::flow::Flow;
use crate::journal::{Begun, Ended, Entry, Event, Key, Page, Settled, begun_of};
use crate::seldom::{Seldom, Unchanged};
use crate::step::cut;

pub(crate) use self::children::{Post, What};
pub(crate) use self::continued::is_signal;
pub(crate) use self::emitted::{Emitted, MAX_EVENT_BYTES};
#[cfg(feature = "testing")]
pub(crate) use self::names::name_of;
pub(crate) use self::names::{Kind, is_callback_named, scope_within, signal_key, timer_name};
pub(crate) use self::shared::{Item, Life, Limits, Nudge, Shared, Ticket};

/// The number of times that the code may wake itself before it has to wait for something.
const MAX_SELF_WAKES: usize = 10_000;
/// The most callbacks and signals that the code has not begun and that messages are there for.
const MAX_EARLY: usize = 500;
/// About how many bytes of steps' results go into one commit, beside a message and a result of the flow: one of the largest.
const MAX_HANDED_IN: usize = 1024 * 1024;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;
/// The code of a flow: makes its future from the input.
pub(crate) type Code = Arc<dyn Fn(Flow, Bytes) -> BoxFuture<Result<Bytes, Stop>> + Send + Sync>;

/// The reason why a flow's code came to no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stop {
    Failed(Arc<str>),
    /// The flow is to go on as another run, with this input as JSON.
    Continue(Bytes),
}

impl From<Arc<str>> for Stop {
    fn from(error: Arc<str>) -> Stop {
        Stop::Failed(error)
    }
}

impl From<String> for Stop {
    fn from(error: String) -> Stop {
        Stop::Failed(error.into())
    }
}

impl From<&str> for Stop {
    fn from(error: &str) -> Stop {
        Stop::Failed(error.into())
    }
}

/// The end of a run.
#[derive(Debug)]
enum End {
    Over(Ended),
    Continue(Bytes),
}
/// A step that undoes another.
pub(crate) type Undo = Box<dyn FnOnce(Flow) -> BoxFuture<()> + Send>;

/// The phase that a flow is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The code of the flow waits, or has something to do.
    Going,
    /// The flow needs somebody to look at it.
    Blocked(Blocked),
    Ended(Ended),
    /// The run is over, and another one is to begin: [`Engine::take_continuation`].
    Continued,
}

/// Something that the code waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// The number of the operation among those that the code has begun in this life.
    number: u64,
    pub(crate) key: Key,
    pub(crate) kind: Kind,
    pub(crate) since: Timestamp,
    pub(crate) until: Option<Timestamp>,
    pub(crate) attempts: u32,
    pub(crate) last_error: Option<Arc<str>>,
    pub(crate) at: Option<Arc<str>>,
}

/// Faults that tests put into an engine, to see that they are found.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    TwoReleasesPerPoll,
    AllDeliveredAtOnce,
    NotUnconstrained,
    ForgetsWhoWaitsOnSelfWake,
    ConsumesAtDelivery,
    EmitsInReplays,
    EmitsBeforeAllIsTakenIn,
    ForgetsWhatComesAsARunEnds,
    GoesOnWithoutWhatWaits,
    OpensStepsBeforeAllIsWritten,
    TakesAPartForTheWhole,
}

enum Running {
    Unconstrained(Unconstrained<BoxFuture<End>>),
    #[cfg(test)]
    Budgeted(BoxFuture<End>),
}

impl Running {
    fn poll(&mut self, task: &mut Context<'_>) -> Poll<End> {
        match self {
            Running::Unconstrained(code) => Pin::new(code).poll(task),
            #[cfg(test)]
            Running::Budgeted(code) => code.as_mut().poll(task),
        }
    }
}

/// Runs the code of one flow.
pub(crate) struct Engine {
    shared: Arc<Shared>,
    code: Code,
    running: Option<Running>,
    waker: Waker,
    /// Entries that the code has not seen.
    pending: VecDeque<Entry>,
    /// The number of the first operation that began after the last entry that the code has taken in.
    numbers_settled: u64,
    /// The entry that is being taken in, if that was interrupted.
    current: Option<u64>,
    next_seq: u64,
    /// The number of the first entry of this run.
    first_seq: u64,
    bytes: usize,
    /// The number of entries that the code has taken in in an earlier life, and what it began because of which.
    recorded_to: u64,
    recorded: VecDeque<Settled>,
    /// The entries and beginnings that are still to be written, and how much of it there is.
    fresh: Page,
    unwritten: Unwritten,
    phase: Phase,
    is_cancelled: bool,
    /// The journal has ended: the code may end with the last entry that it took in.
    may_end: bool,
    /// The span that the code runs in, if anybody sees it.
    span: Option<Box<tracing::Span>>,
    rare: Seldom<Rare>,
    #[cfg(test)]
    sabotage: Option<Sabotage>,
}

/// The part of an engine that few flows have.
#[derive(Default)]
struct Rare {
    /// The number of messages that have come while the flow is blocked, or that its code had not seen then.
    unseen: usize,
    /// The things that its code waited for when it was blocked.
    waited: Vec<Wait>,
    /// Timers that are in the journal of a blocked flow, and that its code has not begun, by their deadlines.
    unheld: BTreeSet<(Timestamp, Key)>,
    /// Messages that came in earlier runs, and that this one may take over.
    taken_along: BTreeMap<u64, Entry>,
    /// The input of the next run, and the callbacks and signals that go along.
    left: Option<(Bytes, continued::Open)>,
    /// The events that are still to be stored.
    emitted: Vec<Emitted>,
}

impl Unchanged for Rare {
    const UNCHANGED: &'static Rare = &Rare {
        unseen: 0,
        waited: Vec::new(),
        unheld: BTreeSet::new(),
        taken_along: BTreeMap::new(),
        left: None,
        emitted: Vec::new(),
    };
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("flow", &self.shared.identity)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine for a flow with this journal, which has not begun to replay it. Without pages the flow is yet to be started.
    pub(crate) fn new(shared: Arc<Shared>, code: Code, mut pages: Vec<Page>) -> Engine {
        let waker = Waker::from(Arc::new(FlowWaker(shared.clone())));
        let mut engine = Engine {
            shared,
            code,
            running: None,
            waker,
            pending: VecDeque::new(),
            numbers_settled: 0,
            current: None,
            next_seq: 0,
            first_seq: 0,
            bytes: 0,
            recorded_to: 0,
            recorded: VecDeque::new(),
            fresh: Page::default(),
            unwritten: Unwritten::default(),
            phase: Phase::Going,
            is_cancelled: false,
            may_end: false,
            span: None,
            rare: Seldom::default(),
            #[cfg(test)]
            sabotage: None,
        };
        (engine.recorded, engine.recorded_to, engine.unwritten.stale_to) = begun_of(&mut pages);
        for page in pages {
            for entry in page.entries {
                if matches!(entry.event, Event::Continued { .. }) {
                    engine.begin_run(entry.seq);
                }
                engine.next_seq = entry.seq + 1;
                engine.bytes += entry.event.size();
                engine.pending.push_back(entry);
            }
            if let Some(ended) = page.ended {
                engine.phase = Phase::Ended(ended);
            }
        }
        let begun = engine.recorded.iter().flat_map(|settled| &settled.begun);
        let patched: BTreeSet<Key> = begun.map(|begun| &begun.key).filter(|key| is_patch(key)).cloned().collect();
        if !patched.is_empty() {
            engine.shared.state.lock().rare.made().patched = patched;
        }
        engine.bytes += engine.recorded.iter().map(|settled| size_of(&settled.begun)).sum::<usize>();
        engine.fresh.settled_to = engine.recorded_to;
        engine
    }

    #[cfg(test)]
    pub(crate) fn sabotaged(mut self, sabotage: Option<Sabotage>) -> Engine {
        self.sabotage = sabotage;
        self
    }

    /// The span that the code is to run in.
    pub(crate) fn set_span(&mut self, span: tracing::Span) {
        self.span = (!span.is_disabled()).then(|| Box::new(span));
    }

    pub(crate) fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The number of entries of the journal of this run.
    pub(crate) fn entries(&self) -> u64 {
        self.next_seq - self.first_seq
    }

    /// About how many bytes the journal's entries have.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The earliest deadline of a timer, or of a step's next attempt.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        let held = self.shared.state.lock().due.first().map(|(due, _)| due);
        held.into_iter().chain(self.rare.unheld.first().map(|(due, _)| *due)).min()
    }

    /// The number of messages that the code has not taken.
    pub(crate) fn unread(&self) -> usize {
        let state = self.shared.state.lock();
        let in_callbacks = state.ops.iter().flatten().filter(|op| op.kind.takes_messages());
        let in_callbacks = in_callbacks.map(|op| op.queue.len()).sum::<usize>();
        let in_callbacks = in_callbacks + state.rare.kept.values().map(VecDeque::len).sum::<usize>();
        in_callbacks + state.rare.early.values().map(VecDeque::len).sum::<usize>() + self.rare.unseen
    }

    /// Tells whether a message for this callback or signal, which the code has not begun, would be one of too many such: all of their names have to go along
    /// when the flow goes on as another run.
    pub(crate) fn has_too_many_early(&self, callback: &str) -> bool {
        let state = self.shared.state.lock();
        let is_early = state.by_key.get(callback).is_none() && !state.rare.early.contains_key(callback);
        is_early && state.rare.early.len() >= MAX_EARLY
    }

    /// Everything that the code waits for, oldest first.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        if matches!(self.phase, Phase::Blocked(_)) {
            return self.rare.waited.clone();
        }
        let state = self.shared.state.lock();
        let mut waits = Vec::with_capacity(state.waiting);
        waits.extend(state.ops.iter().flatten().filter(|op| op.waker.is_some()).map(|op| Wait {
            number: op.number,
            key: op.key.clone(),
            kind: op.kind,
            since: op.since,
            until: op.due,
            attempts: op.attempts,
            last_error: op.last_error.clone(),
            at: op.at.clone(),
        }));
        drop(state);
        waits.sort_unstable_by_key(|wait| wait.number);
        waits
    }

    /// Tells whether the code holds this callback, or has not begun it yet: else a message for it comes too late.
    pub(crate) fn takes_messages(&self, callback: &str) -> bool {
        if matches!(self.phase, Phase::Blocked(_)) {
            // Nobody can tell until its code goes on.
            return true;
        }
        if self.goes_along(callback) {
            return true;
        }
        let state = self.shared.state.lock();
        let is_held = state.by_key.get(callback).is_some() || state.rare.kept.contains_key(callback);
        is_held || !has_begun(&state.named, callback)
    }

    /// Tells whether the code holds anything that messages come for: a callback, a signal, a child.
    pub(crate) fn awaits_messages(&self) -> bool {
        if matches!(self.phase, Phase::Blocked(_)) {
            // Nobody can tell what its code holds.
            return true;
        }
        let state = self.shared.state.lock();
        state.open > 0 || !state.rare.kept.is_empty() || state.rare.children.are_known()
    }

    /// Tells whether steps have asked to be polled.
    pub(crate) fn wants_steps_polled(&self) -> bool {
        let is_wanted = || !self.shared.state.lock().handed_in.is_empty() || !self.shared.woken.lock().is_empty();
        matches!(self.phase, Phase::Going) && is_wanted()
    }

    /// Tells whether steps are under way, or about to start.
    pub(crate) fn has_running_steps(&self) -> bool {
        matches!(self.phase, Phase::Going) && self.shared.state.lock().ops.iter().flatten().any(|op| is_running(op))
    }

    /// Tells whether the code holds a step that may start when what was written by a mark is durable, or later.
    pub(crate) fn has_steps_from(&self, mark: u64) -> bool {
        let state = self.shared.state.lock();
        let mut steps = state.ops.iter().flatten().filter(|op| op.kind == Kind::Step);
        matches!(self.phase, Phase::Going) && steps.any(|op| !op.is_over && op.opens_at >= mark)
    }

    /// Tells whether steps are to end before the flow may leave memory; on a host that is about to leave, only those that have begun.
    pub(crate) fn has_steps_to_end(&self) -> bool {
        let is_draining = self.shared.is_draining.load(Ordering::Relaxed);
        let state = self.shared.state.lock();
        state.ops.iter().flatten().any(|op| is_running(op) && (op.has_started || !is_draining))
    }

    /// Begins no more steps: the host is about to leave.
    pub(crate) fn drain(&mut self) {
        self.shared.is_draining.store(true, Ordering::Relaxed);
    }

    /// The names of the steps that are under way, or about to start.
    pub(crate) fn running_steps(&self) -> Vec<Key> {
        let state = self.shared.state.lock();
        state.ops.iter().flatten().filter(|op| is_running(op)).map(|op| op.key.clone()).collect()
    }

    /// Adds to the journal. The code sees it in [`settle`](Self::settle).
    pub(crate) fn append(&mut self, at: Timestamp, event: Event) {
        if !matches!(event, Event::Posted { .. }) {
            self.record_posted(at);
        }
        if matches!(event, Event::Continued { .. }) {
            self.begin_run(self.next_seq);
        }
        let entry = Entry { seq: self.next_seq, at, event };
        self.next_seq += 1;
        self.bytes += entry.event.size();
        self.unwritten.bytes += entry.size();
        // There is one a turn, mostly.
        if self.fresh.entries.capacity() == 0 {
            self.fresh.entries.reserve_exact(1);
        }
        self.fresh.entries.push(entry.clone());
        if matches!(self.phase, Phase::Going | Phase::Continued) {
            if self.pending.capacity() == 0 {
                self.pending.reserve_exact(1);
            }
            self.pending.push_back(entry);
        } else if matches!(entry.event, Event::Message { .. }) {
            self.rare.made().unseen += 1;
        }
        if matches!(self.phase, Phase::Going)
            && let Some(why) = self.too_long(self.bytes)
        {
            self.block(why);
        }
    }

    /// The reason why the flow is to be blocked if its journal has so many bytes.
    fn too_long(&self, now: usize) -> Option<Blocked> {
        let Limits { entries, bytes, .. } = self.shared.limits;
        (self.entries() > entries || now > bytes).then(|| {
            let message = format!(
                "its journal has {} entries and {now} bytes, and may have {entries} and {bytes}: return `flow.continue_with(..)` in time",
                self.entries(),
            );
            Blocked::new(BlockedKind::TooLong, message)
        })
    }

    /// The number of the entry that is next, and how many the code has taken in: for an entry that is written elsewhere.
    #[cfg(feature = "postgres")]
    pub(crate) fn next_entry(&self) -> (u64, u64) {
        (self.next_seq, self.fresh.settled_to)
    }

    /// Adds an entry to the journal that has been written, with the number that was next. The code sees it in [`settle`](Self::settle).
    #[cfg(feature = "postgres")]
    pub(crate) fn append_written(&mut self, entry: Entry) {
        let size = entry.size();
        self.append(entry.at, entry.event);
        self.fresh.entries.pop();
        self.unwritten.bytes -= size;
    }

    /// The attempt that has waited for a transaction for longest, of those that somebody still waits for.
    #[cfg(feature = "postgres")]
    pub(crate) fn next_transaction(&self) -> Option<crate::transaction::Asked> {
        let mut asked = self.shared.transactions.lock();
        std::iter::from_fn(|| asked.pop_front()).find(|asked| !asked.failed.is_closed())
    }

    /// Tells whether attempts wait for a transaction.
    #[cfg(feature = "postgres")]
    pub(crate) fn wants_transactions(&self) -> bool {
        !self.shared.transactions.lock().is_empty()
    }

    /// Adds the firing of every timer whose deadline is before `until` to the journal, earliest first, and lets steps go on whose
    /// time to be tried again has come. Says how many there were. `at` is the moment that counts for them; without it each
    /// counts as of its own deadline.
    pub(crate) fn fire_due(&mut self, until: Timestamp, at: Option<Timestamp>) -> usize {
        let mut fired = Vec::new();
        let mut steps = Vec::new();
        let mut state = self.shared.state.lock();
        while let Some((due, index)) = state.due.first().filter(|(due, _)| *due <= until) {
            state.due.remove((due, index));
            let Some(op) = state.op(index) else { continue };
            op.due = None;
            if op.kind == Kind::Timer {
                fired.push((due, op.key.clone()));
            } else {
                steps.push((index, op.number));
            }
        }
        drop(state);
        self.take_unheld(until, &mut fired);
        let count = fired.len() + steps.len();
        for (due, timer) in fired {
            self.append(at.unwrap_or(due), Event::Fired { timer });
        }
        for step in steps {
            self.shared.wants_polled(step);
        }
        count
    }

    /// Delivers entries until there are none, or the code has been given `releases` things or has emitted as much as fits into one
    /// commit. Says whether there is more to do. Nothing is delivered before all that was decided is in pages that were taken.
    pub(crate) fn settle(&mut self, releases: usize) -> bool {
        if self.has_rest() {
            return true;
        }
        let mut left = releases;
        while matches!(self.phase, Phase::Going) {
            if let Some(why) = self.outside_fault() {
                self.block(why);
                break;
            }
            let seq = match self.current {
                Some(seq) => seq,
                None if self.has_emitted_enough() && !self.pending.is_empty() => return true,
                None => {
                    let Some(entry) = self.pending.pop_front() else {
                        // A flow that waits, for as long as years, is to be small.
                        self.pending = VecDeque::new();
                        return false;
                    };
                    let seq = entry.seq;
                    self.current = Some(seq);
                    if let Err(why) = self.deliver(entry) {
                        self.block(why);
                        break;
                    }
                    #[cfg(test)]
                    if self.sabotage == Some(Sabotage::AllDeliveredAtOnce) {
                        while let Some(entry) = self.pending.pop_front() {
                            self.current = Some(entry.seq);
                            if let Err(why) = self.deliver(entry) {
                                self.block(why);
                                return false;
                            }
                        }
                    }
                    seq
                }
            };
            match self.release_all(&mut left) {
                Ok(Poll::Pending) => {
                    if left == 0 && self.has_ready() {
                        return true;
                    }
                    if let Err(why) = self.settled(self.current.unwrap_or(seq)) {
                        self.block(why);
                    }
                }
                Ok(Poll::Ready(ended)) => self.end(seq, ended),
                Err(why) => self.block(why),
            }
        }
        false
    }

    /// Something that has happened to the code between two polls, and must not have.
    fn outside_fault(&self) -> Option<Blocked> {
        let fault = self.shared.state.lock().take_fault();
        fault.or_else(|| self.shared.foreign_woken.load(Ordering::Acquire).then(foreign_wake))
    }

    fn has_ready(&self) -> bool {
        !self.shared.state.lock().ready.is_empty()
    }

    /// Takes what the code began the first time because of an entry.
    fn take_recorded(&mut self, seq: u64) -> Vec<Begun> {
        while self.recorded.pop_front_if(|settled| settled.seq < seq).is_some() {}
        let settled = self.recorded.pop_front_if(|settled| settled.seq == seq);
        if self.recorded.is_empty() {
            // Its room would be kept for as long as the flow is in memory.
            self.recorded = VecDeque::new();
        }
        settled.map_or_else(Vec::new, |settled| settled.begun)
    }

    /// Gives an entry to whom it is for, without polling anything but a start or a cancellation.
    fn deliver(&mut self, entry: Entry) -> Result<(), Blocked> {
        let Entry { seq, at, event } = entry;
        let expected = (seq < self.recorded_to).then(|| self.take_recorded(seq));
        let mut state = self.shared.state.lock();
        state.now = state.now.max(at);
        state.begun.clear();
        state.told_entries += 1;
        state.told_bytes += event.size();
        if let Some(rare) = state.rare.there() {
            rare.emitted.clear();
            rare.children.forget();
        }
        state.take_in(seq, at, &event);
        state.expected = expected;
        let target = match &event {
            Event::Start { run, seed, input, .. } => {
                (state.run, state.seed) = (*run, *seed);
                drop(state);
                self.start(input.clone());
                return Ok(());
            }
            Event::Cancel => {
                drop(state);
                self.cancel();
                return Ok(());
            }
            Event::Continued { run, seed, input, carried, .. } => {
                (state.run, state.seed) = (*run, *seed);
                if !carried.is_empty() {
                    state.take_over(carried, &mut self.rare.made().taken_along)?;
                }
                drop(state);
                self.start(input.clone());
                return Ok(());
            }
            Event::Posted { .. } => return Ok(()),
            Event::Message { callback: key, .. } => key.clone(),
            Event::ChildEnded { child: key, .. }
            | Event::Result { step: key, .. }
            | Event::Attempt { step: key, .. }
            | Event::Intent { step: key }
            | Event::Fired { timer: key } => key.clone(),
        };
        let is_replay = state.expected.is_some();
        let Some(index) = state.by_key.get(&target).copied() else {
            if let Some(kept) = state.rare.there().and_then(|rare| rare.kept.get_mut(&target)) {
                // The code has let it go for the next run to take.
                kept.push_back(Item { seq, at, event });
                return Ok(());
            }
            if has_begun(&state.named, &target) {
                // It lost a race.
                return Ok(());
            }
            if matches!(event, Event::Message { .. }) {
                state.rare.made().early.entry(target).or_default().push_back(Item { seq, at, event });
                return Ok(());
            }
            let message = format!("entry {seq} of its journal is {event}, and the code has not begun `{target}`");
            return Err(Blocked::new(BlockedKind::Differs, message));
        };
        match event {
            Event::Attempt { attempt, error, again_at, .. } => {
                let Some(op) = state.op(index) else { return Ok(()) };
                op.attempts = attempt;
                op.last_error = Some(error);
                op.is_over = false;
                op.due = Some(again_at);
                state.due.insert((again_at, index));
            }
            Event::Intent { .. } => {
                let number = state.numbers;
                state.numbers += 1;
                let Some(op) = state.op(index) else { return Ok(()) };
                op.intent = Some(if is_replay { Life::Earlier } else { Life::This });
                op.is_over = false;
                if !is_replay {
                    // It starts when that is durable.
                    op.opens_at = number;
                }
            }
            event => {
                if let Some(op) = state.op(index) {
                    op.is_over = true;
                    // In a replay nobody has fired it.
                    if let Some(due) = op.due.take() {
                        state.due.remove((due, index));
                    }
                }
                #[cfg(test)]
                if self.sabotage == Some(Sabotage::ConsumesAtDelivery)
                    && let Some(op) = state.op(index)
                    && let Some(waker) = op.waker.clone()
                    && op.given.is_none()
                {
                    op.given = Some(Item { seq, at, event });
                    drop(state);
                    let _entered = Entered::into(self.shared.address());
                    waker.wake();
                    return Ok(());
                }
                state.push(index, Item { seq, at, event });
            }
        }
        Ok(())
    }

    fn start(&mut self, input: Bytes) {
        let flow = Flow::new(self.shared.clone());
        self.run(Box::pin(Run { flow, stage: Stage::First(self.code.clone(), input) }));
    }

    fn cancel(&mut self) {
        if self.is_cancelled {
            return;
        }
        self.is_cancelled = true;
        let mut state = self.shared.state.lock();
        if state.rare.is_undoing {
            // It has failed, and undoes what it did: dropped, the undo step that is under way would be lost.
            return state.rare.made().children.cancel();
        }
        state.mode = Mode::Settling;
        drop(state);
        let entered = Entered::into(self.shared.address());
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(self.running.take())));
        drop(entered);
        let mut state = self.shared.state.lock();
        state.mode = Mode::Idle;
        state.rare.made().children.cancel();
        drop(state);
        if let Err(panic) = dropped {
            self.shared.fail(panicked(&*panic));
        }
        let flow = Flow::new(self.shared.clone());
        self.run(Box::pin(after(flow, End::Over(Ended::Cancelled))));
    }

    fn run(&mut self, code: BoxFuture<End>) {
        self.shared.self_woken.store(true, Ordering::Relaxed);
        #[cfg(test)]
        if self.sabotage == Some(Sabotage::NotUnconstrained) {
            self.running = Some(Running::Budgeted(code));
            return;
        }
        self.running = Some(Running::Unconstrained(unconstrained(code)));
    }

    /// Polls the code for as long as it has something to do.
    fn release_all(&mut self, left: &mut usize) -> Result<Poll<End>, Blocked> {
        // A start, a cancellation, and a sabotaged delivery: nothing is released for those.
        if self.shared.self_woken.load(Ordering::Relaxed)
            && let Poll::Ready(ended) = self.poll(Mode::Settling)?
        {
            return Ok(Poll::Ready(ended));
        }
        while *left > 0 {
            let released = self.release();
            #[cfg(test)]
            let second = if self.sabotage == Some(Sabotage::TwoReleasesPerPoll) { self.release() } else { None };
            let Some(released) = released else { break };
            *left -= 1;
            if let Poll::Ready(ended) = self.poll(Mode::Settling)? {
                return Ok(Poll::Ready(ended));
            }
            self.take_back(released);
            #[cfg(test)]
            if let Some(second) = second {
                self.take_back(second);
            }
        }
        Ok(Poll::Pending)
    }

    /// Releases the oldest thing that somebody waits for.
    fn release(&mut self) -> Option<(usize, u64)> {
        let mut state = self.shared.state.lock();
        let (_, index) = state.ready.pop_first()?;
        let waker = state.unregister(index);
        let op = state.op(index)?;
        op.is_released = true;
        let number = op.number;
        drop(state);
        if let Some(waker) = waker {
            let _entered = Entered::into(self.shared.address());
            waker.wake();
        }
        Some((index, number))
    }

    /// Takes a release back that nobody took: the operation waits again when it is polled again.
    fn take_back(&mut self, (index, number): (usize, u64)) {
        let mut state = self.shared.state.lock();
        if let Some(op) = state.op(index).filter(|op| op.number == number) {
            op.is_released = false;
        }
    }

    /// Polls the code, and again for as long as it wakes itself.
    fn poll(&mut self, mode: Mode) -> Result<Poll<End>, Blocked> {
        let shared = self.shared.clone();
        for _ in 0..MAX_SELF_WAKES {
            shared.self_woken.store(false, Ordering::Relaxed);
            shared.state.lock().mode = mode;
            let Some(running) = &mut self.running else { return Ok(Poll::Pending) };
            let polled = {
                let _entered = Entered::into(shared.address());
                let _in_span = self.span.as_ref().map(|span| span.enter());
                let mut task = Context::from_waker(&self.waker);
                catch_unwind(AssertUnwindSafe(|| quietly(shared.is_replaying(), || running.poll(&mut task))))
            };
            let mut state = shared.state.lock();
            state.mode = Mode::Idle;
            let fault = state.take_fault();
            if polled.is_ok() {
                state.let_go_of_unwound();
            }
            drop(state);
            let polled = polled.map_err(|panic| panicked(&*panic))?;
            if let Some(fault) = fault {
                return Err(fault);
            }
            if shared.foreign_woken.load(Ordering::Acquire) {
                return Err(foreign_wake());
            }
            if polled.is_ready() || !shared.self_woken.load(Ordering::Relaxed) {
                return Ok(polled);
            }
            #[cfg(test)]
            if self.sabotage == Some(Sabotage::ForgetsWhoWaitsOnSelfWake) {
                let mut state = shared.state.lock();
                let wakers: Vec<_> = (0..state.ops.len()).filter_map(|index| state.unregister(index)).collect();
                drop(state);
                drop(wakers);
            }
        }
        let message = format!("its code woke itself {MAX_SELF_WAKES} times without waiting for anything");
        Err(Blocked::new(BlockedKind::NotDurable, message))
    }

    /// The code has taken an entry in: compares what it began with what it began the first time, or notes it.
    fn settled(&mut self, seq: u64) -> Result<(), Blocked> {
        self.current = None;
        let mut state = self.shared.state.lock();
        let begun = std::mem::take(&mut state.begun);
        let emitted = state.take_emitted();
        let is_stuck = state.waiting == 0;
        let expected = state.expected.take();
        drop(state);
        match expected {
            Some(expected) => {
                if let Err(why) = compare(seq, &expected, &begun) {
                    self.recorded.push_front(Settled { seq, begun: expected });
                    return Err(why);
                }
                #[cfg(test)]
                if self.sabotage == Some(Sabotage::EmitsInReplays) {
                    self.emit(emitted);
                }
            }
            None => {
                // A code that is not to be replayed has not begun anything.
                if !is_stuck {
                    if let Some(why) = self.too_long(self.bytes + size_of(&begun)) {
                        return Err(why);
                    }
                    self.emit(emitted);
                    self.settle_with(seq, begun);
                }
            }
        }
        if is_stuck {
            let message = "its code waits for nothing that is durable: a step, a callback, a timer. What else there is to wait \
                           for, such as a task or a socket, belongs into a step";
            return Err(Blocked::new(BlockedKind::NotDurable, message.into()));
        }
        let mut state = self.shared.state.lock();
        if let Some(rare) = state.rare.there() {
            rare.children.settle();
        }
        self.numbers_settled = state.numbers;
        Ok(())
    }

    fn end(&mut self, seq: u64, end: End) {
        let mut state = self.shared.state.lock();
        let begun = std::mem::take(&mut state.begun);
        let emitted = state.take_emitted();
        let expected = state.expected.take();
        drop(state);
        if let Some(expected) = expected {
            let differs = compare(seq, &expected, &begun);
            if let End::Over(ended) = &end
                && self.may_end
                && seq + 1 == self.recorded_to
                && differs.is_ok()
            {
                self.phase = Phase::Ended(ended.clone());
                self.leave(Mode::Leaving);
                return;
            }
            self.recorded.push_front(Settled { seq, begun: expected });
            let goes_on = format!(
                "its code has ended with entry {seq} of its journal, and went on waiting when it was written ({} entries are left)",
                self.pending.len()
            );
            self.block(differs.err().unwrap_or(Blocked::new(BlockedKind::Differs, goes_on)));
            return;
        }
        self.emit(emitted);
        self.settle_with(seq, begun);
        self.current = None;
        self.phase = match end {
            End::Over(ended) => {
                self.fresh.ended = Some(ended.clone());
                Phase::Ended(ended)
            }
            End::Continue(input) => {
                // Before the code drops what it still holds.
                let open = self.shared.state.lock().take_open();
                self.rare.made().left = Some((input, open));
                Phase::Continued
            }
        };
        self.leave(Mode::Leaving);
    }

    /// Blocks the flow: its code is dropped, and its journal stays.
    pub(crate) fn block(&mut self, why: Blocked) {
        if !matches!(self.phase, Phase::Going) {
            return;
        }
        self.rare.made().waited = self.waits();
        self.leave(Mode::Blocking);
        self.phase = Phase::Blocked(why);
        self.take_stock();
    }

    /// Drops the code. That closes nothing, and in [`Mode::Blocking`] it disarms nothing either.
    fn leave(&mut self, mode: Mode) {
        self.shared.state.lock().mode = mode;
        let _entered = Entered::into(self.shared.address());
        // What panics while it is dropped has nothing to say any more.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self.running.take())));
        let mut state = self.shared.state.lock();
        let undo = state.rare.there().map_or_else(Vec::new, |rare| std::mem::take(&mut rare.undo));
        drop(state);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(undo)));
    }

    /// Lets steps start that began before a mark was taken. All that was written by then is durable.
    pub(crate) fn open(&mut self, mark: u64) {
        let mut state = self.shared.state.lock();
        let from = state.open_to;
        state.open_to = mark.max(from);
        let opened = from..mark;
        let steps = state.ops.iter().enumerate();
        let steps: Vec<_> = steps
            .filter_map(|(index, op)| op.as_ref().map(|op| (index, op)))
            .filter(|(_, op)| op.kind == Kind::Step && opened.contains(&op.opens_at))
            .map(|(index, op)| (index, op.number))
            .collect();
        drop(state);
        for step in steps {
            self.shared.wants_polled(step);
        }
    }

    /// Polls the steps that asked for it. What they hand in becomes entries; say [`settle`](Self::settle) then.
    pub(crate) fn poll_steps(&mut self, now: Timestamp) {
        if !matches!(self.phase, Phase::Going) {
            return;
        }
        if let Some(why) = self.outside_fault() {
            return self.block(why);
        }
        // An entry that is half taken in comes first, and so does what is to be durable before any step goes on.
        if self.current.is_some() || !self.pending.is_empty() || self.has_rest() {
            return;
        }
        if !self.shared.state.lock().handed_in.is_empty() {
            return self.take_handed_in(now);
        }
        let woken = std::mem::take(&mut *self.shared.woken.lock());
        let mut wakers = Vec::new();
        let mut state = self.shared.state.lock();
        for (index, number) in woken {
            let open_to = state.open_to;
            let may_start = |op: &&mut Op| op.number == number && !op.is_over && op.opens_at < open_to;
            if let Some(op) = state.op(index).filter(may_start) {
                op.must_poll = true;
                wakers.extend(op.waker.clone());
            }
        }
        drop(state);
        if wakers.is_empty() {
            return;
        }
        {
            let _entered = Entered::into(self.shared.address());
            wakers.into_iter().for_each(Waker::wake);
        }
        match self.poll(Mode::Steps) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(_)) => return self.block(beside_the_journal("ended")),
            Err(why) => return self.block(why),
        }
        self.take_handed_in(now);
    }

    /// Adds what steps have handed in to the journal, as much as fits into one commit. The rest follows.
    fn take_handed_in(&mut self, now: Timestamp) {
        let mut bytes = 0;
        loop {
            let mut state = self.shared.state.lock();
            let fits = |event: &mut Event| bytes == 0 || bytes + event.size() <= MAX_HANDED_IN;
            let Some(event) = state.handed_in.pop_front_if(fits) else { return };
            drop(state);
            bytes += event.size();
            self.append(now, event);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.leave(Mode::Leaving);
    }
}

/// Tells whether an operation is a step that somebody waits for and that has not ended.
fn is_running(op: &Op) -> bool {
    op.kind == Kind::Step && op.waker.is_some() && !op.is_over && op.due.is_none()
}

/// A run of a flow, from the first line of its code to all that is to be done after the last. It keeps room for one of both at a time.
struct Run {
    flow: Flow,
    stage: Stage,
}

enum Stage {
    First(Code, Bytes),
    Code(BoxFuture<Result<Bytes, Stop>>),
    After(BoxFuture<End>),
    Over,
}

impl Future for Run {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<End> {
        let Run { flow, stage } = &mut *self;
        loop {
            match stage {
                Stage::First(code, input) => {
                    let code = code(flow.clone(), std::mem::take(input));
                    *stage = Stage::Code(code);
                }
                Stage::Code(code) => {
                    let end = match ready!(code.as_mut().poll(task)) {
                        Ok(value) => End::Over(Ended::Done(value)),
                        Err(Stop::Continue(input)) => End::Continue(input),
                        Err(Stop::Failed(error)) => {
                            flow.shared().state.lock().rare.made().is_undoing = true;
                            End::Over(Ended::Failed(cut(error.to_string()).into()))
                        }
                    };
                    // Whatever the code still holds goes before anything is undone.
                    *stage = Stage::Over;
                    if !matches!(end, End::Over(Ended::Failed(_))) && !flow.shared().has_unposted() {
                        return Poll::Ready(end);
                    }
                    *stage = Stage::After(Box::pin(after(flow.clone(), end)));
                }
                Stage::After(after) => return after.as_mut().poll(task),
                Stage::Over => return Poll::Pending,
            }
        }
    }
}

/// Undoes what is to be undone after such an end, and waits for posts that are to go out.
async fn after(flow: Flow, end: End) -> End {
    if matches!(end, End::Over(Ended::Failed(_) | Ended::Cancelled)) {
        while let Some(undo) = flow.shared().pop_undo() {
            undo(flow.clone()).await;
        }
    }
    flow.shared().all_posted().await;
    end
}

/// Runs what has been run before without its log lines.
fn quietly<T>(is_replay: bool, run: impl FnOnce() -> T) -> T {
    if is_replay { tracing::dispatcher::with_default(&tracing::Dispatch::none(), run) } else { run() }
}
