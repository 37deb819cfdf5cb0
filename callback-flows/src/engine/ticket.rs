//! An operation from its beginning to its end, as the code holds it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use stable_interfaces::Timestamp;

use super::Shared;
use super::faults::{beside_the_journal, out_of_place, too_many_open, two_at_once, waited_for_elsewhere};
use super::names::{Kind, base_of};
use super::state::{Item, Life, Mode, Op};
use super::wakers::{Entered, StepWaker};
use crate::journal::{Begun, Detail, Event, Key};

/// The most callbacks and signals that a flow's code may hold at once.
pub(super) const MAX_OPEN: usize = 2_000;

/// The code's hold on an operation that it has begun.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    index: usize,
    key: Key,
    /// The number of the operation, and the deadline of a timer.
    at: (u64, Option<Timestamp>),
}

impl Shared {
    /// Begins an operation.
    pub(crate) fn claim(
        self: &Arc<Self>,
        scope: &str,
        kind: Kind,
        name: &str,
        key: Option<&str>,
        detail: Detail,
    ) -> Ticket {
        let mut base = base_of(scope, kind, name, key);
        let mut state = self.state.lock();
        if state.mode != Mode::Settling || !Entered::is_in(self.address()) {
            if !matches!(state.mode, Mode::Leaving | Mode::Blocking) {
                state.blame(|| out_of_place(&base));
            }
            return Ticket { shared: self.clone(), index: usize::MAX, key: base.into(), at: (0, None) };
        }
        state.let_go_of_unwound();
        let named = state.named(&base);
        if kind.is_exclusive() && named.alive > 0 {
            state.blame(|| two_at_once(kind, name));
            return Ticket { shared: self.clone(), index: usize::MAX, key: base.into(), at: (0, None) };
        }
        let ordinal = named.next;
        // A signal is found by its name alone, whoever waits for it.
        named.next += u32::from(kind != Kind::Signal);
        named.alive += 1;
        let _ = write!(base, "#{ordinal}");
        let (key, detail) = match state.known(&base) {
            // The deadline of a timer is the one that it was given first.
            Some(known) if matches!(detail, Detail::Due(_)) => (known.key.clone(), known.detail),
            Some(known) => (known.key.clone(), detail),
            None => (base.into(), detail),
        };
        if state.begun.capacity() == 0 {
            state.begun.reserve_exact(1);
        }
        state.begun.push(Begun { key: key.clone(), detail });
        let due = if let Detail::Due(due) = detail { Some(due) } else { None };
        let (number, now) = (state.numbers, state.now);
        state.numbers += 1;
        let mut op = Box::new(Op::new(key.clone(), kind, number, now));
        op.due = due;
        if let Some(early) = state.cold.there().and_then(|cold| cold.early.remove(&key)) {
            op.queue = early;
        }
        let index = state.hold(op);
        if state.open > MAX_OPEN {
            state.blame(too_many_open);
        }
        Ticket { shared: self.clone(), index, key, at: (number, due) }
    }

    /// Notes something that the code has done, which a replay has to do too.
    pub(crate) fn note(self: &Arc<Self>, scope: &str, kind: Kind, name: &str) {
        drop(self.claim(scope, kind, name, None, Detail::None));
    }
}

