//! Polls of the code: for each, the oldest thing that the code waits for is released, and the code is polled until it waits again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::task::coop::unconstrained;

use super::Engine;
#[cfg(test)]
use super::Sabotage;
use super::faults::{drop_payload, foreign_wake, panicked};
use super::run::{BoxFuture, End, Run, Running, after};
use super::state::Mode;
use super::wakers::Entered;
use crate::blocked::{Blocked, BlockedKind};
use crate::flow::Flow;
use crate::journal::Ended;

/// The number of times that the code may wake itself before it has to wait for something.
const MAX_SELF_WAKES: usize = 10_000;

impl Engine {
    pub(super) fn start(&mut self, input: Bytes) {
        let flow = Flow::new(self.shared.clone());
        self.run(Box::pin(Run::of(flow, self.code.clone(), input)));
    }

    pub(super) fn cancel(&mut self) {
        if self.is_cancelled {
            return;
        }
        self.is_cancelled = true;
        let mut state = self.shared.state.lock();
        if state.cold.is_undoing {
            // It has failed, and undoes what it did: dropped, the undo step that is under way would be lost.
            return state.cold.made().children.cancel();
        }
        state.mode = Mode::Settling;
        drop(state);
        let entered = Entered::into(self.shared.address());
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(self.running.take())));
        drop(entered);
        let mut state = self.shared.state.lock();
        state.mode = Mode::Idle;
        state.cold.made().children.cancel();
        drop(state);
        if let Err(panic) = dropped {
            self.shared.fail(panicked(panic));
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
    pub(super) fn release_all(&mut self, left: &mut usize) -> Result<Poll<End>, Blocked> {
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
    pub(super) fn poll(&mut self, mode: Mode) -> Result<Poll<End>, Blocked> {
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
            let polled = polled.map_err(panicked)?;
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

    pub(super) fn has_ready(&self) -> bool {
        !self.shared.state.lock().ready.is_empty()
    }

    /// Drops the code. That closes nothing, and in [`Mode::Blocking`] it disarms nothing either.
    pub(super) fn leave(&mut self, mode: Mode) {
        self.shared.state.lock().mode = mode;
        let _entered = Entered::into(self.shared.address());
        // What panics while it is dropped has nothing to say any more.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self.running.take()))).map_err(drop_payload);
        let mut state = self.shared.state.lock();
        let undo = state.cold.there().map_or_else(Vec::new, |cold| std::mem::take(&mut cold.undo));
        drop(state);
        let _ = catch_unwind(AssertUnwindSafe(|| drop(undo))).map_err(drop_payload);
    }
}

/// Runs what has been run before without its log lines.
fn quietly<T>(is_replay: bool, run: impl FnOnce() -> T) -> T {
    if is_replay { tracing::dispatcher::with_default(&tracing::Dispatch::none(), run) } else { run() }
}
