//! A flow that is blocked: its code is not there, or did not come as far as the one that wrote its journal.
//!
//! It keeps its limits all the same: whatever timer the journal knows fires at its time, and comes before a message that arrives later. One that
//! the code had let go, of which a journal says nothing, fires too, and finds nobody when the code is there again.

use std::collections::HashSet;

use stable_interfaces::Timestamp;

use super::{Engine, Kind, Phase};
use crate::journal::{Detail, Event, Key};

impl Engine {
    /// Replays what the code has taken in in an earlier life, and nothing that came later: for a flow that is to stay blocked, whose
    /// callbacks are open and whose timers run.
    pub(crate) fn replay(&mut self) {
        let taken_in = self.pending.partition_point(|entry| entry.seq < self.recorded_to);
        let later = self.pending.split_off(taken_in);
        self.settle(usize::MAX);
        self.pending.extend(later);
        if matches!(self.phase, Phase::Blocked(_)) {
            self.take_stock();
        }
    }

    /// Counts the messages that the code has not seen, and lets the timers run that have not fired.
    pub(super) fn take_stock(&mut self) {
        self.cold.made().unseen =
            self.pending.iter().filter(|entry| matches!(entry.event, Event::Message { .. })).count();
        let fired: HashSet<&Key> = self.pending.iter().filter_map(|entry| fired(&entry.event)).collect();
        let mut state = self.shared.state.lock();
        // What the code has begun because of an entry that it has not taken in is in no journal, and may be begun by no other code.
        let journaled = self.numbers_settled;
        let state = &mut *state;
        for (index, op) in state.ops.iter_mut().enumerate() {
            if let Some(op) = op
                && (fired.contains(&op.key) || (op.number >= journaled && op.kind == Kind::Timer))
                && let Some(due) = op.due.take()
            {
                state.due.remove((due, index));
            }
        }
        let under_way = state.expected.take().unwrap_or_default();
        let begun = self.recorded.iter().flat_map(|settled| &settled.begun).chain(&under_way);
        let timers = begun.filter_map(|begun| match begun.detail {
            Detail::Due(due) => Some((due, begun.key.clone())),
            _ => None,
        });
        let armed: HashSet<&Key> = state.ops.iter().flatten().filter(|op| op.due.is_some()).map(|op| &op.key).collect();
        self.cold.made().unheld = timers.filter(|(_, key)| !fired.contains(key) && !armed.contains(key)).collect();
    }

    /// Takes the timers with a deadline of at most `until` that no code holds, and puts them in order among those that it does.
    pub(super) fn take_unheld(&mut self, until: Timestamp, among: &mut Vec<(Timestamp, Key)>) {
        let before = among.len();
        let Some(cold) = self.cold.there() else { return };
        while cold.unheld.first().is_some_and(|(due, _)| *due <= until) {
            among.extend(cold.unheld.pop_first());
        }
        if among.len() > before {
            among.sort_by_key(|(due, _)| *due);
        }
    }
}

fn fired(event: &Event) -> Option<&Key> {
    if let Event::Fired { timer } = event { Some(timer) } else { None }
}
