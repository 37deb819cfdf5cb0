//! A flow that waits, as others see it: what its code waits for, until when, and which messages it would take.

use std::collections::VecDeque;
use std::sync::Arc;

use stable_interfaces::Timestamp;

use super::names::{Kind, has_begun};
use super::{Engine, Phase};
use crate::journal::Key;

/// The most callbacks and signals that the code has not begun and that messages are there for.
const MAX_EARLY: usize = 500;

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

impl Engine {
    /// Everything that the code waits for, oldest first.
    pub(crate) fn waits(&self) -> Vec<Wait> {
        if matches!(self.phase, Phase::Blocked(_)) {
            return self.cold.waited.clone();
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

    /// The earliest deadline of a timer, or of a step's next attempt.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        let held = self.shared.state.lock().due.first().map(|(due, _)| due);
        held.into_iter().chain(self.cold.unheld.first().map(|(due, _)| *due)).min()
    }

    /// The number of messages that the code has not taken.
    pub(crate) fn unread(&self) -> usize {
        let state = self.shared.state.lock();
        let in_callbacks = state.ops.iter().flatten().filter(|op| op.kind.takes_messages());
        let in_callbacks = in_callbacks.map(|op| op.queue.len()).sum::<usize>();
        let in_callbacks = in_callbacks + state.cold.kept.values().map(VecDeque::len).sum::<usize>();
        in_callbacks + state.cold.early.values().map(VecDeque::len).sum::<usize>() + self.cold.unseen
    }

    /// Tells whether a message for this callback or signal, which the code has not begun, would be one of too many such: all of their names have to go along
    /// when the flow goes on as another run.
    pub(crate) fn has_too_many_early(&self, callback: &str) -> bool {
        let state = self.shared.state.lock();
        let is_early = state.by_key.get(callback).is_none() && !state.cold.early.contains_key(callback);
        is_early && state.cold.early.len() >= MAX_EARLY
    }

    /// Tells whether the journal has a request to cancel: a second one says nothing more.
    pub(crate) fn is_to_be_cancelled(&self) -> bool {
        self.is_to_be_cancelled
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
        let is_held = state.by_key.get(callback).is_some() || state.cold.kept.contains_key(callback);
        is_held || !has_begun(&state.named, callback)
    }

    /// Tells whether the code holds anything that messages come for: a callback, a signal, a child.
    pub(crate) fn awaits_messages(&self) -> bool {
        if matches!(self.phase, Phase::Blocked(_)) {
            // Nobody can tell what its code holds.
            return true;
        }
        let state = self.shared.state.lock();
        state.open > 0 || !state.cold.kept.is_empty() || state.cold.children.are_known()
    }
}