impl Ticket {
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Tells whether the operation was begun where it may be; the flow is blocked else.
    pub(super) fn is_in_place(&self) -> bool {
        self.index != usize::MAX
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The deadline of a timer.
    pub(crate) fn due(&self) -> Option<Timestamp> {
        self.at.1
    }

    /// Takes what has been released to this operation, or waits for that.
    pub(crate) fn poll(&self, task: &Context<'_>) -> Poll<Item> {
        if !Entered::is_in(self.shared.address()) {
            self.shared.fail(waited_for_elsewhere(&self.key));
            self.shared.wake_from_outside();
            return Poll::Pending;
        }
        let mut state = self.shared.state.lock();
        let mode = state.mode;
        let Some(op) = state.op(self.index) else { return Poll::Pending };
        #[cfg(test)]
        if let Some(item) = op.given.take() {
            return Poll::Ready(item);
        }
        if op.is_released {
            op.is_released = false;
            if let Some(item) = op.queue.pop_front() {
                return Poll::Ready(item);
            }
        }
        let Some(op) = state.op(self.index) else { return Poll::Pending };
        if mode == Mode::Settling && op.must_poll {
            // It was to be polled when nobody looked at it.
            self.shared.woken.lock().push((self.index, op.number));
        }
        let mut old = None;
        match &mut op.waker {
            Some(waker) if waker.will_wake(task.waker()) => {}
            Some(waker) => old = Some(std::mem::replace(waker, task.waker().clone())),
            None => {
                let front = op.queue.front().map(|item| item.seq);
                op.waker = Some(task.waker().clone());
                // It may have been let start before it was polled.
                let step =
                    (op.kind == Kind::Step && !op.is_over && op.due.is_none()).then_some((self.index, op.number));
                if mode == Mode::Settling
                    && let Some(step) = step
                {
                    self.shared.woken.lock().push(step);
                }
                state.waiting += 1;
                if let Some(seq) = front {
                    state.ready.insert((seq, self.index));
                    if mode == Mode::Steps {
                        let what = format!("begun to wait for `{}`", self.key);
                        state.blame(|| beside_the_journal(&what));
                    }
                }
            }
        }
        // Dropping a waker may run anything, and so it may want the lock.
        drop(state);
        drop(old);
        Poll::Pending
    }

    /// Nobody waits for it any more. What was released goes back.
    pub(crate) fn unregister(&self) {
        let mut state = self.shared.state.lock();
        if let Some(op) = state.op(self.index) {
            op.is_released = false;
            #[cfg(test)]
            drop(op.given.take());
        }
        let waker = state.unregister(self.index);
        drop(state);
        drop(waker);
    }

    /// Tells whether the step is to be polled now. If so, says how many of its attempts have failed in the journal, and whether its
    /// intent is in there.
    pub(crate) fn may_run(&self) -> Option<(u32, Option<Life>)> {
        let mut state = self.shared.state.lock();
        let (mode, open_to) = (state.mode, state.open_to);
        // A host that is about to leave lets steps end, and begins none.
        let is_draining = self.shared.is_draining.load(Ordering::Relaxed);
        let op = state.op(self.index)?;
        let may_run = mode == Mode::Steps
            && (op.has_started || !is_draining)
            && op.must_poll
            && !op.is_over
            && op.opens_at < open_to
            && op.due.is_none();
        may_run.then(|| {
            op.must_poll = false;
            op.has_started = true;
            (op.attempts, op.intent)
        })
    }

    /// The step has ended, for good or for now.
    pub(crate) fn hand_in(&self, event: Event) {
        let mut state = self.shared.state.lock();
        let Some(op) = state.op(self.index) else { return };
        op.is_over = true;
        state.handed_in.push_back(event);
    }

    /// An attempt has failed, and the next one follows in this process.
    pub(crate) fn note_failure(&self, attempt: u32, error: Arc<str>) {
        if let Some(op) = self.shared.state.lock().op(self.index) {
            op.attempts = attempt;
            op.last_error = Some(error);
        }
    }

    /// Names the place in a script that waits for it, for the flow's status.
    #[cfg(feature = "rhai")]
    pub(crate) fn show_at(&self, place: Arc<str>) {
        if let Some(op) = self.shared.state.lock().op(self.index) {
            op.at = Some(place);
        }
    }

    /// The waker to poll the step with.
    pub(crate) fn step_waker(&self) -> Waker {
        Waker::from(Arc::new(StepWaker { shared: self.shared.clone(), step: (self.index, self.at.0) }))
    }

    /// Runs a part of a step: what it does to the code's waker is not the code's doing.
    pub(crate) fn outside_of_code<T>(run: impl FnOnce() -> T) -> T {
        let _outside = Entered::into(0);
        run()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        let waker = state.unregister(self.index);
        if state.mode == Mode::Steps && self.index != usize::MAX {
            let what = format!("let go of `{}`", self.key);
            state.blame(|| beside_the_journal(&what));
        }
        let op = if state.mode == Mode::Blocking {
            None
        } else if std::thread::panicking() {
            // The flow is about to be blocked, unless its code catches that.
            state.cold.made().unwound.push(self.index);
            None
        } else {
            state.let_go(self.index)
        };
        drop(state);
        drop((waker, op));
    }
}
