//! The words between rooms and their clients, as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};
use stable_interfaces::Timestamp;

/// The longest text, in bytes.
pub(crate) const MAX_TEXT: usize = 4_096;
/// The reason given to a client that reads too slowly.
pub(crate) const TOO_SLOW: &str = "you read too slowly; come back for the rest";
/// The reason given to a member's clients when it has left, by whichever of them.
pub(crate) const LEFT: &str = "you have left";

/// An event in a room, numbered from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    pub(crate) at: Timestamp,
    pub(crate) who: String,
    #[serde(flatten)]
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub(crate) enum What {
    Joined,
    Said {
        tag: u64,
        text: String,
    },
    /// Took its leave.
    Left,
    /// Was not heard from any more.
    Gone,
}

/// A client introduces itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Hello {
    pub(crate) name: String,
    /// The last entry it has seen, if it comes back.
    pub(crate) after: Option<u64>,
}

/// A message from a client.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// Says something. A client that has not seen its entry sends it again under the same tag, and it counts once.
    Say { tag: u64, text: String },
    /// Still there.
    Here,
    /// Going.
    Leave,
}

/// A message to a client, as JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Event {
    /// Always the first.
    Welcome(Welcome),
    Entry(Entry),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Welcome {
    /// The members who are there, the client included.
    pub(crate) members: Vec<String>,
    /// The entries that the client has not seen.
    pub(crate) history: Vec<Entry>,
    /// The number of entries before these that it has not seen either, and cannot any more.
    pub(crate) missed: u64,
    /// A client says something, if only that it is here, well within this time.
    pub(crate) gone_after_ms: u64,
    /// Says whether somebody else is connected under the same name: the same person in another window, or another of that name.
    #[serde(default)]
    pub(crate) shared: bool,
}

/// As a terminal shows it.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who = &self.who;
        match &self.what {
            What::Said { text, .. } => write!(f, "{who}: {text}"),
            What::Joined => write!(f, "* {who} has joined"),
            What::Left => write!(f, "* {who} has left"),
            What::Gone => write!(f, "* {who} is gone"),
        }
    }
}
