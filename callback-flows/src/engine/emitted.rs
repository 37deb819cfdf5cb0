//! Events that a flow's code emits.
//!
//! The journal notes that an event was emitted, so that a replay has to do the same, and the event itself is stored beside it. The
//! events of an entry are handed out when the code has taken that entry in, and in a replay never again: the note and the event are in
//! one commit.

use std::sync::Arc;

use bytes::Bytes;
use stable_interfaces::Timestamp;

use super::names::Kind;
use super::{Engine, Shared};
use crate::journal::Detail;

/// The most bytes of one event, as JSON.
pub(crate) const MAX_EVENT_BYTES: usize = 32 * 1_024;
/// The most events that the code may emit without waiting for anything in between, and the most bytes of them: about as much again
/// has room in a commit.
const MOST: usize = 100;
const MOST_BYTES: usize = 256 * 1_024;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Emitted {
    /// The time of the entry because of which it was emitted.
    pub(crate) at: Timestamp,
    pub(crate) name: Arc<str>,
    /// The value, as JSON.
    pub(crate) value: Bytes,
}

impl Shared {
    /// Emits an event of at most [`MAX_EVENT_BYTES`]. The error is the same in every replay.
    pub(crate) fn emit(self: &Arc<Self>, scope: &str, name: &str, value: Bytes) -> Result<(), String> {
        let state = self.state.lock();
        let (events, bytes) = sizes(&state.cold.emitted);
        drop(state);
        if events >= MOST || bytes + value.len() > MOST_BYTES {
            return Err(format!(
                "the flow has emitted {events} events of {bytes} bytes without waiting for anything, and may emit {MOST} of \
                 {MOST_BYTES} bytes"
            ));
        }
        let ticket = self.claim(scope, Kind::Emit, name, None, Detail::None);
        if ticket.is_in_place() {
            let mut state = self.state.lock();
            let at = state.now;
            state.cold.made().emitted.push(Emitted { at, name: name.into(), value });
        }
        Ok(())
    }
}

impl Engine {
    /// Adds to the events that are to be stored.
    pub(super) fn emit(&mut self, emitted: Vec<Emitted>) {
        if !emitted.is_empty() {
            self.cold.made().emitted.extend(emitted);
        }
    }

    /// Takes the events that are to be stored.
    pub(crate) fn take_emitted(&mut self) -> Vec<Emitted> {
        #[cfg(test)]
        if self.sabotage == Some(super::Sabotage::EmitsBeforeAllIsTakenIn) {
            let emitted = self.shared.state.lock().take_emitted();
            self.emit(emitted);
        }
        self.cold.there().map_or_else(Vec::new, |cold| std::mem::take(&mut cold.emitted))
    }

    /// Tells whether what is to be stored is to be stored before there is more.
    pub(super) fn has_emitted_enough(&self) -> bool {
        let (events, bytes) = sizes(&self.cold.emitted);
        events >= MOST || bytes >= MOST_BYTES
    }
}

fn sizes(emitted: &[Emitted]) -> (usize, usize) {
    (emitted.len(), emitted.iter().map(|event| event.value.len()).sum())
}
