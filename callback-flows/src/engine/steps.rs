//! The steps of a flow: polled inside the code's own future, but only between entries, and none before what it began in is durable.
//!
//! All that steps come to becomes entries, which the code is given like any other.

use std::sync::atomic::Ordering;
use std::task::{Poll, Waker};

use stable_interfaces::Timestamp;

use super::faults::beside_the_journal;
use super::names::Kind;
use super::state::{Mode, Op};
use super::wakers::Entered;
use super::{Engine, Phase};
use crate::journal::{Event, Key};

/// About how many bytes of steps' results go into one commit, beside a message and a result of the flow: one of the largest.
const MAX_HANDED_IN: usize = 1024 * 1024;

impl Engine {
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

/// Tells whether an operation is a step that somebody waits for and that has not ended.
fn is_running(op: &Op) -> bool {
    op.kind == Kind::Step && op.waker.is_some() && !op.is_over && op.due.is_none()
}
