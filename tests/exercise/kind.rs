//! Conduct of the handlers of alarms and messages, by the meta or body that these carry.

use serde_json::{Value, json};

/// Conduct of the handler of an alarm or message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It counts.
    Plain,
    /// It counts and sets its alarm again, three times in all.
    Again,
    /// It fails the first times.
    Fails,
    /// It panics the first time.
    Panics,
    /// It runs out of time the first time.
    Overruns,
    /// It fails while anything fails: it becomes a dead letter.
    Doomed,
    /// It counts and keeps its alarm unacknowledged.
    Holds,
    /// It takes its time.
    Slow,
    /// It commits in the middle.
    Halves,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Plain, "plain"),
    (Kind::Again, "again"),
    (Kind::Fails, "fails"),
    (Kind::Panics, "panics"),
    (Kind::Overruns, "overruns"),
    (Kind::Doomed, "doomed"),
    (Kind::Holds, "holds"),
    (Kind::Slow, "slow"),
    (Kind::Halves, "halves"),
];

impl Kind {
    pub(super) fn meta(self, effect: u64) -> Value {
        let name = KINDS.iter().find(|(kind, _)| *kind == self).map(|(_, name)| *name);
        json!([name, effect])
    }

    pub(super) fn from_meta(meta: &Value) -> (Kind, u64) {
        let kind = KINDS.iter().find(|(_, name)| meta[0] == *name).map_or(Kind::Plain, |(kind, _)| *kind);
        (kind, meta[1].as_u64().unwrap_or(0))
    }

    /// The number of times that the effect of such a handler happens.
    pub(super) fn times(self) -> (i64, i64) {
        match self {
            Kind::Again => (3, 3),
            Kind::Holds => (1, i64::MAX),
            _ => (1, 1),
        }
    }
}
