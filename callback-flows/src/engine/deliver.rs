//! The delivery of an entry: to the operation that it is for, or to whoever begins that operation later.
//!
//! Nothing of the code is polled here, and only a start or a cancellation begins anything.

use std::collections::VecDeque;

use stable_interfaces::Timestamp;

use super::Engine;
use super::names::has_begun;
use super::state::{Item, Life, State};
#[cfg(test)]
use super::{Sabotage, wakers::Entered};
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::{Begun, Entry, Event, Key};

impl Engine {
    /// Gives an entry to whom it is for, without polling anything but a start or a cancellation.
    pub(super) fn deliver(&mut self, entry: Entry) -> Result<(), Blocked> {
        let Entry { seq, at, event } = entry;
        let expected = (seq < self.recorded_to).then(|| self.take_recorded(seq));
        let mut state = self.shared.state.lock();
        state.begin_entry(at, &event);
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
                    state.take_over(carried, &mut self.cold.made().taken_along)?;
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
        let item = Item { seq, at, event };
        let Some(index) = state.by_key.get(&target).copied() else { return state.keep(target, item) };
        if state.note(index, &item.event) {
            #[cfg(test)]
            if self.sabotage == Some(Sabotage::ConsumesAtDelivery)
                && let Some(op) = state.op(index)
                && let Some(waker) = op.waker.clone()
                && op.given.is_none()
            {
                op.given = Some(item);
                drop(state);
                let _entered = Entered::into(self.shared.address());
                waker.wake();
                return Ok(());
            }
            state.push(index, item);
        }
        Ok(())
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
}

impl State {
    /// Forgets what an earlier entry has led to, and counts this one among those that the code has been told.
    fn begin_entry(&mut self, at: Timestamp, event: &Event) {
        self.now = self.now.max(at);
        self.begun.clear();
        self.told_entries += 1;
        self.told_bytes += event.size();
        if let Some(cold) = self.cold.there() {
            cold.emitted.clear();
            cold.children.forget();
        }
    }

    /// Keeps an entry for an operation that the code does not hold, if anybody may still ask for it.
    fn keep(&mut self, target: Key, item: Item) -> Result<(), Blocked> {
        if let Some(kept) = self.cold.there().and_then(|cold| cold.kept.get_mut(&target)) {
            // The code has let it go for the next run to take.
            kept.push_back(item);
            return Ok(());
        }
        if has_begun(&self.named, &target) {
            // It lost a race.
            return Ok(());
        }
        if matches!(item.event, Event::Message { .. }) {
            self.cold.made().early.entry(target).or_default().push_back(item);
            return Ok(());
        }
        let Item { seq, event, .. } = item;
        let message = format!("entry {seq} of its journal is {event}, and the code has not begun `{target}`");
        Err(Blocked::new(BlockedKind::Differs, message))
    }

    /// Notes at an operation what an entry says of it. Tells whether the entry is for the code as well.
    fn note(&mut self, index: usize, event: &Event) -> bool {
        let (is_replay, number) = (self.expected.is_some(), self.numbers);
        let Some(op) = self.op(index) else { return false };
        match event {
            Event::Attempt { attempt, error, again_at, .. } => {
                op.attempts = *attempt;
                op.last_error = Some(error.clone());
                op.is_over = false;
                op.due = Some(*again_at);
                self.due.insert((*again_at, index));
                false
            }
            Event::Intent { .. } => {
                op.intent = Some(if is_replay { Life::Earlier } else { Life::This });
                op.is_over = false;
                if !is_replay {
                    // It starts when that is durable.
                    op.opens_at = number;
                }
                self.numbers += 1;
                false
            }
            _ => {
                op.is_over = true;
                // In a replay nobody has fired it.
                if let Some(due) = op.due.take() {
                    self.due.remove((due, index));
                }
                true
            }
        }
    }
}
