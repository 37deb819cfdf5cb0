//! The wakers of a flow's code and of its steps, which tell who wakes: the code itself, a step, or something that is not in the journal.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Wake;

use super::Shared;

/// Asks for turns of a flow, from any thread.
pub(crate) trait Nudge: Send + Sync {
    /// A step wants to be polled.
    fn step(&self);

    /// The code was woken by something that is not in its journal. Told once.
    fn stray(&self);
}

/// Nobody is asked: somebody else takes care that there are turns.
impl Nudge for () {
    fn step(&self) {}

    fn stray(&self) {}
}

thread_local! {
    /// The flow whose code, or whose operation's waker, runs on this thread; 0 for none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

/// Marks this thread as running a flow's code, until it is dropped.
pub(super) struct Entered(usize);

impl Entered {
    pub(super) fn into(flow: usize) -> Entered {
        Entered(CURRENT.replace(flow))
    }

    /// Tells whether this thread runs the code of this flow.
    pub(super) fn is_in(flow: usize) -> bool {
        CURRENT.get() == flow
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// The waker that the code is polled with.
pub(super) struct FlowWaker(pub(super) Arc<Shared>);

impl Wake for FlowWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if Entered::is_in(self.0.address()) {
            self.0.self_woken.store(true, Ordering::Relaxed);
        } else {
            self.0.wake_from_outside();
        }
    }
}

impl Shared {
    /// Something has happened to the code that is not in its journal.
    pub(super) fn wake_from_outside(&self) {
        if !self.foreign_woken.swap(true, Ordering::AcqRel) {
            self.nudge.stray();
        }
    }
}

/// The waker that a step is polled with.
pub(super) struct StepWaker {
    pub(super) shared: Arc<Shared>,
    pub(super) step: (usize, u64),
}

impl Wake for StepWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.shared.wants_polled(self.step) {
            self.shared.nudge.step();
        }
    }
}
