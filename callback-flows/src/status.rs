//! A flow as it is seen from outside: the row that it keeps of itself.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use stable_interfaces::Timestamp;

use crate::blocked::Blocked;

/// The storage key of a flow's status.
pub(crate) const STATUS_KEY: &str = "status";
/// The storage key of a flow's result, as JSON.
pub(crate) const RESULT_KEY: &str = "result";
/// The most waits that a status names.
pub(crate) const MAX_WAITS: usize = 16;
/// The longest text in a status, in bytes.
const MAX_TEXT: usize = 1_024;

/// The state of a flow, as it was when it last parked, was blocked or ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[non_exhaustive]
pub enum State {
    /// It waits, or a step of it runs.
    Going,
    /// It needs somebody to look at it.
    Blocked {
        /// The reason.
        why: Blocked,
    },
    /// It has ended with a result: [`Flows::result`](crate::Flows::result).
    Done,
    /// It has failed.
    Failed {
        /// The error, with its causes.
        error: String,
    },
    /// It was cancelled, and what it had registered to undo was undone.
    Cancelled,
    /// It ended so long ago that only its ID is kept, for a while.
    Purged,
}

impl State {
    /// Tells whether the flow is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        !matches!(self, State::Going | State::Blocked { .. })
    }
}

/// Something that a flow waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The full name of the operation: `scope/kind:name[key]#ordinal`.
    pub name: String,
    /// Since when.
    pub since: Timestamp,
    /// Until when at the latest: the deadline of a timer, or the next attempt of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Failed attempts of a step.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// The error of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A flow, as it is seen from outside. It is written in the commit of what it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// Its state.
    #[serde(flatten)]
    pub state: State,
    /// The version of its code, fixed at its start.
    pub version: u32,
    /// The moment at which it was started.
    pub started_at: Timestamp,
    /// The moment of its last change.
    pub changed_at: Timestamp,
    /// The operations that it waits for, oldest first; the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub waits: Vec<Waiting>,
    /// Messages that its code has not taken.
    #[serde(default)]
    pub unread: u64,
    /// Entries of its journal.
    pub entries: u64,
    /// About how many bytes they have.
    pub bytes: u64,
    /// A hash of its input.
    pub(crate) input: u64,
}

impl Status {
    /// The status that is stored under the key `status` of a flow, for tools without this host's code.
    ///
    /// # Errors
    /// If it is none, or of a newer version.
    pub fn from_stored(stored: &[u8]) -> Result<Status, serde_json::Error> {
        serde_json::from_slice(stored)
    }
}

/// A text that fits into a status.
pub(crate) fn short(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    if end < text.len() { format!("{}…", &text[..end]) } else { text.to_owned() }
}

/// The end of a flow.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Outcome {
    /// With this result, as JSON.
    Done(Box<RawValue>),
    /// With this error.
    Failed(String),
    /// It was cancelled.
    Cancelled,
    /// It ended so long ago that its result is gone.
    Purged,
}
