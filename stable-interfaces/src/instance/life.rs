//! One incarnation of an instance, as what belongs to it sees it: whether it has ended, and who keeps it busy.

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};

/// One incarnation, as what belongs to it sees it.
#[derive(Debug, Default)]
pub(crate) struct Life {
    has_ended: AtomicBool,
    /// Tasks that are not parked: while there are any, the instance is not idle.
    busy: AtomicUsize,
}

impl Life {
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Acquire) > 0
    }
}

/// One task of an incarnation: busy while it exists and is not parked.
#[derive(Debug)]
pub(crate) struct Member {
    life: Arc<Life>,
    state: Mutex<MemberState>,
}

#[derive(Debug, Default)]
pub(crate) struct MemberState {
    /// The number of guards that keep it parked.
    pub(crate) parks: usize,
    has_ended: bool,
}

impl MemberState {
    fn is_busy(&self) -> bool {
        self.parks == 0 && !self.has_ended
    }
}

impl Member {
    pub(crate) fn new(life: Arc<Life>) -> Member {
        life.busy.fetch_add(1, Ordering::AcqRel);
        Member { life, state: Mutex::default() }
    }

    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut MemberState)) {
        let mut state = self.state.lock();
        let was_busy = state.is_busy();
        change(&mut state);
        match (was_busy, state.is_busy()) {
            (true, false) => drop(self.life.busy.fetch_sub(1, Ordering::AcqRel)),
            (false, true) => drop(self.life.busy.fetch_add(1, Ordering::AcqRel)),
            _ => {}
        }
    }
}

/// Ends a task's part in its incarnation when the task is dropped, whoever may still hold its [`InstanceRef`].
pub(crate) struct Membership(pub(crate) Arc<Member>);

impl Drop for Membership {
    fn drop(&mut self) {
        self.0.change(|state| state.has_ended = true);
    }
}
