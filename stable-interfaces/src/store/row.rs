//! Rows of a store: alarms, inbox messages, dead letters and instance storage, and the operations on them.
//!
//! The order of each kind of row is the derived order of its key type: fields from first to last, text by its bytes.

use std::fmt;

use bytes::Bytes;

use super::{Epoch, ShardId};
use crate::clock::Timestamp;
use crate::sync::Arc;

/// The full name of an instance: the name of its interface and its own ID.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceName {
    /// The interface's `NAME`.
    pub interface: Arc<str>,
    /// The instance's ID, whole.
    pub instance: Arc<str>,
}

impl fmt::Display for InstanceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.interface, self.instance)
    }
}

/// The number of a setting of an alarm. Given by the owner without asking the store: the epoch makes it rise over owners, the counter
/// within one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision {
    /// The epoch of the shard when the alarm was set.
    pub epoch: Epoch,
    /// Rises with each setting in that epoch.
    pub counter: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.counter)
    }
}

/// The attempts to handle an alarm or message so far; by default there was none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attempts {
    /// The number of handlers that have failed.
    pub failed: u32,
    /// The number of processes that have died while a handler ran.
    pub crashes: u32,
    /// Says that a handler had begun when the row was written: kept only while there may be an alarm or message that kills its process.
    pub started: bool,
    /// The reason why the last attempt failed.
    pub last_error: Option<Arc<str>>,
}

impl Attempts {
    /// The number of bytes that the application's error has.
    pub(crate) fn bytes(&self) -> usize {
        self.last_error.as_ref().map_or(0, |error| error.len())
    }

    /// The crashes, with one more for a handler that had begun and of which nothing else is known.
    pub(crate) fn all_crashes(&self) -> u32 {
        self.crashes.saturating_add(u32::from(self.started))
    }

    /// Counts another attempt, which is about to begin.
    pub(crate) fn begun(&self) -> Attempts {
        Attempts { crashes: self.all_crashes(), started: true, ..self.clone() }
    }

    /// Takes back the mark of an attempt about to begin. A process that died of that attempt stays counted.
    pub(crate) fn unmarked(&self) -> Attempts {
        Attempts { crashes: self.all_crashes(), started: false, ..self.clone() }
    }

    /// Ends the attempts for `reason`.
    pub(crate) fn given_up(&self, reason: &Arc<str>) -> Attempts {
        Attempts { last_error: Some(reason.clone()), ..self.unmarked() }
    }

    /// Counts another failed attempt.
    pub(crate) fn one_more_failed(&self, error: &Arc<str>) -> Attempts {
        Attempts { failed: self.failed.saturating_add(1), ..self.given_up(error) }
    }
}

/// The order in which a shard's alarms fire.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AlarmKey {
    /// The time at which the alarm is due.
    pub due: Timestamp,
    /// The instance that the alarm belongs to.
    pub name: InstanceName,
    /// The alarm's ID, unique within the instance.
    pub id: Arc<str>,
}

/// An alarm as it is stored. `(name, id)` is its identity: there is at most one row of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlarmRow {
    /// The instance that the alarm belongs to.
    pub name: InstanceName,
    /// The alarm's ID, unique within the instance.
    pub id: Arc<str>,
    /// The time at which it is to fire next.
    pub due: Timestamp,
    /// The time it was set for; `due` moves away from it with each retry.
    pub scheduled_at: Timestamp,
    /// The number of this setting.
    pub revision: Revision,
    /// The attempts at it since it was set.
    pub attempts: Attempts,
    /// The JSON that the application attached.
    pub meta: Bytes,
}

impl AlarmRow {
    /// The number of bytes that the application put into the row.
    pub(crate) fn bytes(&self) -> usize {
        self.meta.len() + self.attempts.bytes()
    }

    /// The alarm's place in the order of firing.
    #[must_use]
    pub fn key(&self) -> AlarmKey {
        AlarmKey { due: self.due, name: self.name.clone(), id: self.id.clone() }
    }
}

/// The order in which a shard's inbox is read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboxKey {
    /// The time at which the store took the message.
    pub arrived: Timestamp,
    /// The instance that the message is for.
    pub name: InstanceName,
    /// The message's ID, unique within the instance.
    pub id: Arc<str>,
}

/// Headers beside a message's body: names and values as they came, in order.
pub type MessageHeaders = Vec<(String, String)>;

/// A message as it is stored. `(name, id)` is its identity: there is at most one row of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxRow {
    /// The instance that the message is for.
    pub name: InstanceName,
    /// The message's ID, unique within the instance's inbox.
    pub id: Arc<str>,
    /// The time at which the store took it, by the store's clock.
    pub arrived: Timestamp,
    /// The time at which it is to be handled: `arrived` at first, later with each retry.
    pub due: Timestamp,
    /// The attempts at it since it arrived.
    pub attempts: Attempts,
    /// The headers that came beside the body.
    pub headers: MessageHeaders,
    /// The message: opaque.
    pub body: Bytes,
}

