//! The reasons why a flow cannot go on by itself.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::status::short;

/// The reason for which a flow waits for somebody to look at it. Nothing of it is lost: it takes messages and timers, and goes
/// on where it was as soon as code that fits is registered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    kind: BlockedKind,
    message: String,
}

impl Blocked {
    /// A reason of this kind, in words: a panic may have any number of them, and the status has no room for more than a few.
    pub(crate) fn new(kind: BlockedKind, message: String) -> Blocked {
        Blocked { kind, message: short(&message) }
    }

    /// The code of the version that a flow began with is not there.
    pub(crate) fn unknown_version(name: &str, version: u32) -> Blocked {
        let message = format!("version {version} of `{name}`, with which it began, is not in this program");
        Blocked::new(BlockedKind::UnknownVersion, message)
    }

    /// The kind of reason.
    #[must_use]
    pub fn kind(&self) -> BlockedKind {
        self.kind
    }

    /// The reason in words: the exact difference, and where it is known, its remedy.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Blocked {}

/// The kinds of reasons for which a flow is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BlockedKind {
    /// The code does not do what it did when the journal was written.
    Differs,
    /// The code panicked.
    Panicked,
    /// The code waits for, or was told by, something that is not durable.
    NotDurable,
    /// Two operations of one name were begun at once.
    TwoAtOnce,
    /// The journal has become too long.
    TooLong,
    /// A step has failed for good, and is to be looked at rather than given up.
    StepFailed,
    /// Processes died while a step ran.
    StepKilled,
    /// Processes died while its code ran for a timer or a message, outside of steps. It is not run again before it is
    /// [resumed](crate::Flows::resume).
    CodeKilled,
    /// The code asks for something that was not configured.
    NotConfigured,
    /// No code of the flow's version is registered, or its journal was written by a newer version of this crate.
    UnknownVersion,
    /// The code holds more callbacks than it may.
    TooMany,
    /// The journal is damaged.
    Unreadable,
}
