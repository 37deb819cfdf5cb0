//! An alarm or message that is due, and the rows that say what becomes of it.
//!
//! Plain data: what it is, its completion, its mark, its next attempt, its dead letter. Alarms and messages go the same way.
//!
//! *A killer*, an alarm or message whose handler ends the process, is found by the mark that it left in the store, and becomes a dead letter
//! after [`max_crashes`](super::firing::Limits::max_crashes) such ends; [`shards`](super) says when marks are written.

use std::time::Duration;

use crate::alarm::RetryPolicy;
use crate::clock::{Random, Timestamp};
use crate::store::{AlarmRow, Attempts, DeadLetter, DeadRow, InboxRow, InstanceName, Op};
use crate::sync::Arc;

/// An alarm or message that is due.
#[derive(Debug, Clone)]
pub(crate) enum Wake {
    Alarm(Arc<AlarmRow>),
    Message(Arc<InboxRow>),
}

/// The fields that alarms and messages have alike.
struct Common<'a> {
    kind: &'static str,
    name: &'a InstanceName,
    id: &'a Arc<str>,
    due: Timestamp,
    attempts: &'a Attempts,
}

impl Wake {
    fn common(&self) -> Common<'_> {
        match self {
            Wake::Alarm(row) => {
                Common { kind: "alarm", name: &row.name, id: &row.id, due: row.due, attempts: &row.attempts }
            }
            Wake::Message(row) => {
                Common { kind: "message", name: &row.name, id: &row.id, due: row.due, attempts: &row.attempts }
            }
        }
    }

    pub(crate) fn name(&self) -> &InstanceName {
        self.common().name
    }

    pub(crate) fn id(&self) -> &Arc<str> {
        self.common().id
    }

    pub(crate) fn kind(&self) -> &'static str {
        self.common().kind
    }

    pub(crate) fn attempts(&self) -> &Attempts {
        self.common().attempts
    }

    pub(crate) fn due(&self) -> Timestamp {
        self.common().due
    }

    /// The number of bytes that the application put into it.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Wake::Alarm(alarm) => alarm.bytes(),
            Wake::Message(message) => message.bytes(),
        }
    }

    /// The completion of the alarm or message.
    pub(crate) fn done(&self) -> Op {
        match self {
            Wake::Alarm(alarm) => {
                Op::RemoveAlarm { name: alarm.name.clone(), id: alarm.id.clone(), revision: alarm.revision }
            }
            Wake::Message(message) => Op::RemoveMessage(message.key()),
        }
    }

    /// The mark that the handler is about to start.
    pub(crate) fn mark(&self) -> Op {
        self.row(self.due(), self.attempts().begun()).put()
    }

    /// The row of the alarm or message, with another time and other attempts.
    fn row(&self, due: Timestamp, attempts: Attempts) -> DeadRow {
        match self {
            Wake::Alarm(alarm) => DeadRow::Alarm(AlarmRow { due, attempts, ..(**alarm).clone() }),
            Wake::Message(message) => DeadRow::Message(InboxRow { due, attempts, ..(**message).clone() }),
        }
    }

    /// Another attempt after the policy's wait, or the dead letters.
    pub(crate) fn failed(&self, error: &Arc<str>, now: Timestamp, retry: &RetryPolicy, random: &dyn Random) -> Failed {
        let attempts = self.attempts().one_more_failed(error);
        match retry.wait_after(attempts.failed, random) {
            Some(wait) => Failed::Retry(wait, self.row(now + wait, attempts).put()),
            None => Failed::Dead(self.dead(attempts, error, now)),
        }
    }

    /// The end of the alarm or message as a dead letter, after these attempts.
    pub(crate) fn dead(&self, attempts: Attempts, reason: &Arc<str>, now: Timestamp) -> [Op; 2] {
        let row = self.row(self.due(), attempts);
        [self.done(), Op::PutDead(DeadLetter { died_at: now, reason: reason.clone(), row })]
    }
}

/// The fate of an alarm or message whose handler failed.
pub(crate) enum Failed {
    Retry(Duration, Op),
    Dead([Op; 2]),
}