impl InboxKey {
    /// A row of which nothing but this key is known.
    #[must_use]
    pub fn into_row(self) -> InboxRow {
        let InboxKey { arrived, name, id } = self;
        InboxRow {
            name,
            id,
            arrived,
            due: arrived,
            attempts: Attempts::default(),
            headers: MessageHeaders::new(),
            body: Bytes::new(),
        }
    }
}

impl InboxRow {
    /// The number of bytes that the application put into the row.
    pub(crate) fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.body.len() + headers + self.attempts.bytes()
    }

    /// The message's place in the order of arrival.
    #[must_use]
    pub fn key(&self) -> InboxKey {
        InboxKey { arrived: self.arrived, name: self.name.clone(), id: self.id.clone() }
    }
}

/// A message on its way into an inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// The shard of the instance.
    pub shard: ShardId,
    /// The instance it is for.
    pub name: InstanceName,
    /// The message's ID: a second message with the same ID is dropped while the first is unread.
    pub id: Arc<str>,
    /// The headers that go beside the body.
    pub headers: MessageHeaders,
    /// At most [`MAX_VALUE_BYTES`](crate::store::MAX_VALUE_BYTES).
    pub body: Bytes,
}

impl NewMessage {
    /// The row that a store keeps of it: due as soon as it has `arrived`, and never handled.
    #[must_use]
    pub fn into_row(self, arrived: Timestamp) -> InboxRow {
        InboxRow {
            name: self.name,
            id: self.id,
            arrived,
            due: arrived,
            attempts: Attempts::default(),
            headers: self.headers,
            body: self.body,
        }
    }
}

/// The order of dead letters: oldest first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeadKey {
    /// The time at which it was given up.
    pub died_at: Timestamp,
    /// The instance whose alarm or message it was.
    pub name: InstanceName,
    /// `true` for a message, `false` for an alarm: the two have separate IDs.
    pub is_message: bool,
    /// The ID of the alarm or message.
    pub id: Arc<str>,
}

/// An alarm or message that was given up: kept until somebody requeues or discards it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The time at which it was given up, by the owner's clock.
    pub died_at: Timestamp,
    /// The reason: usually the last error.
    pub reason: Arc<str>,
    /// The row as it was.
    pub row: DeadRow,
}

/// The alarm or message that died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadRow {
    /// An alarm.
    Alarm(AlarmRow),
    /// A message.
    Message(InboxRow),
}

impl DeadRow {
    /// The operation that writes the row among the living.
    pub(crate) fn put(self) -> Op {
        match self {
            DeadRow::Alarm(row) => Op::PutAlarm(row),
            DeadRow::Message(row) => Op::PutMessage(row),
        }
    }
}

impl DeadLetter {
    /// The number of bytes that the application put into the row.
    pub(crate) fn bytes(&self) -> usize {
        let row = match &self.row {
            DeadRow::Alarm(row) => row.bytes(),
            DeadRow::Message(row) => row.bytes(),
        };
        row + self.reason.len()
    }

    /// The letter's place among the dead letters.
    #[must_use]
    pub fn key(&self) -> DeadKey {
        let (name, is_message, id) = match &self.row {
            DeadRow::Alarm(alarm) => (&alarm.name, false, &alarm.id),
            DeadRow::Message(message) => (&message.name, true, &message.id),
        };
        DeadKey { died_at: self.died_at, name: name.clone(), is_message, id: id.clone() }
    }
}

/// Operations on one shard that happen together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The shard that all of them belong to.
    pub shard: ShardId,
    /// The epoch under which they were decided.
    pub epoch: Epoch,
    /// The operations; no two have the same target. Shared with the commit that they are of, which is readable until it is settled.
    pub ops: Arc<[Op]>,
}

/// One change to a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes an alarm, in place of any of the same identity. One with a *greater revision* stays, and this does nothing.
    PutAlarm(AlarmRow),
    /// Removes an alarm if it exists with this revision or a smaller one.
    RemoveAlarm {
        /// The instance that the alarm belongs to.
        name: InstanceName,
        /// The alarm's ID.
        id: Arc<str>,
        /// The greatest revision to remove.
        revision: Revision,
    },
    /// Writes what changed on an inbox row (everything but `arrived`, headers and body). Does nothing if the row is gone.
    PutMessage(InboxRow),
    /// Removes an inbox row, if it exists.
    RemoveMessage(InboxKey),
    /// Writes a dead letter, in place of one with the same key.
    PutDead(DeadLetter),
    /// Removes a dead letter, if it exists.
    RemoveDead(DeadKey),
    /// Writes a storage value.
    Put {
        /// The instance whose storage it is.
        name: InstanceName,
        /// The key.
        key: Arc<str>,
        /// The value.
        value: Bytes,
    },
    /// Removes a storage value, if it exists.
    Delete {
        /// The instance whose storage it is.
        name: InstanceName,
        /// The key.
        key: Arc<str>,
    },
}
