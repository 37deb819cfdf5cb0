//! A run that goes on as another one, with another input and a new journal.
//!
//! Callbacks that are open when the code calls `continue_with` are kept: each is the first of its name that the next run begins, under
//! the address that it has had. Their messages that nobody took go along, and so do those of signals, and those of callbacks that were not begun. The
//! numbers of entries go on, so that these are older than anything the next run is told.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

#[cfg(test)]
use super::Sabotage;
use super::names::has_begun;
use super::state::{Item, Mode, State};
use super::{Engine, Kind, Phase, Shared};
use crate::blocked::{Blocked, BlockedKind};
use crate::journal::{Carried, Entry, Event, Key};

/// The entries, and the bytes of them, after which a run is to be continued.
const MANY_ENTRIES: u64 = 2_000;
const MANY_BYTES: usize = 2 * 1024 * 1024;

/// Everything that a run leaves to the next one.
#[derive(Debug)]
pub(crate) struct Continuation {
    pub(crate) input: Bytes,
    /// Each with the operation that it was in the run before.
    pub(crate) carried: Vec<(Key, Carried)>,
    /// The entries with the messages that were not taken, in order.
    pub(crate) messages: Vec<Entry>,
    /// The request to cancel came too late for the run before.
    pub(crate) is_cancelled: bool,
    /// The number of the next entry.
    pub(crate) next_seq: u64,
}

/// The callbacks and signals that go along, with the messages that nobody took.
pub(super) type Open = BTreeMap<Key, VecDeque<Item>>;

impl Shared {
    /// Keeps the callbacks that are open now, although the code is about to drop them.
    pub(crate) fn keep_callbacks(&self) {
        let mut state = self.state.lock();
        if state.mode == Mode::Settling {
            state.cold.made().is_continuing = true;
        }
    }

    /// Tells whether the code has been told so much in this run that it should be continued: the same in every replay.
    pub(crate) fn should_continue(&self) -> bool {
        let state = self.state.lock();
        state.told_entries >= MANY_ENTRIES || state.told_bytes >= MANY_BYTES
    }
}

impl State {
    /// Takes over what the run before has left. `messages` are those that it did not take.
    pub(super) fn take_over(
        &mut self,
        carried: &[Carried],
        messages: &mut BTreeMap<u64, Entry>,
    ) -> Result<(), Blocked> {
        for one in carried {
            let mut queue = VecDeque::new();
            for seq in &one.unread {
                let Some(Entry { seq, at, event }) = messages.remove(seq) else {
                    let message = format!("entry {seq} of an earlier run, a message for `{}`, is not there", one.key);
                    return Err(Blocked::new(BlockedKind::Differs, message));
                };
                queue.push_back(Item { seq, at, event });
            }
            if !queue.is_empty() {
                self.cold.made().early.insert(one.key.clone(), queue);
            }
            self.cold.made().carried.insert(one.key.clone(), (one.run, one.callback.clone()));
        }
        Ok(())
    }

    /// Takes out all that is open.
    pub(super) fn take_open(&mut self) -> Open {
        let (mut open, early) = match self.cold.there() {
            Some(cold) => (std::mem::take(&mut cold.kept), std::mem::take(&mut cold.early)),
            None => Default::default(),
        };
        for op in self.ops.iter_mut().flatten() {
            if op.kind == Kind::Callback || (op.kind == Kind::Signal && !op.queue.is_empty()) {
                open.entry(op.key.clone()).or_default().append(&mut op.queue);
            }
        }
        for (key, mut queue) in early {
            open.entry(key).or_default().append(&mut queue);
        }
        open
    }
}

impl Engine {
    /// Takes what this run, which has ended so, leaves to the next one.
    pub(crate) fn take_continuation(&mut self) -> Option<Continuation> {
        let (input, mut open) = self.cold.there()?.left.take()?;
        #[cfg(test)]
        match self.sabotage {
            Some(Sabotage::ForgetsWhatComesAsARunEnds) => self.pending.clear(),
            Some(Sabotage::GoesOnWithoutWhatWaits) => open.values_mut().for_each(VecDeque::clear),
            _ => {}
        }
        let mut is_cancelled = false;
        let mut state = self.shared.state.lock();
        for Entry { seq, at, event } in self.pending.drain(..) {
            match &event {
                Event::Message { callback, .. }
                    if open.contains_key(callback) || !has_begun(&state.named, callback) =>
                {
                    open.entry(callback.clone()).or_default().push_back(Item { seq, at, event });
                }
                Event::Cancel => is_cancelled = true,
                _ => {}
            }
        }
        let mut next: BTreeMap<&str, u32> = BTreeMap::new();
        let (mut carried, mut messages) = (Vec::new(), Vec::new());
        let mut keys: Vec<&Key> = open.keys().collect();
        keys.sort_by(|a, b| parts(a).cmp(&parts(b)));
        for key in keys {
            let (base, _) = parts(key);
            let (address, to) = if is_signal(key) {
                ((0, key.clone()), key.clone())
            } else {
                let ordinal = next.entry(base).or_default();
                let to: Key = format!("{base}#{ordinal}").into();
                *ordinal += 1;
                let carried = state.cold.there().and_then(|cold| cold.carried.remove(key));
                (carried.unwrap_or_else(|| (state.run, key.clone())), to)
            };
            let unread = open[key].iter().map(|item| item.seq).collect();
            carried.push((key.clone(), Carried { key: to, run: address.0, callback: address.1, unread }));
        }
        drop(state);
        for Item { seq, at, event } in open.into_values().flatten() {
            messages.push(Entry { seq, at, event });
        }
        messages.sort_by_key(|entry| entry.seq);
        Some(Continuation { input, carried, messages, is_cancelled, next_seq: self.next_seq })
    }

    /// Lets the numbers of entries go on with this one.
    pub(crate) fn count_from(&mut self, seq: u64) {
        self.next_seq = seq;
    }

    /// The run begins with entry `seq`: those before it are messages that it may take over.
    pub(super) fn begin_run(&mut self, seq: u64) {
        self.first_seq = seq;
        self.bytes = 0;
        let taken_along: BTreeMap<_, _> = self.pending.drain(..).map(|entry| (entry.seq, entry)).collect();
        if !taken_along.is_empty() || !self.cold.taken_along.is_empty() {
            self.cold.made().taken_along = taken_along;
        }
    }

    /// Tells whether there is something in the journal that the code has not been told.
    pub(crate) fn has_unseen(&self) -> bool {
        matches!(self.phase, Phase::Going) && (self.current.is_some() || !self.pending.is_empty())
    }

    /// Tells whether a message for this callback goes along.
    pub(super) fn goes_along(&self, callback: &str) -> bool {
        self.cold.left.as_ref().is_some_and(|(_, open)| open.contains_key(callback))
    }
}

/// The name of an operation without its ordinal, and the ordinal.
fn parts(key: &str) -> (&str, u32) {
    let (base, ordinal) = key.rsplit_once('#').unwrap_or((key, "0"));
    (base, ordinal.parse().unwrap_or_default())
}

/// Tells whether the operation of this name is a signal, which has the same name in every run.
pub(crate) fn is_signal(key: &str) -> bool {
    key.rsplit('/').next().unwrap_or(key).starts_with("signal:")
}
