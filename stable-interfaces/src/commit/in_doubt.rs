//! The outcome of a commit that somebody else's transaction takes along, while it is in doubt.
//!
//! Three ask for it: the handler, which waits; its turn, which may end before the outcome is known; and the host's task, which finds
//! out. What woke the handler is acknowledged by whichever of the last two comes last, and only if the commit happened.

use crate::commit::gate::Failure;
use crate::shards::delivery::Delivery;
use crate::store::StoreError;
use crate::sync::{Arc, Mutex};

/// The outcome of an enlistment's commit.
#[derive(Debug, Clone)]
pub(crate) enum CommitOutcome {
    Open,
    Committed,
    /// The commit surely did not happen.
    Refused(Arc<StoreError>),
    /// The commit did not happen, or nobody knows, and nothing of this incarnation will.
    Lost(Failure),
}

/// The outcome of one enlistment, as its handler, the turn around that and the host's task share it.
#[derive(Debug)]
pub(crate) struct InDoubt {
    state: Mutex<InDoubtState>,
    /// True if it completes what woke the handler.
    completes: bool,
}

#[derive(Debug)]
struct InDoubtState {
    outcome: CommitOutcome,
    /// True while the handler waits, which will put right what a refusal means.
    is_awaited: bool,
    /// The delivery that woke the handler, once its turn has ended before the transaction did.
    woken_by: Option<Delivery>,
}

impl InDoubt {
    pub(crate) fn new(completes: bool) -> InDoubt {
        let state = InDoubtState { outcome: CommitOutcome::Open, is_awaited: true, woken_by: None };
        InDoubt { state: Mutex::new(state), completes }
    }

    /// The handler asks, and after that waits no longer.
    pub(crate) fn ask(&self) -> CommitOutcome {
        let mut state = self.state.lock();
        state.is_awaited = false;
        state.outcome.clone()
    }

    /// Tells whether it surely happened.
    pub(crate) fn has_committed(&self) -> bool {
        matches!(self.state.lock().outcome, CommitOutcome::Committed)
    }

    /// The host's task has found out. Returns what the gate is to be told.
    pub(crate) fn decide(&self, outcome: CommitOutcome) -> Result<(), Failure> {
        let mut state = self.state.lock();
        let told = match &outcome {
            CommitOutcome::Refused(error) if !state.is_awaited => Err(Failure::Store(error.clone())),
            CommitOutcome::Lost(failure) => Err(failure.clone()),
            CommitOutcome::Open => Err(Failure::Unknown),
            CommitOutcome::Committed | CommitOutcome::Refused(_) => Ok(()),
        };
        let delivery = state.woken_by.take();
        let has_committed = matches!(outcome, CommitOutcome::Committed);
        state.outcome = outcome;
        drop(state);
        if let Some(delivery) = delivery.filter(|_| has_committed) {
            delivery.ack();
        }
        told
    }

    /// The turn has ended. Gives back what woke it if the enlistment does not answer for that; and says whether it may have happened.
    pub(crate) fn end_turn(&self, woken_by: Option<Delivery>) -> (Option<Delivery>, bool) {
        let mut state = self.state.lock();
        state.is_awaited = false;
        let (is_open, is_refused) =
            (matches!(state.outcome, CommitOutcome::Open), matches!(state.outcome, CommitOutcome::Refused(_)));
        if is_refused || !self.completes {
            return (woken_by, !is_refused);
        }
        let Some(delivery) = woken_by else { return (None, true) };
        let has_committed = matches!(state.outcome, CommitOutcome::Committed);
        if is_open {
            state.woken_by = Some(delivery);
            return (None, true);
        }
        drop(state);
        if has_committed {
            delivery.ack();
        }
        (None, true)
    }
}
