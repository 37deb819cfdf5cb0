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
mod deliver;
mod due;
mod emitted;
mod faults;
mod halted;
mod names;
mod release;
mod run;
mod shared;
mod state;
mod steps;
#[cfg(test)]
mod tests;
mod ticket;
mod waits;
mod wakers;
mod written;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use bytes::Bytes;
use stable_interfaces::Timestamp;

use self::faults::{compare, foreign_wake};
use self::names::is_patch;
use self::run::{End, Running};
use self::state::Mode;
use self::wakers::FlowWaker;
use self::written::{Unwritten, size_of};
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::{Ended, Entry, Event, Key, Page, Settled, begun_of};
use crate::seldom::{Seldom, Unchanged};

pub(crate) use self::children::{Post, What};
pub(crate) use self::continued::is_signal;
pub(crate) use self::emitted::{Emitted, MAX_EVENT_BYTES};
#[cfg(feature = "testing")]
pub(crate) use self::names::name_of;
pub(crate) use self::names::{Kind, is_callback_named, scope_within, signal_key, timer_name};
#[cfg(any(feature = "rhai", test))]
pub(crate) use self::run::BoxFuture;
pub(crate) use self::run::{Code, Stop};
pub(crate) use self::shared::{Limits, Shared};
pub(crate) use self::state::{Item, Life};
pub(crate) use self::ticket::Ticket;
pub(crate) use self::waits::Wait;
pub(crate) use self::wakers::Nudge;

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
    /// The journal of this run has a request to cancel, which its code may not have been told.
    is_to_be_cancelled: bool,
    /// The journal has ended: the code may end with the last entry that it took in.
    may_end: bool,
    /// The span that the code runs in, if anybody sees it.
    span: Option<Box<tracing::Span>>,
    cold: Seldom<Cold>,
    #[cfg(test)]
    sabotage: Option<Sabotage>,
}

/// The part of an engine that few flows have.
#[derive(Default)]
struct Cold {
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

impl Unchanged for Cold {
    const UNCHANGED: &'static Cold = &Cold {
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
            is_to_be_cancelled: false,
            may_end: false,
            span: None,
            cold: Seldom::default(),
            #[cfg(test)]
            sabotage: None,
        };
        (engine.recorded, engine.recorded_to, engine.unwritten.stale_to) = begun_of(&mut pages);
        for page in pages {
            for entry in page.entries {
                if matches!(entry.event, Event::Continued { .. }) {
                    engine.begin_run(entry.seq);
                }
                engine.is_to_be_cancelled |= matches!(entry.event, Event::Cancel);
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
            engine.shared.state.lock().cold.made().patched = patched;
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

    /// Adds to the journal. The code sees it in [`settle`](Self::settle).
    pub(crate) fn append(&mut self, at: Timestamp, event: Event) {
        if !matches!(event, Event::Posted { .. }) {
            self.record_posted(at);
        }
        if matches!(event, Event::Continued { .. }) {
            self.begin_run(self.next_seq);
        }
        self.is_to_be_cancelled |= matches!(event, Event::Cancel);
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
            self.cold.made().unseen += 1;
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
        if let Some(cold) = state.cold.there() {
            cold.children.settle();
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
                self.cold.made().left = Some((input, open));
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
        self.cold.made().waited = self.waits();
        self.leave(Mode::Blocking);
        self.phase = Phase::Blocked(why);
        self.take_stock();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.leave(Mode::Leaving);
    }
}
